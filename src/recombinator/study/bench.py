"""How fast training and prediction are, as ratios within one run: variants are timed in turn, round by round."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Callable
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
from recombinator.models import ScoreMapNet, create_model
from recombinator.models.decode import maximum, subpixel
from recombinator.models.denoiser import MapDenoiser, SpectralConv
from recombinator.predict.engine import ENGINES, load_engine
from recombinator.predict.predictor import load
from recombinator.training.loop import Trainer
from recombinator.training.recipe import bfloat16_is_fast, get_recipe
from recombinator.weights.shipped import shipped_graphs, shipped_weights

Timed = Callable[[], object]
BATCH = 32
# name -> (bfloat16, fused tiling, layout)
VARIANTS = {
    "ours": (True, True, torch.channels_last),
    "ours, float32": (False, True, torch.channels_last),
    "plain, channels-last": (False, False, torch.channels_last),
    "plain": (False, False, torch.contiguous_format),
}


def random_table(n: int, seed: int = 0) -> FaceTable:
    """Noise crops with points at plausible places: what speed needs to know of data."""
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


def _trainer(model: str, table: FaceTable, variant: str, out: Path) -> Trainer:
    bfloat16, fused, layout = VARIANTS[variant]
    recipe = get_recipe("fast", model, epochs=1, batch=BATCH, precision="bfloat16" if bfloat16 else "float32")
    trainer = Trainer(model, table, table, out, recipe)
    net = cast(ScoreMapNet, trainer.net)
    net.fused, net.layout = fused, layout
    net.to(memory_format=layout)  # type: ignore[call-overload]
    return trainer


def _prediction(net: ScoreMapNet, batch: int, bfloat16: bool) -> Timed:
    images = torch.randint(0, 256, (batch, 1, net.size, net.size), dtype=torch.uint8)

    @torch.inference_mode()
    def call() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return subpixel(net(images)).points

    return call


def _dense(net: MapDenoiser, cells: torch.Tensor) -> Timed:
    """The paper's denoiser as it is written down: one-hot maps through dense convolutions."""
    maps = F.one_hot(cells[..., 1] * net.size + cells[..., 0], net.size**2).float().unflatten(2, (net.size, net.size))
    layers = [m for m in net.large if isinstance(m, SpectralConv)]

    @torch.inference_mode()
    def call() -> object:
        x = maps
        for layer in layers:
            x = torch.relu(F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2))
        return maximum(net.out(x))

    return call


