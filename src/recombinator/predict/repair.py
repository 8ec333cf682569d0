"""Repair keypoints with a denoiser: where each should be, given where the others are."""

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
from recombinator.transforms.samples import BLANK
from recombinator.transforms.shapes import apply_similarity, similarity
from recombinator.utils.errors import InputError
from recombinator.utils.files import write_json, write_text
from recombinator.weights.files import Weights


@dataclass(frozen=True)
class Repair:
    """points: (K, 2) in the input's frame; moved: (K,) how far each went, in the input's unit; implausible: (K,) how
    many times less probable the given cell was than the best one, as a natural logarithm (0 and up; infinite for a
    point that was not given); kept: (K,) True where a point stayed as it was."""

    points: np.ndarray
    moved: np.ndarray
    implausible: np.ndarray
    kept: np.ndarray


def _frame(points: np.ndarray, template: np.ndarray, seed: int = 0) -> np.ndarray:
    """(K, 2) points, some of them NaN or wrong -> where the template's points lie by the similarity that most points
    agree with: of those through 500 random pairs, then least squares over the points near it."""
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
    """(K, 2) points in any frame (NaN: not given) -> their repair. Points whose implausibility is below `keep_below`
    stay as they are. Raises InputError for another shape, fewer than 3 points, or points that all coincide."""
    net = weights.net
    if not isinstance(net, Denoiser):
        raise InputError("these weights are not a denoiser's")
    points = np.asarray(points, np.float64)
    if points.shape != (net.keypoints, 2):
        raise InputError(f"points of shape {points.shape}, this denoiser wants ({net.keypoints}, 2)")
    given = np.isfinite(points).all(axis=1)
    if given.sum() < 3:
        raise InputError(f"has {given.sum()} known points; at least 3 are needed")
    if np.ptp(points[given], axis=0).max() <= 0:
        raise InputError("all its points coincide")
    # the crop rules count whole pixels: done on a photograph's scale, whatever the unit of the input, which the face
    # gives, not a point that went astray
    typical = _frame(points, np.array(weights.template))
    unit = GRID / max(float(np.ptp(typical, axis=0).max()), 1e-9)
    typical, rule = typical * unit, RULES[weights.crop_rule]
    x, y, side = rule.box(typical + rule.origin, rule.stage2, 1 << 30, 1 << 30)
    scale = net.size / side
    inside = np.clip(np.floor(np.nan_to_num((points * unit - [x, y]) * scale)), 0, net.size - 1).astype(np.int64)
    scores = net(torch.from_numpy(np.where(given[:, None], inside, BLANK))[None])
    at = torch.from_numpy(inside)
    gap = scores[0].amax(dim=(1, 2)) - scores[0, torch.arange(net.keypoints), at[:, 1], at[:, 0]]
    implausible = np.where(given, gap.double().numpy(), np.inf)
    best = (subpixel(scores).points[0].double().numpy() / scale + [x, y]) / unit
    kept = implausible < keep_below
    best = np.where(kept[:, None], points, best)
    distance = np.where(given, np.linalg.norm(best - np.nan_to_num(points), axis=1), np.nan)
    return Repair(best, distance, implausible, kept)


def repair_rows(face: PointSet, mended: Repair, keypoints: KeypointSet) -> list[dict[str, Any]]:
    """A row a keypoint: where it should lie, how far it moved (nothing for a point that was not given), how implausible
    it was, whether it was kept."""

    def number(value: float, digits: int) -> float | None:
        return round(float(value), digits) if np.isfinite(value) else None

    return [
        {
            "file": face.file, "face": face.face, "keypoint": name, "x": number(x, 3), "y": number(y, 3),
            "moved": number(moved, 3), "implausible": number(implausible, 2), "kept": bool(kept),
        }
        for name, (x, y), moved, implausible, kept in zip(
            keypoints.names, mended.points, mended.moved, mended.implausible, mended.kept, strict=True
        )
    ]  # fmt: skip


def write_repairs(path: Path, rows: list[dict[str, Any]]) -> None:
    """`repair_rows` of all faces as .csv, or as a list of objects in .json."""
    if path.suffix.lower() == ".json":
        write_json(path, rows)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
