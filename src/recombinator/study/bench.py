"""Benchmarks: speed of training and prediction.

Variants are timed in turn, round by round, so that other work on the machine slows all of them alike.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from recombinator.data.crops import GRID, RULES
from recombinator.data.images import SAMPLE_PHOTOGRAPH, read_image
from recombinator.data.table import FaceTable, TableInfo
from recombinator.keypoints import FACE_5
from recombinator.models import Denoiser, KeypointNet, create_model
from recombinator.models.decode import maximum
from recombinator.models.denoiser import MapDenoiser
from recombinator.models.spectral import SpectralConv
from recombinator.predict.engine import ENGINES, load_engine
from recombinator.predict.predictor import load
from recombinator.training.loop import Trainer
from recombinator.training.recipe import bfloat16_is_fast, get_recipe
from recombinator.weights.shipped import shipped_graphs, shipped_weights

BATCH = 32  # images per training step
REPEATS = 50  # calls per measurement of what takes about a millisecond


@dataclass(frozen=True)
class Job:
    """Something to time.

    Attributes:
        call: What to time.
        work: Units of work per call.
        unit: "ms": milliseconds per unit of work are reported; otherwise a rate, units of work per second.
        repeats: Calls per measurement.
        dense: Name of the job that computes the same by dense convolutions; "" for none.
    """

    call: Callable[[], object]
    work: float
    unit: str = "ms"
    repeats: int = 1
    dense: str = ""


@dataclass(frozen=True)
class Variant:
    """A way to compute a training step: with bfloat16, with fused operations, with maps in the channels-last layout."""

    bfloat16: bool = False
    fused: bool = False
    channels_last: bool = True


VARIANTS = {
    "ours": Variant(bfloat16=True, fused=True),
    "ours, float32": Variant(fused=True),
    "plain, channels-last": Variant(),
    "plain": Variant(channels_last=False),
}


def random_table(n: int, seed: int = 0) -> FaceTable:
    """Make a table of noise images, with five keypoints at plausible positions.

    Args:
        n: Number of rows.
        seed: Seed of images and points.
    """
    rng = np.random.default_rng(seed)
    template = np.array([[56, 52], [104, 52], [80, 80], [60, 108], [100, 108]], np.float32)
    points = template + rng.normal(0, 3, (n, 5, 2)).astype(np.float32)
    return FaceTable(
        info=TableInfo("noise", "train", FACE_5, "mtfl", GRID, True),
        images=rng.integers(0, 256, (n, 1, GRID, GRID), dtype=np.uint8),
        points=points,
        mask=np.ones((n, 5), bool),
        boxes=np.stack([RULES["mtfl"].inner_box(p, GRID) for p in points]),
        to_file=np.ones((n, 2, 3)),
        limits=np.zeros((n, 4)),
        files=["noise"] * n,
        subsets=[""] * n,
        fingerprint="noise",
    )


def _trainer(model: str, table: FaceTable, variant: Variant, out: Path) -> Trainer:
    precision = "bfloat16" if variant.bfloat16 else "float32"
    trainer = Trainer(model, table, table, out, get_recipe("fast", model, epochs=1, batch=BATCH, precision=precision))
    trainer.net.fused = variant.fused
    layout = torch.channels_last
    if not variant.channels_last:
        trainer.net.plain()
        layout = torch.contiguous_format
    trainer.net.to(memory_format=layout)  # type: ignore[call-overload]
    return trainer


def _prediction(net: KeypointNet, batch: int, bfloat16: bool) -> Callable[[], object]:
    images = torch.randint(0, 256, (batch, net.channels, net.size, net.size), dtype=torch.uint8)

    @torch.inference_mode()
    def call() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return net.decode(net(images)).points

    return call


def _training_name(model: str, variant: str) -> str:
    return f"{model} training, {variant}"


def _network_jobs(model: str, table: FaceTable, folder: Path) -> dict[str, Job]:
    """Training in every variant, and prediction, of a network that takes images."""
    jobs: dict[str, Job] = {}
    for name, variant in _variants().items():
        trainer = _trainer(model, table, variant, folder)
        epoch = partial(trainer.run_epoch, lambda done, total: None)
        jobs[_training_name(model, name)] = Job(epoch, len(table), "images/s")
    net = create_model(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for batch in (1, 64):
        for bfloat16 in (False, True) if bfloat16_is_fast(torch.device("cpu")) else (False,):
            kind = "bfloat16" if bfloat16 else "float32"
            call = _prediction(net, batch, bfloat16)
            jobs[f"{model} prediction, batch {batch}, {kind}"] = Job(call, batch, repeats=REPEATS if batch == 1 else 1)
    return jobs


def _variants() -> dict[str, Variant]:
    """Return the variants that make sense on this machine."""
    fast = bfloat16_is_fast(torch.device("cpu"))
    return {name: v for name, v in VARIANTS.items() if fast or not v.bfloat16}


def _dense(net: MapDenoiser, cells: torch.Tensor) -> Callable[[], object]:
    """Return the paper's denoiser as section 4 describes it: one-hot maps through dense convolutions."""
    maps = F.one_hot(cells[..., 1] * net.size + cells[..., 0], net.size**2).float().unflatten(2, (net.size, net.size))
    layers = [m for m in net.large if isinstance(m, SpectralConv)]

    @torch.inference_mode()
    def call() -> object:
        x = maps
        for layer in layers:
            x = torch.relu(F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2))
        return maximum(net.out(x))

    return call


