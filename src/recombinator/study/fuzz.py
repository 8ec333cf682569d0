"""Read damaged files of every kind, and count how each ends: a sentence (InputError), read fine, or a fault.

Samples are made first: small tables, a small training, its weights, points files, images. Each mutation copies one,
damages it and reads it as the commands do.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import signal
import tempfile
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from recombinator.data.images import encode_image, read_image
from recombinator.data.points import read_entries, read_points
from recombinator.data.readers.mtfl import prepare_mtfl
from recombinator.data.readers.own import infer_keypoints
from recombinator.data.readers.synthetic import draw_face, five_of, prepare_synthetic
from recombinator.data.table import load_table
from recombinator.evaluation.tables import evaluate
from recombinator.keypoints import FACE_5
from recombinator.models import create_model
from recombinator.predict.batch import read_boxes
from recombinator.predict.engine import load_engine
from recombinator.predict.predictor import check_boxes
from recombinator.predict.repair import repair
from recombinator.study import mutate
from recombinator.study.collect import collect_runs
from recombinator.study.render import render_text
from recombinator.study.result import read_result
from recombinator.training.recipe import get_recipe
from recombinator.training.run import train
from recombinator.utils.errors import InputError
from recombinator.utils.files import copy_file, write_json
from recombinator.utils.provenance import provenance
from recombinator.weights.files import Weights, load_weights, save_weights, write_pair
from recombinator.weights.shipped import FOLDER

GRAPH = "rcn-6-fast-mtfl"  # the smallest graph whose tensors are in a neighboring file
MODEL = "rcn-4"
OPTIONS = {"width": 0.1, "size": 32}
SENTENCE, FINE, TRACEBACK, NOT_FINITE, SLOW = "sentence", "read fine", "traceback", "not finite", "too slow"
FAULTS = (TRACEBACK, NOT_FINITE, SLOW)


class _TimedOut(BaseException):
    """Not an Exception: code that handles those must not handle this."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        samples: Undamaged files, relative to the folder of samples; one is damaged.
        damage: How.
        read: Reads a damaged file as the commands do, and returns numbers, which must be finite.
        whole: Copy the folder of the sample, not the file alone.
    """

    samples: tuple[str, ...]
    damage: mutate.Mutation
    read: Callable[[Path], Any]
    whole: bool = False


@dataclass
class Outcome:
    """How the mutations ended.

    Attributes:
        counts: By kind of file, how often each of SENTENCE, FINE and FAULTS.
        faults: For each fault its kind, its number (`fuzz` with this number as `only` repeats it) and its traceback.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[tuple[str, int, str]] = field(default_factory=list)


def make_samples(folder: Path) -> None:
    """Write the undamaged files."""
    rng = np.random.default_rng(0)
    prepare_synthetic(folder / "tables", faces=24, keypoints=5, seed=1, size=64)
    train(MODEL, folder / "tables", folder / "run", recipe=_recipe(), options=OPTIONS, device="cpu")
    weights = load_weights(folder / "run")
    calibration = {"temperature": 1.2, "least": 0.1, "covered_below": [0.1] * 5}
    (folder / "weights").mkdir()
    save_weights(folder / "weights" / "image.safetensors", weights.calibrated(calibration))
    denoiser = create_model("denoiser-lite", 5, size=32, width=8, layers=1, heads=1, modes=4)
    template = [[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]]
    rule = weights.crop_rule
    save_weights(folder / "weights" / "denoiser.safetensors", Weights(denoiser, FACE_5, rule, template, {}))
    network, other = (folder / "weights" / f"{name}.safetensors" for name in ("image", "denoiser"))
    write_pair(folder / "weights" / "pair.json", network, other, 0.5, 1, calibration)
    write_json(folder / "weights" / "shift.json", {"shifted": "image.safetensors", "by": 1, "calibration": calibration})
    for name in (f"{GRAPH}.onnx", f"{GRAPH}.safetensors"):
        copy_file(FOLDER / name, folder / "graph" / name)
    report = evaluate(weights, folder / "tables" / "test.parquet")[1]
    result = {"kind": "evaluation", **report, "provenance": provenance()}
    write_json(folder / "results" / "rcn-6-mtfl.json", result)
    _write_points(folder / "points", rng)
    listing = []
    for i in range(3):
        image, points = draw_face(rng)
        name = f"{i}.{('png', 'jpg', 'jpg')[i]}"
        (folder / "list" / name).parent.mkdir(exist_ok=True)
        (folder / "list" / name).write_bytes(encode_image(image, 90 if i else 0))
        listing.append(" ".join([name, *(f"{v:.2f}" for v in five_of(points).T.reshape(-1)), "1 2 2 3"]))
    (folder / "list" / "training.txt").write_text("\n".join(listing) + "\n", encoding="utf-8")


