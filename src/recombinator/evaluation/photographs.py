"""Whole photographs, detection included: the figure that a user will see."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import read_image
from recombinator.data.table import load_table
from recombinator.evaluation import metrics
from recombinator.predict.detect import Detector
from recombinator.predict.predictor import load
from recombinator.utils.errors import InputError

SAME = 0.5  # a prediction whose points are on average nearer than this to a face's, in its normalizer, is of that face


def evaluate_photographs(
    weights: str | os.PathLike[str], data: str | os.PathLike[str], photographs: str | os.PathLike[str], *,
    detector: Detector | None = None, passes: int = 2, min_confidence: float | None = None, limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Predicts on the photographs that a table's crops were cut from and looks for each of its faces among the answers.

    photographs: the folder that the table's file names start from. Returns a report: faces found and missed, further
    detections (faces that the table does not list, or false ones), errors of the found faces in percent
    of the normalizer (continuous, in the photograph), and those of the very same faces when the crop comes from the
    true points. Raises InputError where weights, table or folder cannot be used.
    """
    table, predictor = load_table(data, limit=limit), load(weights, detector)
    names = predictor.keypoints.names
    if table.info.keypoints.names != names:
        raise InputError(f"{data}: its keypoints ({table.info.keypoints.name}) are not those of {weights}")
    root = Path(photographs)
    if not (root / table.files[0]).is_file():
        raise InputError(f"{root}: has no {table.files[0]}, {data}'s first file; give the folder it was prepared from")
    by_file: dict[str, list[int]] = {}
    for i, file in enumerate(table.files):
        by_file.setdefault(file, []).append(i)
    found, with_true_crop, sure, others = [], [], [], []
    for done, (file, rows) in enumerate(by_file.items(), 1):
        image = read_image(root / file)
        faces = predictor.predict(image, passes=passes, min_confidence=min_confidence)
        for i in rows:
            to_file, mask = table.to_file[i], table.mask[i]
            true = table.points[i] @ to_file[:, :2].T + to_file[:, 2]
            scale = predictor.keypoints.scale(true[None])[0]
            gaps = [float(np.linalg.norm(f.points - true, axis=1)[mask].mean() / scale) for f in faces]
            best = int(np.argmin(gaps)) if gaps else -1
            if best >= 0 and gaps[best] < SAME:
                (again,) = predictor.follow(image, [true])
                assert again is not None  # its crop is in the table
                found.append(gaps[best])
                with_true_crop.append(float(np.linalg.norm(again.points - true, axis=1)[mask].mean() / scale))
                sure.append(float(faces.pop(best).confidence.mean()))
        others += [float(f.confidence.mean()) for f in faces]
        progress(done, len(by_file))
    errors = np.array(found)
    return {
        "weights": str(weights), "passes": passes,
        "min_confidence": predictor.min_confidence if min_confidence is None else min_confidence,
        "data": {"dataset": table.info.dataset, "split": table.info.split, "fingerprint": table.fingerprint},
        "photographs": len(by_file), "faces": len(table), "found": len(errors), "missed": len(table) - len(errors),
        "others": len(others), "nme": 100 * float(errors.mean()) if len(errors) else None,
        "nme_ci95": [100 * v for v in metrics.bootstrap_ci(errors)] if len(errors) else None,
        "nme_true_crop": 100 * float(np.mean(with_true_crop)) if len(errors) else None,
        "confidence_found": np.quantile(sure, [0.001, 0.01, 0.1, 0.5]).tolist() if sure else None,
        "confidence_others": np.quantile(others, [0.5, 0.9, 0.99]).tolist() if others else None,
        "protocol": f"whole photograph in, detection included; found: mean distance of the points below {SAME} of the "
        "normalizer; errors of the found faces, continuous, in the photograph; nme_true_crop: the same faces, with the "
        "crop from the true points",
    }  # fmt: skip