def _denoiser_jobs(name: str) -> dict[str, tuple[Timed, float, str]]:
    net = create_model(name).eval()
    cells = torch.randint(0, net.size, (16, net.keypoints, 2))
    jobs: dict[str, tuple[Timed, float, str]] = {}

    def predict(batch: int) -> Timed:
        return torch.inference_mode()(lambda: maximum(net(cells[:batch])))

    for batch in (1, 16):
        jobs[f"{name} prediction, batch {batch}, float32"] = (predict(batch), batch, "ms")
    if name != "denoiser":
        return jobs
    jobs["denoiser prediction, dense, float32"] = (_dense(cast(MapDenoiser, net), cells[:1]), 1, "ms")
    x = torch.randn(1, 64, 80, 80)
    laid_out = x.permute(3, 2, 1, 0).contiguous()
    for kernel in (5, 15, 25, 35, 45):
        conv = SpectralConv(64, 64, kernel, 80).eval()

        def dense(w: torch.Tensor = conv.weight) -> object:
            return F.conv2d(x, w, padding=w.shape[-1] // 2)

        jobs[f"{kernel}x{kernel} convolution 64-64, by spectra"] = (
            torch.inference_mode()(partial(conv, laid_out)),
            1,
            "ms",
        )
        jobs[f"{kernel}x{kernel} convolution 64-64, dense"] = (torch.inference_mode()(dense), 1, "ms")
    return jobs


def _shipped_jobs(name: str, threads: int) -> dict[str, tuple[Timed, float, str]]:
    """A network that ships: both engines on crops, and the way of a photograph (the sample, 512x600) in its parts."""
    photo = SAMPLE_PHOTOGRAPH
    jobs: dict[str, tuple[Timed, float, str]] = {}
    for engine in ENGINES if name in shipped_weights() else ENGINES[:1]:  # an 8-bit graph has no weights of its own
        for n in sorted({1, threads}) if engine == "onnx" else (threads,):
            run = load_engine(name, engine, n)
            for batch in (1, 64):
                crops = np.random.default_rng(0).integers(0, 256, (batch, 1, run.about.size, run.about.size), np.uint8)
                label = f"{name} by {engine}, {n} thread{'s' * (n > 1)}, batch {batch}"
                jobs[label] = (partial(run.run, crops), batch, "ms")
    predictor = load(name, threads=threads)
    image = read_image(photo)
    boxes = predictor.detector.detect(image)
    points = [face.points for face in predictor.predict(image, boxes)]
    return jobs | {
        f"{name}, photograph: file to points": (lambda: predictor.predict(photo), 1, "ms"),
        f"{name}, photograph: decoding the file": (lambda: read_image(photo), 1, "ms"),
        f"{name}, photograph: finding the face": (lambda: predictor.detector.detect(image), 1, "ms"),
        f"{name}, photograph: two passes of crop and network": (lambda: predictor.predict(image, boxes), 1, "ms"),
        f"{name}, video frame: following the last frame's points": (lambda: predictor.follow(image, points), 1, "ms"),
    }


def run(
    models: list[str], rounds: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Times every job once a round for `rounds` rounds; returns medians with lowest and highest, and ratios."""
    a = torch.randn(2048, 2048)
    x = torch.randn(BATCH, 64, 80, 80).contiguous(memory_format=torch.channels_last)
    w = torch.randn(64, 64, 3, 3).contiguous(memory_format=torch.channels_last)
    # name -> (what to time, units of work in one call, unit)
    jobs: dict[str, tuple[Timed, float, str]] = {
        "matrix product 2048, float32": (lambda: a @ a, 2 * 2048**3 / 1e9, "GFLOP/s"),
        "3x3 convolution 64-64 at 80x80, float32": (
            lambda: F.conv2d(x, w, padding=1), 2 * 64 * 64 * 9 * 6400 * BATCH / 1e9, "GFLOP/s",
        ),
    }  # fmt: skip
    fast = bfloat16_is_fast(torch.device("cpu"))
    variants = [v for v, (bfloat16, _, _) in VARIANTS.items() if fast or not bfloat16]
    table = random_table(8 * BATCH)
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            if model.startswith("denoiser"):
                jobs |= _denoiser_jobs(model)
                continue
            if model in shipped_graphs():
                jobs |= _shipped_jobs(model, torch.get_num_threads())
                continue
            for variant in variants:
                trainer = _trainer(model, table, variant, Path(folder))
                epoch: Timed = lambda t=trainer: t.run_epoch()  # type: ignore[misc]  # noqa: E731
                jobs[f"{model} training, {variant}"] = (epoch, len(table), "images/s")
            net = cast(ScoreMapNet, create_model(model)).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            for batch in (1, 64):
                for bfloat16 in (False, True) if fast else (False,):
                    kind = "bfloat16" if bfloat16 else "float32"
                    jobs[f"{model} prediction, batch {batch}, {kind}"] = (
                        _prediction(net, batch, bfloat16),
                        batch,
                        "ms",
                    )
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for i in range(rounds + 1):  # the first round warms up
            for name, (call, _, _) in jobs.items():
                repeats = 50 if re.search(r"batch 1\b", name) and "denoiser " not in name else 1
                for _ in range(repeats // 2):  # threads of the job before spin a while, and would be timed with it
                    call()
                began = time.perf_counter()
                for _ in range(repeats):
                    call()
                if i:
                    times[name].append((time.perf_counter() - began) / repeats)
            progress(i + 1, rounds + 1)
    rows: dict[str, dict[str, Any]] = {}
    for name, (_, work, unit) in jobs.items():
        rates = [1000 * t / work if unit == "ms" else work / t for t in times[name]]
        rows[name] = {"median": statistics.median(rates), "low": min(rates), "high": max(rates), "unit": unit}
    for name, row in rows.items():
        slow = rows.get(name.replace("by spectra", "dense").replace("batch 1, ", "dense, "))
        if slow and slow is not row:
            row["times_faster_than_dense"] = slow["median"] / row["median"]
    for model in (m for m in models if not m.startswith("denoiser") and m not in shipped_graphs()):
        gflop = (
            3 * 2 * create_model(model, 5).multiply_adds() / 1e9
        )  # as trained: five points; forward, and twice that backward
        plain = rows[f"{model} training, plain"]["median"]
        channels_last = rows[f"{model} training, plain, channels-last"]["median"]
        for variant in variants:
            row = rows[f"{model} training, {variant}"]
            row["ratio_to_plain"] = row["median"] / plain
            row["ratio_to_plain_channels_last"] = row["median"] / channels_last
            row["dense_gflops"] = row["median"] * gflop
    return {"rounds": rounds, "threads": torch.get_num_threads(), "batch": BATCH, "rows": rows}


def as_text(report: dict[str, Any]) -> str:
    lines = [f"{report['threads']} threads, median of {report['rounds']} interleaved rounds [lowest, highest]"]
    for name, row in report["rows"].items():
        text = f"{name:48}{row['median']:9.2f} {row['unit']:9} [{row['low']:.2f}, {row['high']:.2f}]"
        if "ratio_to_plain" in row:
            text += (
                f"  {row['ratio_to_plain']:.2f}x plain, {row['ratio_to_plain_channels_last']:.2f}x channels-last"
                f", {row['dense_gflops']:.0f} GFLOP/s of dense arithmetic"
            )
        if "times_faster_than_dense" in row:
            text += f"  {row['times_faster_than_dense']:.1f} times as fast as dense"
        lines.append(text)
    return "\n".join(lines)
