"""Cross-validate `fit`: every object is predicted by a model that was fitted to the images of other folds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.table import SPLIT_SEED
from recombinator.fit.measure import Measured
from recombinator.fit.plan import Plan
from recombinator.fit.run import PathLike, hold_out, make_plan, measure_samples, train_and_save
from recombinator.fit.samples import Sample, read_samples
from recombinator.fit.schedule import Progress
from recombinator.keypoints import KeypointSet
from recombinator.utils.errors import InputError
from recombinator.utils.files import lock_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fold:
    """The objects of one fold, and what a model of the other folds predicts for them.

    Attributes:
        samples: The objects; those that were found, with a finder.
        measured: Predictions and errors, in the order of `samples`.
        row: The fold's row of the report: its number from 1, images, errors, chosen networks, seconds and plan.
    """

    samples: list[Sample]
    measured: Measured
    row: dict[str, Any]


def run_folds(
    samples: Sequence[Sample], keypoints: KeypointSet, out: Path, folds: int, *, minutes: float = 30.0, seed: int = 0,
    boxes: bool = False, settings: dict[str, Any] | None = None, only: Sequence[int] = (),
    on_plan: Callable[[Plan], None] = lambda plan: None, progress: Progress = lambda done, total: None,
) -> Iterator[Fold]:  # fmt: skip
    """Fit one model per fold to the images of the other folds, and predict the fold's objects.

    Args:
        samples: All objects.
        keypoints: Their keypoint set.
        out: Folder for the runs. `fit_folds` describes it and the other arguments.

    Yields:
        The folds, in order.

    Raises:
        InputError: There are fewer images than folds, or too few to train on.
    """
    files = sorted({s.file for s in samples})
    if not 2 <= folds <= len(files):
        raise InputError(f"folds={folds}: must be from 2 to the number of images, {len(files)}")
    order = np.random.RandomState(SPLIT_SEED).permutation(len(files))
    for fold in only or range(folds):
        inside = {files[i] for i in order[fold::folds]}
        rest, tested = [s for s in samples if s.file not in inside], [s for s in samples if s.file in inside]
        train, held_out = hold_out(rest)
        plan = make_plan(rest, keypoints, boxes, settings)
        folder, began = out / f"fold-{fold + 1}", time.perf_counter()
        if (folder / "plan.json").is_file():
            plan = Plan.read(folder / "plan.json")
        with lock_folder(folder):
            plan, weights = train_and_save(
                plan, train, held_out, keypoints, folder, minutes=minutes, seed=seed, resume=True, on_plan=on_plan,
                progress=progress,
            )  # fmt: skip
        found, seen = measure_samples(weights, tested, keypoints)
        logger.info(f"fold {fold + 1} of {folds}: {seen.sentence()}")
        yield Fold(found, seen, {
            "fold": fold + 1, "images": len(inside), **seen.summary(), "chosen": weights.training.get("chosen", {}),
            "seconds": time.perf_counter() - began, "plan": plan.to_dict(),
        })  # fmt: skip


def fit_folds(
    points: PathLike, out: PathLike, folds: int, *, images: PathLike | None = None, minutes: float = 30.0,
    allow_outside: bool = False, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """Cross-validate `fit`: every image is predicted by a model that was fitted to the images of other folds.

    Within each fold's training images, some are held out as in `fit`. Nothing is chosen on the fold itself.

    Args:
        points: See `fit`.
        out: Folder for the runs; a fold that is finished there is not run again.
        folds: Number of folds.
        images: See `fit`.
        minutes: Time for each fold.
        allow_outside: See `fit`.
        **options: `seed`, `boxes`, `settings`, `on_plan` and `progress` of `fit`; and `only`, the folds to run, from 0.

    Returns:
        A report: errors over the images of all folds, per keypoint and per fold.

    Raises:
        InputError: The points or images cannot be used, or there are too few.
    """
    samples, keypoints = read_samples(Path(points), Path(images) if images else None, allow_outside)
    parts = list(run_folds(samples, keypoints, Path(out), folds, minutes=minutes, **options))
    everything = Measured.joined([part.measured for part in parts])
    return {
        "points": Path(points).name, "images": len({s.file for s in samples}), "folds": folds,
        "folds_run": [part.row["fold"] for part in parts], "minutes_per_fold": minutes,
        "keypoints": list(keypoints.names), **everything.summary(),
        "per_keypoint": everything.per_keypoint(keypoints.names), "per_fold": [part.row for part in parts],
    }  # fmt: skip