def _recipe() -> Any:
    return get_recipe("fast", MODEL, epochs=2, batch=16, decay=0.5)


def _write_points(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir()
    faces = [five_of(draw_face(rng)[1]) for _ in range(4)]
    rows = ["file,face,keypoint,x,y,confidence"]
    wide = ["file," + ",".join(f"{n}_x,{n}_y" for n in FACE_5.names)]
    objects = []
    for i, points in enumerate(faces):
        rows += [f"{i}.jpg,1,{n},{x:.2f},{y:.2f},0.9" for n, (x, y) in zip(FACE_5.names, points, strict=True)]
        wide.append(f"{i}.jpg," + ",".join(f"{v:.2f}" for v in points.reshape(-1)))
        named = [{"name": n, "x": x, "y": y} for n, (x, y) in zip(FACE_5.names, points.tolist(), strict=True)]
        objects.append({"file": f"{i}.jpg", "keypoints": named})
    flat = [[v for x, y in points.tolist() for v in (x, y, 2)] for points in faces]
    coco = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "keypoints": k} for i, k in enumerate(flat)],
        "categories": [{"id": 1, "name": "face", "keypoints": list(FACE_5.names)}],
    }
    numbers = "\n".join(f"{x} {y}" for x, y in rng.uniform(0, 99, (68, 2)))
    texts = {
        "rows.csv": "\n".join(rows), "wide.csv": "\n".join(wide), "objects.json": json.dumps(objects),
        "coco.json": json.dumps(coco), "lines.jsonl": "\n".join(map(json.dumps, objects)),
        "boxes.csv": "file,x,y,width,height\n0.jpg,10,10,60,60\n1.jpg,5,5,80,80",
        "face.pts": f"version: 1\nn_points: 68\n{{\n{numbers}\n}}",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")


def kinds(samples: Path) -> dict[str, Kind]:
    """Return the kinds of files, by name."""
    denoiser, network = (load_weights(samples / "weights" / f"{n}.safetensors") for n in ("denoiser", "image"))

    def read_network(path: Path) -> Any:
        engine = load_engine(path)
        crop = np.zeros((1, engine.about.channels, engine.about.size, engine.about.size), np.uint8)
        return [v.tolist() for v in vars(engine.run(crop)).values()]

    def read_run(path: Path) -> Any:
        collect_runs([path.parent])
        options = {"resume": True, "recipe": _recipe(), "device": "cpu"}
        summary = train(MODEL, samples / "tables", path.parent, **options)
        return [summary, read_network(path.parent)]

    def read_any_points(path: Path) -> Any:
        with contextlib.suppress(InputError):
            infer_keypoints(read_entries(path, "auto"), path)
        faces = read_points(path, FACE_5, lambda error: None)
        return [repair(denoiser, face.points).points.tolist() for face in faces[:2]]

    def read_any_boxes(path: Path) -> Any:
        return [check_boxes(b, np.zeros((99, 99), np.uint8)).tolist() for b in read_boxes(path).values()]

    def read_result_file(path: Path) -> Any:
        text = "<!-- results: card-rcn-6-mtfl -->\n<!-- end -->"
        return len(render_text(text, {"rcn-6-mtfl": read_result(path)}, "README.md"))

    def read_list(path: Path) -> Any:
        return prepare_mtfl(path.parent, path.parent / "out", size=32)

    tables = tuple(f"tables/{s}.parquet" for s in ("test", "valid"))
    networks = tuple(f"weights/{n}" for n in ("image.safetensors", "image.safetensors"))
    texts, trees = mutate.damage_lines, mutate.damage_json
    states = ("run/last.safetensors", "run/best.safetensors")
    return {
        "weights": Kind(networks, mutate.damage_weights, read_network),
        "derived weights": Kind(("weights/pair.json", "weights/shift.json"), trees, read_network, whole=True),
        "graph": Kind((f"graph/{GRAPH}.onnx",), mutate.damage_graph, read_network, whole=True),
        "graph's tensors": Kind((f"graph/{GRAPH}.safetensors",), mutate.damage_bytes,
                                lambda p: read_network(p.with_suffix(".onnx")), whole=True),
        "table": Kind(tables, mutate.damage_table, lambda p: evaluate(network, load_table(p))[1]),
        "run's state": Kind(states, mutate.damage_weights, read_run, whole=True),
        "run.json": Kind(("run/run.json", "run/summary.json"), trees, read_run, whole=True),
        "metrics": Kind(("run/metrics.jsonl",), mutate.damage_json_lines, read_run, whole=True),
        "result": Kind(("results/rcn-6-mtfl.json",), trees, read_result_file),
        "CSV points": Kind(("points/rows.csv", "points/wide.csv", "points/face.pts"), texts, read_any_points),
        "JSON points": Kind(("points/objects.json", "points/coco.json"), trees, read_any_points),
        "JSON lines": Kind(("points/lines.jsonl",), mutate.damage_json_lines, read_any_points),
        "boxes": Kind(("points/boxes.csv",), texts, read_any_boxes),
        "list": Kind(("list/training.txt",), texts, read_list, whole=True),
        "image": Kind(("list/0.png", "list/1.jpg"), mutate.damage_bytes, lambda p: int(read_image(p).max())),
    }  # fmt: skip


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _TimedOut in the main thread after some time, where the system has timers."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _TimedOut

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _silence() -> Iterator[None]:
    logger = logging.getLogger("recombinator")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _attempt(kind: Kind, sample: Path, work: Path, rng: Random, seconds: float) -> tuple[str, str]:
    """Damage a copy of a sample and read it. Return how it ended, and the traceback of a fault."""
    if kind.whole:
        shutil.copytree(sample.parent, work)
    else:
        work.mkdir()
        shutil.copyfile(sample, work / sample.name)
    path = work / sample.name
    kind.damage(path, rng)
    try:
        with _time_limit(seconds):
            json.dumps(kind.read(path), allow_nan=False)
    except InputError as error:
        one_line = str(error) and "\n" not in str(error)
        return (SENTENCE, "") if one_line else (TRACEBACK, f"not one line: {str(error)!r}")
    except _TimedOut:
        return SLOW, traceback.format_exc()
    except Exception as error:
        not_finite = isinstance(error, ValueError) and "JSON compliant" in str(error)
        return (NOT_FINITE if not_finite else TRACEBACK), traceback.format_exc()
    return FINE, ""


def fuzz(
    number: int, *, seed: int = 0, only: int | None = None, seconds: float = 20.0, keep: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:  # fmt: skip
    """Read damaged files of all kinds in turn.

    Args:
        number: Number of mutations.
        seed: Seed of the mutations; each depends on the seed and its own number.
        only: Run only the mutation of this number.
        seconds: Time allowed for each.
        keep: Folder for copies of files that led to a fault.
        progress: Called with mutations done and in all.

    Returns:
        The counts and the faults.
    """
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name, _silence():
        samples = Path(name) / "samples"
        make_samples(samples)
        found = kinds(samples)
        outcome.counts = {kind: Counter() for kind in found}
        for i in range(number) if only is None else (only,):
            rng, kind = Random(f"{seed} {i}"), list(found)[i % len(found)]
            work = Path(name) / "work"
            sample = samples / rng.choice(found[kind].samples)
            ended, detail = _attempt(found[kind], sample, work, rng, seconds)
            outcome.counts[kind][ended] += 1
            if ended in FAULTS:
                outcome.faults.append((kind, i, detail))
                if keep:
                    shutil.copytree(work, keep / str(i), dirs_exist_ok=True)
            shutil.rmtree(work)
            progress(i + 1, number)
    return outcome
