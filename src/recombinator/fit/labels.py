"""Rank the points of an annotation file by how probably they are label errors.

The predictions are those of a given model, or of models that are fitted to the other images of the same annotations.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.table import load_table
from recombinator.evaluation.sources import name_of
from recombinator.fit.folds import run_folds
from recombinator.fit.measure import Measured, measure
from recombinator.fit.run import FEWEST
from recombinator.fit.samples import read_samples, whole_table
from recombinator.fit.schedule import Progress
from recombinator.keypoints import KeypointSet, check_same_keypoints
from recombinator.models.base import check_takes_images
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, WeightsLike, load_weights

FOLDS = 5
NEAR = 0.25  # share of a label's error: a prediction of another keypoint closer to the label explains the error


def _reason(seen: Measured, keypoints: KeypointSet, i: int, k: int) -> str:
    """Return what a wrong label probably is: swapped with its mirror point, at another keypoint, or only far away."""
    gaps = np.linalg.norm(seen.predicted[i] - seen.true[i, k], axis=1)
    other = int(np.argmin(gaps))
    if other == k or gaps[other] > NEAR * gaps[k]:
        return "far from the prediction"
    back = np.linalg.norm(seen.predicted[i, k] - seen.true[i, other])
    if keypoints.mirrored[k] == other and seen.known[i, other] and back <= NEAR * gaps[k]:
        return f"swapped with {keypoints.names[other]}"
    return f"at the place of {keypoints.names[other]}"


def _predicted(
    weights: Weights, name: str, points: Path, images: Path | None
) -> tuple[Measured, list[str], KeypointSet]:  # fmt: skip
    """Return a model's predictions for a points file or table, the place of each object in it, and the keypoints."""
    check_takes_images(weights.net, name)
    weights.net.check_locates(name)
    if points.suffix.lower() == ".parquet":
        table = load_table(points, weights.net.channels)
        where = [f"{points}: row {i + 1}" for i in range(len(table))]
        check_same_keypoints(weights.keypoints, table.info.keypoints, f"{points}, for {name}")
    else:
        samples, keypoints = read_samples(points, images, allow_outside=True)
        check_same_keypoints(weights.keypoints, keypoints, f"{points}, for {name}")
        table = whole_table(
            samples, weights.keypoints, weights.crop_rule, weights.net.size, weights.net.channels, "test"
        )
        where = [sample.where for sample in samples]
    return measure(weights.net, table), where, weights.keypoints


def _predicted_out_of_fold(
    points: Path, images: Path | None, folds: int, minutes: float, **options: Any
) -> tuple[Measured, list[str], KeypointSet]:
    """Return what `_predicted` returns, with models that are fitted to the images of other folds."""
    if points.suffix.lower() == ".parquet":
        raise InputError(f"{points}: a table needs --model; without one, give the points file that it was made from")
    samples, keypoints = read_samples(points, images, allow_outside=True)
    files = {s.file for s in samples}
    if len(files) - math.ceil(len(files) / folds) < FEWEST:
        raise InputError(
            f"{points}: expected more images for {folds} folds, got {len(files)}: each fold's model needs {FEWEST} "
            "others; give --model, or annotate some more"
        )
    boxes = len(files) < len(samples)  # several objects in an image
    with tempfile.TemporaryDirectory(prefix="check-labels-") as out:
        parts = list(run_folds(samples, keypoints, Path(out), folds, minutes=minutes / folds, boxes=boxes, **options))
    seen = Measured.joined([part.measured for part in parts])
    return seen, [s.where for part in parts for s in part.samples], keypoints


def check_labels(
    model: WeightsLike | None, points: Path, images: Path | None = None, *, folds: int = FOLDS,
    minutes: float = 30.0, seed: int = 0, settings: dict[str, Any] | None = None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Rank all annotated points by how probably they are label errors.

    The rank is `Measured.suspicion`. A model that was trained on the same labels has partly learned their errors.
    Without a model, one is fitted per fold, to the images of the other folds; it predicts the images that it has not
    seen.

    Args:
        model: A shipped name, a weights file, a run folder, or loaded weights; None: models are fitted.
        points: A points file or folder of any format; with a model also a table (.parquet) that `prepare` wrote.
        images: Folder of the images of a points file; None: that of `points`.
        folds: Without a model: number of folds.
        minutes: Without a model: time for all fits together.
        seed: Without a model: seed of the initial weights, the order of the images and the augmentation.
        settings: Without a model: decisions to replace, as in `fit`.
        progress: Without a model: called after each step with (percent done, 100), for each fold.

    Returns:
        A report: `model` (None without one, and then `folds` and `minutes`), `points`, `objects` and `labels`, one row
        per annotated point, the most suspicious first: rank, where, file, keypoint, x, y, predicted_x, predicted_y,
        error (pixels of the image), ratio to the keypoint's median error, confidence, score and reason.

    Raises:
        InputError: The points or the model cannot be read, or have different keypoints; without a model, there are too
            few images.
    """
    if model is None:
        seen, where, keypoints = _predicted_out_of_fold(
            points, images, folds, minutes, seed=seed, settings=settings, progress=progress
        )
        source: dict[str, Any] = {"model": None, "folds": folds, "minutes": minutes}
    else:
        seen, where, keypoints = _predicted(load_weights(model), name_of(model), points, images)
        source = {"model": name_of(model)}
    ratio, score = seen.suspicion()
    errors, rows = seen.errors, []
    order = sorted(zip(*np.nonzero(seen.known), strict=True), key=lambda at: (-score[at], -ratio[at]))
    for rank, (i, k) in enumerate(order, 1):
        (x, y), (px, py) = seen.true[i, k], seen.predicted[i, k]
        rows.append({
            "rank": rank, "where": where[i], "file": seen.files[i], "keypoint": keypoints.names[k],
            "x": float(x), "y": float(y), "predicted_x": float(px), "predicted_y": float(py),
            "error": float(errors[i, k]), "ratio": float(ratio[i, k]), "confidence": float(seen.confidence[i, k]),
            "score": float(score[i, k]), "reason": _reason(seen, keypoints, int(i), int(k)),
        })  # fmt: skip
    return {**source, "points": str(points), "objects": len(seen.files), "labels": rows}
