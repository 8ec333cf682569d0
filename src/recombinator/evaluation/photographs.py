"""Evaluate a network on whole photographs, face detection included: the error that a user gets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import read_image
from recombinator.evaluation import metrics
from recombinator.evaluation.sources import TableLike, as_table, identity, name_of
from recombinator.predict.detect import Detector
from recombinator.predict.predictor import load
from recombinator.utils.errors import InputError

MATCH = 0.5  # a prediction belongs to a face if its mean distance, in normalizing distances, is below this


def match(
    faces: Sequence[np.ndarray], true: Sequence[np.ndarray], scales: Sequence[float]
) -> tuple[list[int | None], int]:
    """Find the prediction of each annotated face.

    Args:
        faces: (K, 2) predictions in one photograph, all points finite.
        true: (K, 2) annotations, NaN for points that are not annotated.
        scales: Normalizing distance of each annotation.

    Returns:
        For each true face the index of its prediction, None if it is not found; and the number of other predictions.
    """
    left, result = list(range(len(faces))), []
    for points, scale in zip(true, scales, strict=True):
        distances = [float(np.nanmean(np.linalg.norm(faces[i] - points, axis=1))) / scale for i in left]
        best = int(np.argmin(distances)) if distances else -1
        result.append(left.pop(best) if best >= 0 and distances[best] < MATCH else None)
    return result, len(left)


def evaluate_photographs(
    weights: str | os.PathLike[str], data: TableLike, photographs: str | os.PathLike[str], *,
    detector: Detector | None = None, passes: int | None = None, min_confidence: float | None = None,
    limit: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Predict on the photographs that a table's crops were cut from, and match the predictions with the table's faces.

    Args:
        weights: A shipped name, a weights file, a run folder, or an exported graph.
        data: A table that `prepare` wrote, or a loaded one.
        photographs: The folder that the table's file names are relative to.
        detector: Finds the faces; by default as `load` does.
        passes: Number of passes; after the first, the crop is placed by the predicted points. None: as in `load`.
        min_confidence: Mean confidence below which a detection is dropped; by default the weights' own.
        limit: Use only the first faces of the file.
        progress: Called with (photographs done, photographs in all).

    Returns:
        A report: numbers of faces found and missed, other detections (`others`: false ones, or faces that the table
        does not list), the error of the found faces in percent of the normalizing distance (continuous, in the
        photograph), and the error of the same faces when the crop is placed by the true points.

    Raises:
        InputError: Weights, table or folder cannot be used.
    """
    predictor = load(weights, detector, passes=passes)
    table = as_table(data, predictor.keypoints, None, str(weights), limit=limit)
    root = Path(photographs)
    if not (root / table.files[0]).is_file():
        raise InputError(
            f"{root}: has no {table.files[0]}, the first file of {name_of(data)}; give the folder it was prepared from"
        )
    by_file: dict[str, list[int]] = {}
    for i, file in enumerate(table.files):
        by_file.setdefault(file, []).append(i)
    errors_found, with_true_crop, confidences, confidences_other = [], [], [], []
    for done, (file, rows) in enumerate(by_file.items(), 1):
        image = read_image(root / file)
        faces = predictor.predict(image, min_confidence=min_confidence)
        for i in rows:
            to_file, mask = table.to_file[i], table.mask[i]
            true = table.points[i] @ to_file[:, :2].T + to_file[:, 2]
            scale = predictor.keypoints.scale(true[None])[0]
            distances = [float(np.linalg.norm(f.points - true, axis=1)[mask].mean() / scale) for f in faces]
            best = int(np.argmin(distances)) if distances else -1
            if best >= 0 and distances[best] < MATCH:
                (repeated,) = predictor.follow(image, [true])
                assert repeated is not None  # its crop is in the table
                errors_found.append(distances[best])
                with_true_crop.append(float(np.linalg.norm(repeated.points - true, axis=1)[mask].mean() / scale))
                confidences.append(float(faces.pop(best).confidence.mean()))
        confidences_other += [float(f.confidence.mean()) for f in faces]
        progress(done, len(by_file))
    errors = np.array(errors_found)
    return {
        "weights": str(weights), "passes": predictor.passes,
        "min_confidence": predictor.min_confidence if min_confidence is None else min_confidence,
        "data": identity(table),
        "photographs": len(by_file), "faces": len(table), "found": len(errors), "missed": len(table) - len(errors),
        "others": len(confidences_other), "nme": 100 * float(errors.mean()) if len(errors) else None,
        "nme_ci95": [100 * v for v in metrics.bootstrap_ci(errors)] if len(errors) else None,
        "nme_true_crop": 100 * float(np.mean(with_true_crop)) if len(errors) else None,
        "confidence_found": np.quantile(confidences, [0.001, 0.01, 0.1, 0.5]).tolist() if confidences else None,
        "confidence_others": np.quantile(confidences_other, [0.5, 0.9, 0.99]).tolist() if confidences_other else None,
        "protocol": f"whole photograph in, detection included; found: mean distance of the points below {MATCH} of the "
        "normalizer; errors of the found faces, continuous, in the photograph; nme_true_crop: the same faces, with the "
        "crop from the true points",
    }  # fmt: skip
