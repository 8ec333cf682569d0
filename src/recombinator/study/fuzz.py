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

from recombinator.data.images import read_image
from recombinator.data.points import read_entries, read_points
from recombinator.data.readers.mtfl import prepare_mtfl
from recombinator.data.readers.own import infer_keypoints
from recombinator.data.table import load_table
from recombinator.evaluation.tables import evaluate
from recombinator.fit.plan import Plan
from recombinator.keypoints import FACE_5
from recombinator.predict.batch import Lines, read_boxes
from recombinator.predict.engine import load_engine
from recombinator.predict.output import FORMATS, records
from recombinator.predict.predictor import load
from recombinator.predict.repair import repair
from recombinator.study import mutate
from recombinator.study.collect import collect_runs
from recombinator.study.render import render_text
from recombinator.study.result import read_result
from recombinator.study.samples import GRAPH, MODEL, make_samples, small_recipe
from recombinator.training.run import train
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights
from recombinator.weights.shipped import FOLDER

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
    """

    samples: tuple[str, ...]
    damage: mutate.Mutation
    read: Callable[[Path], Any]


@dataclass
class Outcome:
    """How the mutations ended.

    Attributes:
        counts: By kind of file, how often each of SENTENCE, FINE and FAULTS.
        faults: For each fault its kind, its number (`fuzz` with this number as `only` repeats it) and its traceback.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[tuple[str, int, str]] = field(default_factory=list)


def kinds(samples: Path) -> dict[str, Kind]:
    """Return the kinds of files, by name."""
    denoiser, network = (load_weights(samples / "weights" / f"{n}.safetensors") for n in ("denoiser", "image"))

    def read_network(path: Path) -> Any:
        engine = load_engine(path)
        crop = np.zeros((1, engine.about.channels, engine.about.size, engine.about.size), np.uint8)
        return [v.tolist() for v in vars(engine.run(crop)).values()]

    def read_run(path: Path) -> Any:
        collect_runs([path.parent])
        data = samples / "tables"
        summary = train(MODEL, data, path.parent, resume=True, recipe=small_recipe(), device="cpu")
        return [summary, read_network(path.parent)]

    def read_any_points(path: Path) -> Any:
        with contextlib.suppress(InputError):
            infer_keypoints(read_entries(path, "auto"), path)
        faces = read_points(path, FACE_5, lambda error: None)
        return [repair(denoiser, face.points).points.tolist() for face in faces[:2]]

    def read_any_boxes(path: Path) -> Any:
        faces = [face for boxes in read_boxes(path).values() for face in predictor.predict(blank, boxes, passes=1)]
        return [face.points.tolist() for face in faces]

    def read_result_file(path: Path) -> Any:
        text = "<!-- results: card-rcn-6-mtfl -->\n<!-- end -->"
        return len(render_text(text, {"rcn-6-mtfl": read_result(path)}, "README.md"))

    def read_list(path: Path) -> Any:
        return prepare_mtfl(path.parent, path.parent / "out", size=32)

    predictor = load(FOLDER / f"{GRAPH}.onnx")
    blank = np.full((99, 99), 99, np.uint8)

    def read_predictions(path: Path) -> Any:
        lines = Lines(path.parent, resume=True, overwrite=False, weights="w")
        kept = list(records(path))
        for write in FORMATS.values():
            write(path, path.parent / "out", "w", FACE_5)
        return [len(lines.done), kept]

    tables = tuple(f"tables/{s}.parquet" for s in ("test", "valid"))
    networks = tuple(f"weights/{n}" for n in ("image.safetensors", "image.safetensors"))
    texts, trees = mutate.damage_lines, mutate.damage_json
    states = ("run/last.safetensors", "run/best.safetensors")
    return {
        "weights": Kind(networks, mutate.damage_weights, read_network),
        "derived weights": Kind(("weights/pair.json", "weights/shift.json"), trees, read_network),
        "graph": Kind((f"graph/{GRAPH}.onnx",), mutate.damage_graph, read_network),
        "graph's tensors": Kind((f"graph/{GRAPH}.safetensors",), mutate.damage_bytes,
                                lambda p: read_network(p.with_suffix(".onnx"))),
        "table": Kind(tables, mutate.damage_table, lambda p: evaluate(network, load_table(p))[1]),
        "run's state": Kind(states, mutate.damage_weights, read_run),
        "run.json": Kind(("run/run.json", "run/summary.json"), trees, read_run),
        "metrics": Kind(("run/metrics.jsonl",), mutate.damage_json_lines, read_run),
        "result": Kind(("results/rcn-6-mtfl.json",), trees, read_result_file),
        "CSV points": Kind(("points/rows.csv", "points/wide.csv", "points/face.pts"), texts, read_any_points),
        "JSON points": Kind(("points/objects.json", "points/coco.json"), trees, read_any_points),
        "JSON lines": Kind(("points/lines.jsonl",), mutate.damage_json_lines, read_any_points),
        "tools' JSON": Kind(("points/labelme.json", "points/labelstudio.json", "points/via.json"), trees,
                            read_any_points),
        "tools' texts": Kind(("points/cvat.xml", "points/dlib.xml", "points/face.tps", "points/data.yaml"), texts,
                             read_any_points),
        "YOLO labels": Kind(("points/labels/0.txt",), texts,
                            lambda p: read_any_points(p.parent.parent / "data.yaml")),
        "predictions": Kind(("predictions/points.jsonl",), mutate.damage_json_lines, read_predictions),
        "plan": Kind(("predictions/plan.json",), trees, lambda p: Plan.read(p).size),
        "boxes": Kind(("points/boxes.csv",), texts, read_any_boxes),
        "list": Kind(("list/training.txt",), texts, read_list),
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


def _attempt(kind: Kind, samples: Path, sample: str, work: Path, rng: Random, seconds: float) -> tuple[str, str]:
    """Damage a copy of a sample and read it. Return how it ended, and the traceback of a fault."""
    shutil.copytree(samples / Path(sample).parts[0], work)
    path = work / Path(*Path(sample).parts[1:])
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
            ended, detail = _attempt(found[kind], samples, rng.choice(found[kind].samples), work, rng, seconds)
            outcome.counts[kind][ended] += 1
            if ended in FAULTS:
                outcome.faults.append((kind, i, detail))
                if keep:
                    shutil.copytree(work, keep / str(i), dirs_exist_ok=True)
            shutil.rmtree(work)
            progress(i + 1, number)
    return outcome
