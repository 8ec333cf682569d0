"""Repair keypoints with a denoiser, which predicts each keypoint from the others."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombinator.data.crops import GRID, RULES
from recombinator.data.points import PointSet
from recombinator.keypoints import KeypointSet
from recombinator.models import Denoiser
from recombinator.models.decode import subpixel
from recombinator.predict.session import check_finite
from recombinator.transforms.samples import BLANK
from recombinator.transforms.shapes import apply_similarity, similarity
from recombinator.utils.errors import InputError
from recombinator.utils.files import plain_cell, write_json, write_text
from recombinator.weights.files import Weights


@dataclass(frozen=True)
class Repair:
    """Hold the repaired keypoints of one face.

    Args:
        points: (K, 2) repaired points x, y in the frame of the input.
        moved: (K,) distance from the given point, in units of the input; NaN for a missing point.
        implausible: (K,) natural logarithm of the probability of the best cell over that of the given cell: 0 or more,
            infinite for a missing point.
        kept: (K,) True where the given point was kept.
    """

    points: np.ndarray
    moved: np.ndarray
    implausible: np.ndarray
    kept: np.ndarray


def _fit_template(points: np.ndarray, template: np.ndarray, seed: int = 0) -> np.ndarray:
    """Fit the template to a face, ignoring outliers.

    Of the similarity transforms through 500 random pairs of points, the one that most points agree with is refined by
    least squares over these points (RANSAC).

    Args:
        points: (K, 2) points; they may be NaN or wrong.
        template: (K, 2) mean positions.
        seed: Seed of the random pairs.

    Returns:
        (K, 2) template in the frame of the points.
    """
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    rng = np.random.RandomState(seed)
    pairs = np.array([rng.choice(known, 2, replace=False) for _ in range(500)])
    weight = np.ones((len(pairs), 2))
    linear, shift = similarity(template[pairs], points[pairs], weight)
    fits = apply_similarity(template, linear, shift)
    size = np.sqrt(np.abs(np.linalg.det(linear)))  # of the template's unit, here
    gap = np.linalg.norm(fits[:, known] - points[known], axis=2) / np.maximum(size, 1e-9)[:, None]
    gap = np.where(np.isfinite(gap), gap, np.inf)
    cost = np.minimum(gap, 0.1).sum(axis=1)
    near = gap[cost.argmin()] < 0.1
    if near.sum() < 3:
        near[:] = True
    used = known[near]
    linear, shift = similarity(template[used], points[None, used], np.ones((1, len(used))))
    return apply_similarity(template, linear, shift)[0]


@torch.no_grad()
def repair(weights: Weights, points: np.ndarray, keep_below: float = 0.0) -> Repair:
    """Repair the keypoints of one face with a denoiser.

    Args:
        weights: Weights of a denoiser.
        points: (K, 2) x, y in any frame; NaN for a missing point.
        keep_below: Keep a point if its implausibility is below this value.

    Returns:
        The repaired points.

    Raises:
        InputError: If the weights are not a denoiser's, the shape does not fit, fewer than 3 points are given, or all
            points coincide.
    """
    net = weights.net
    if not isinstance(net, Denoiser):
        raise InputError(f"{weights}: expected the weights of a denoiser, such as denoiser-lite-300w")
    points = np.asarray(points, np.float64)
    if points.shape != (net.keypoints, 2):
        raise InputError(f"expected points of shape ({net.keypoints}, 2), got {points.shape}")
    given = np.isfinite(points).all(axis=1)
    if given.sum() < 3:
        raise InputError(f"expected 3 or more known points, got {given.sum()}")
    if np.ptp(points[given], axis=0).max() <= 0:
        raise InputError("all points coincide")
    # crop rules count whole pixels, so the face is brought to the scale of a photograph first; the fitted template
    # gives its size, since a wrong point must not
    typical = _fit_template(points, np.array(weights.template))
    unit = GRID / max(float(np.ptp(typical, axis=0).max()), 1e-9)
    typical, rule = typical * unit, RULES[weights.crop_rule]
    x, y, side = rule.box(typical + rule.origin, rule.stage2, 1 << 30, 1 << 30)
    scale = net.size / side
    inside = np.clip(np.floor(np.nan_to_num((points * unit - [x, y]) * scale)), 0, net.size - 1).astype(np.int64)
    scores = net(torch.from_numpy(np.where(given[:, None], inside, BLANK))[None])
    check_finite([scores.numpy()], str(weights))
    at = torch.from_numpy(inside)
    gap = scores[0].amax(dim=(1, 2)) - scores[0, torch.arange(net.keypoints), at[:, 1], at[:, 0]]
    implausible = np.where(given, gap.double().numpy(), np.inf)
    best = (subpixel(scores).points[0].double().numpy() / scale + [x, y]) / unit
    kept = implausible < keep_below
    best = np.where(kept[:, None], points, best)
    distance = np.where(given, np.linalg.norm(best - np.nan_to_num(points), axis=1), np.nan)
    return Repair(best, distance, implausible, kept)


def repair_rows(face: PointSet, repaired: Repair, keypoints: KeypointSet) -> list[dict[str, Any]]:
    """Return the repaired points as one row per keypoint.

    Args:
        face: The face as it was read.
        repaired: Its repair.
        keypoints: The keypoint set.

    Returns:
        Rows with `file`, `face`, `keypoint`, `x`, `y`, `moved`, `implausible` and `kept`. `moved` and `implausible`
        are None for a missing point.
    """

    def number(value: float, digits: int) -> float | None:
        return round(float(value), digits) if np.isfinite(value) else None

    return [
        {
            "file": face.file, "face": face.face, "keypoint": name, "x": number(x, 3), "y": number(y, 3),
            "moved": number(moved, 3), "implausible": number(implausible, 2), "kept": bool(kept),
        }
        for name, (x, y), moved, implausible, kept in zip(
            keypoints.names, repaired.points, repaired.moved, repaired.implausible, repaired.kept, strict=True
        )
    ]  # fmt: skip


def write_repairs(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows of `repair_rows` for all faces.

    Args:
        path: A .csv file, or a .json file, which gets a list of objects.
        rows: The rows; at least one.
    """
    if path.suffix.lower() == ".json":
        write_json(path, rows)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: plain_cell(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)
    write_text(path, text.getvalue())
