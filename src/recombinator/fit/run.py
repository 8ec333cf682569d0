"""`fit`: from a file of points and its images to one model file and a report."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.table import SPLIT_SEED
from recombinator.fit.finder import measure_found
from recombinator.fit.measure import Measured, measure
from recombinator.fit.networks import train_plan
from recombinator.fit.plan import Plan, changed, decide, examine
from recombinator.fit.report import write_reports
from recombinator.fit.samples import Sample, read_samples, whole_table
from recombinator.fit.schedule import Progress
from recombinator.keypoints import KeypointSet
from recombinator.utils.errors import InputError
from recombinator.utils.files import lock_folder
from recombinator.weights.files import Weights, save_weights

logger = logging.getLogger(__name__)

FEWEST = 10  # images
HELD_OUT = 0.1  # share of the images that are not trained on
HELD_OUT_RANGE = (5, 100)  # images
PathLike = str | os.PathLike[str]


def hold_out(samples: Sequence[Sample], seed: int = SPLIT_SEED) -> tuple[list[Sample], list[Sample]]:
    """Split objects into those to train on and those to measure on, by image.

    Raises:
        InputError: There are too few images.
    """
    files = sorted({s.file for s in samples})
    if len(files) < FEWEST:
        raise InputError(f"expected {FEWEST} or more images with points, got {len(files)}; annotate some more")
    count = int(np.clip(round(HELD_OUT * len(files)), *HELD_OUT_RANGE))
    chosen = {files[i] for i in np.random.RandomState(seed).permutation(len(files))[:count]}
    return [s for s in samples if s.file not in chosen], [s for s in samples if s.file in chosen]


def make_plan(
    samples: Sequence[Sample], keypoints: KeypointSet, boxes: bool, settings: dict[str, Any] | None
) -> Plan:  # fmt: skip
    """Examine the data and decide; see `fit`."""
    settings = settings or {}
    where = str(settings.get("where", ""))
    return changed(decide(examine(samples, keypoints), keypoints, boxes=boxes, where=where), **settings)


def fit(
    points: PathLike, out: PathLike, *, images: PathLike | None = None, test: PathLike | None = None,
    minutes: float = 30.0, seed: int = 0, boxes: bool = False, resume: bool = False, plan_only: bool = False,
    settings: dict[str, Any] | None = None, unlabeled: PathLike | None = None, allow_outside: bool = False,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Fit a localizer to annotated images.

    Writes OUT/model.safetensors, which `load` takes, OUT/report.html and OUT/report.json.

    Args:
        points: The points, in any format that `prepare points` reads.
        out: Folder of the run, which is created.
        images: Folder of the images; without it, the folder of `points`.
        test: Points of further images, to measure on.
        minutes: Time for everything; trainings have as many epochs as fit it.
        seed: Seed of the initial weights, the order of the images and the augmentation.
        boxes: Boxes are given at prediction; without it, the model finds one object in the whole image, or any number
            with a finder.
        resume: Continue the run in `out`, with its plan.
        plan_only: Decide, and train nothing.
        settings: Decisions to replace: fields of `recombinator.fit.plan.Plan`.
        unlabeled: Folder of images and videos without points, for models of whole images. Its annotated images are left
            out. A resumed run needs the same folder.
        allow_outside: Images outside the folder of the points file and `images` are allowed.
        on_plan: Called with the complete plan before the training.
        progress: Called after each step with (percent done, 100).

    Returns:
        The report that is also in OUT/report.json; with `plan_only` the plan.

    Raises:
        InputError: The points or images cannot be used, or OUT holds a run already.
    """
    points, out = Path(points), Path(out)
    samples, keypoints = read_samples(points, Path(images) if images else None, allow_outside)
    train, held_out = hold_out(samples)
    began = time.perf_counter()
    stored = out / "plan.json"
    if resume and not stored.is_file():
        raise InputError(f"{out}: nothing to resume (no plan.json); leave --resume out")
    if stored.is_file() and not resume and not plan_only:
        raise InputError(f"{out}: already holds a run; continue it with --resume or choose another --out")
    plan = Plan.read(stored) if resume else make_plan(samples, keypoints, boxes, settings)
    if unlabeled and plan.where != "image":
        raise InputError(
            "--unlabeled: is for models that see the whole image; without points there is no box to cut from an image"
        )
    further = Path(unlabeled) if unlabeled else None
    tested: list[Sample] = []
    if test:
        tested, named = read_samples(Path(test), Path(images) if images else None, allow_outside)
        if named.names != keypoints.names:
            raise InputError(f"{test}: has other keypoints than {points}")
    if plan_only:
        plan, _ = train_plan(
            plan, train, held_out, keypoints, out, minutes=minutes, stop_at_plan=True, unlabeled=further,
            on_plan=on_plan,
        )  # fmt: skip
        return plan.to_dict()
    with lock_folder(out):
        plan, weights = train_and_save(
            plan, train, held_out, keypoints, out, minutes=minutes, seed=seed, resume=resume, unlabeled=further,
            on_plan=on_plan, progress=progress,
        )  # fmt: skip
        parts: dict[str, tuple[list[Sample], Measured]] = {}
        for name, part in (("held_out", held_out), ("training", train), ("test", tested)):
            if part:
                parts[name] = measure_samples(weights, part, keypoints, cut=name == "training")
        seconds = time.perf_counter() - began
        return write_reports(out, str(points), keypoints, plan, parts, seconds, weights.training.get("chosen", {}))


def train_and_save(
    plan: Plan, train: Sequence[Sample], held_out: Sequence[Sample], keypoints: KeypointSet, out: Path, **options: Any
) -> tuple[Plan, Weights]:
    """Train a model by `train_plan`, and write it to OUT/model.safetensors."""
    plan, weights = train_plan(plan, train, held_out, keypoints, out, **options)
    assert weights is not None  # only a stop at the plan returns none
    save_weights(out / "model.safetensors", weights)
    return plan, weights


def measure_samples(
    weights: Weights, samples: Sequence[Sample], keypoints: KeypointSet, cut: bool = False
) -> tuple[list[Sample], Measured]:  # fmt: skip
    """Measure a fitted model on objects.

    Args:
        weights: The model. One with a finder predicts whole images.
        samples: The objects.
        keypoints: Their keypoint set.
        cut: Cut crops at the annotated points, whether the model has a finder or not.

    Returns:
        The objects that were found, all of them without a finder, and their results.
    """
    if weights.finder is not None and not cut:
        return measure_found(weights, samples, keypoints)
    net = weights.net
    table = whole_table(samples, keypoints, weights.crop_rule, net.size, net.channels, "test")
    return list(samples), measure(net, table, np.array([s.mm_per_pixel for s in samples]))
