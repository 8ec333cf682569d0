"""Rank probable label errors in anybody's annotations by the distance to a trained model's predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.table import load_table
from recombinator.evaluation.sources import name_of
from recombinator.fit.measure import Measured, measure
from recombinator.fit.samples import read_samples, whole_table
from recombinator.keypoints import KeypointSet, check_same_keypoints
from recombinator.models.base import check_takes_images
from recombinator.weights.files import WeightsLike, load_weights

NEAR = 0.25  # of a label's error: a prediction of another keypoint this near to the label explains the error


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


def check_labels(model: WeightsLike, points: Path, images: Path | None = None) -> dict[str, Any]:
    """Rank all annotated points by how probably they are label errors.

    The rank is `Measured.suspicion`. A model that was trained on the same labels has partly learned their errors.

    Args:
        model: a shipped name, a weights file, a run folder, or loaded weights.
        points: a points file or folder of any format, or a table (.parquet) that `prepare` wrote.
        images: folder of the images of a points file; None: that of `points`.

    Returns:
        A report: `model`, `points`, `objects` and `labels`, one row per annotated point, the most suspicious first:
        rank, where, file, keypoint, x, y, predicted_x, predicted_y, error (pixels of the image), ratio to the
        keypoint's median error, confidence, score and reason.

    Raises:
        InputError: the points or the model cannot be read, or have different keypoints.
    """
    weights = load_weights(model)
    check_takes_images(weights.net, name_of(model))
    weights.net.check_locates(name_of(model))
    if points.suffix.lower() == ".parquet":
        table = load_table(points, weights.net.channels)
        where = [f"{points}: row {i + 1}" for i in range(len(table))]
        check_same_keypoints(weights.keypoints, table.info.keypoints, f"{points}, for {name_of(model)}")
    else:
        samples, keypoints = read_samples(points, images)
        check_same_keypoints(weights.keypoints, keypoints, f"{points}, for {name_of(model)}")
        table = whole_table(
            samples, weights.keypoints, weights.crop_rule, weights.net.size, weights.net.channels, "test"
        )
        where = [sample.where for sample in samples]
    seen = measure(weights.net, table)
    ratio, score = seen.suspicion()
    errors, rows = seen.errors, []
    order = sorted(zip(*np.nonzero(seen.known), strict=True), key=lambda at: (-score[at], -ratio[at]))
    for rank, (i, k) in enumerate(order, 1):
        (x, y), (px, py) = seen.true[i, k], seen.predicted[i, k]
        rows.append({
            "rank": rank, "where": where[i], "file": seen.files[i], "keypoint": weights.keypoints.names[k],
            "x": float(x), "y": float(y), "predicted_x": float(px), "predicted_y": float(py),
            "error": float(errors[i, k]), "ratio": float(ratio[i, k]), "confidence": float(seen.confidence[i, k]),
            "score": float(score[i, k]), "reason": _reason(seen, weights.keypoints, int(i), int(k)),
        })  # fmt: skip
    return {"model": name_of(model), "points": str(points), "objects": len(table), "labels": rows}