def _denoiser_jobs(model: str, net: Denoiser) -> dict[str, Job]:
    """Prediction of a denoiser; for the paper's, also its dense form and its convolutions alone."""
    net.eval()
    cells = torch.randint(0, net.size, (16, net.keypoints, 2))

    def predict(batch: int) -> Callable[[], object]:
        return torch.inference_mode()(lambda: maximum(net(cells[:batch])))

    batch_16 = {f"{model} prediction, batch 16, float32": Job(predict(16), 16)}
    alone = f"{model} prediction, batch 1, float32"
    if not isinstance(net, MapDenoiser):
        return {alone: Job(predict(1), 1, repeats=REPEATS), **batch_16}
    dense = f"{model} prediction, dense, float32"
    jobs = {alone: Job(predict(1), 1, dense=dense), **batch_16, dense: Job(_dense(net, cells[:1]), 1)}
    x = torch.randn(1, 64, 80, 80)
    transposed = x.permute(3, 2, 1, 0).contiguous()  # SpectralConv's layout
    for kernel in (5, 15, 25, 35, 45):
        conv = SpectralConv(64, 64, kernel, 80).eval()
        dense_call = partial(F.conv2d, x, conv.weight, padding=kernel // 2)
        name = f"{kernel}x{kernel} convolution 64-64"
        jobs[f"{name}, by spectra"] = Job(torch.inference_mode()(partial(conv, transposed)), 1, dense=f"{name}, dense")
        jobs[f"{name}, dense"] = Job(torch.inference_mode()(dense_call), 1)
    return jobs


def _shipped_jobs(name: str, threads: int) -> dict[str, Job]:
    """Prediction of a shipped network: both engines on crops, and each step on the sample photograph, 512x600."""
    photo = SAMPLE_PHOTOGRAPH
    jobs: dict[str, Job] = {}
    for engine in ENGINES if name in shipped_weights() else ENGINES[:1]:  # an 8-bit graph has no weights of its own
        for n in sorted({1, threads}) if engine == "onnx" else (threads,):
            loaded = load_engine(name, engine, n)
            side = loaded.about.size
            for batch in (1, min(64, 64 * 80**2 // side**2)):  # the memory of 64 crops of 80x80 pixels
                crops = np.random.default_rng(0).integers(0, 256, (batch, 1, side, side), np.uint8)
                label = f"{name} by {engine}, {n} thread{'s' * (n > 1)}, batch {batch}"
                jobs[label] = Job(partial(loaded.run, crops), batch, repeats=REPEATS if batch == 1 else 1)
    predictor = load(name, threads=threads)
    image = read_image(photo)
    assert predictor.detector is not None  # of a face model
    detect = predictor.detector.detect
    boxes = detect(image)
    points = [face.points for face in predictor.predict(image, boxes)]
    steps: dict[str, Callable[[], object]] = {
        f"{name}, photograph: file to points": lambda: predictor.predict(photo),
        f"{name}, photograph: decoding the file": lambda: read_image(photo),
        f"{name}, photograph: finding the face": lambda: detect(image),
        f"{name}, photograph: two passes of crop and network": lambda: predictor.predict(image, boxes),
        f"{name}, video frame: following the last frame's points": lambda: predictor.follow(image, points),
    }
    return jobs | {label: Job(call, 1) for label, call in steps.items()}


def _machine_jobs() -> dict[str, Job]:
    """The machine's own rate of multiplications."""
    a = torch.randn(2048, 2048)
    x = torch.randn(BATCH, 64, 80, 80).contiguous(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3).contiguous(memory_format=torch.channels_last)
    return {
        "matrix product 2048, float32": Job(lambda: a @ a, 2 * 2048**3 / 1e9, "GFLOP/s"),
        "3x3 convolution 64-64 at 80x80, float32": Job(
            lambda: F.conv2d(x, w, padding=1), 2 * 64 * 64 * 9 * 6400 * BATCH / 1e9, "GFLOP/s"
        ),
    }


def measure(jobs: dict[str, Job], rounds: int, progress: Callable[[int, int], None]) -> dict[str, list[float]]:
    """Return seconds per call of every job, one value per round; the first of `rounds` + 1 rounds warms up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(rounds + 1):
        for name, job in jobs.items():
            for _ in range(job.repeats // 2):  # threads of the previous job may still be busy
                job.call()
            began = time.perf_counter()
            for _ in range(job.repeats):
                job.call()
            if i:
                times[name].append((time.perf_counter() - began) / job.repeats)
        progress(i + 1, rounds + 1)
    return times


def summary(values: list[float], unit: str) -> dict[str, Any]:
    """Return a job's row of a report: median, lowest and highest value."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "unit": unit}


def run(
    models: list[str], rounds: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Time networks on this machine.

    Args:
        models: Names of networks (training and prediction), or of shipped graphs (prediction only).
        rounds: Rounds in which every job is timed once.
        progress: Called with (rounds done, rounds in all).

    Returns:
        A report: for each job the median, the lowest and the highest value, and ratios to its plain or dense form.

    Raises:
        InputError: There is no such network, or it cannot be trained on a table without attributes.
    """
    jobs, table = _machine_jobs(), random_table(8 * BATCH)
    trained = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            if model in shipped_graphs():
                jobs |= _shipped_jobs(model, torch.get_num_threads())
                continue
            net = create_model(model)
            if net.takes_images:
                trained.append(model)
                jobs |= _network_jobs(model, table, Path(folder))
            else:
                jobs |= _denoiser_jobs(model, cast(Denoiser, net))
        times = measure(jobs, rounds, progress)
    rows: dict[str, dict[str, Any]] = {}
    for name, job in jobs.items():
        values = [1000 * t / job.work if job.unit == "ms" else job.work / t for t in times[name]]
        rows[name] = summary(values, job.unit)
    for name, job in jobs.items():
        if job.dense:
            rows[name]["times_faster_than_dense"] = rows[job.dense]["median"] / rows[name]["median"]
    for model in trained:
        # per image, five keypoints as trained: the forward pass, and twice as much backward
        gflop = 3 * 2 * create_model(model, len(FACE_5)).multiply_adds() / 1e9
        plain, channels_last = (rows[_training_name(model, v)]["median"] for v in ("plain", "plain, channels-last"))
        for variant in _variants():
            row = rows[_training_name(model, variant)]
            row["ratio_to_plain"] = row["median"] / plain
            row["ratio_to_plain_channels_last"] = row["median"] / channels_last
            row["dense_gflops"] = row["median"] * gflop
    return {"rounds": rounds, "threads": torch.get_num_threads(), "batch": BATCH, "rows": rows}


def as_text(report: dict[str, Any]) -> str:
    """Return a report of `run` as text, one line per job."""
    lines = [f"{report['threads']} threads, median of {report['rounds']} interleaved rounds [lowest, highest]"]
    for name, row in report["rows"].items():
        text = f"{name:58}{row['median']:9.2f} {row['unit']:9} [{row['low']:.2f}, {row['high']:.2f}]"
        if "ratio_to_plain" in row:
            text += (
                f"  {row['ratio_to_plain']:.2f}x plain, {row['ratio_to_plain_channels_last']:.2f}x channels-last"
                f", {row['dense_gflops']:.0f} GFLOP/s of dense arithmetic"
            )
        if "times_faster_than_dense" in row:
            text += f"  {row['times_faster_than_dense']:.1f} times as fast as dense"
        if "times_reference" in row:
            text += f"  {row['times_reference']:.3f} of the reference"
        lines.append(text)
    return "\n".join(lines)
