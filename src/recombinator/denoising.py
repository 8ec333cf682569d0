"""What a denoiser is good for: corrupted points found again, beside simple rivals, and anybody's points repaired."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from recombinator.data.crops import GRID, RULES
from recombinator.data.table import FaceTable, load_table
from recombinator.errors import InputError
from recombinator.metrics import bootstrap_ci, image_errors, point_errors
from recombinator.models import Denoiser
from recombinator.models.decode import maximum, subpixel
from recombinator.models.denoiser import BLANK
from recombinator.shapes import ShapeModel, moved, similarity
from recombinator.transforms.augment import Augment, draw_points
from recombinator.weights import Weights, load_weights

CORRUPT = 35  # of 68 (section 4)
MODES = (10, 15, 20, 30, 40)  # sizes of the linear rival; validation chooses


def corrupted(cells: Tensor, count: int, size: int, blank: bool, generator: Generator) -> tuple[Tensor, Tensor]:
    """`count` random points of each set moved to uniform cells, or blanked: (B, K, 2) cells and the (B, K) mask of
    what was changed (section 4; SPEC 5)."""
    b, k, _ = cells.shape
    rank = torch.rand(b, k, generator=generator).argsort(dim=1).argsort(dim=1)
    changed = (rank < count).to(cells.device)
    anywhere = torch.randint(0, size, (b, k, 2), generator=generator).to(cells.device)
    return torch.where(changed[..., None], torch.full_like(cells, BLANK) if blank else anywhere, cells), changed


def corrupted_table(
    table: FaceTable, size: int, count: int, augment: Augment | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same draw at every call: true points (N, K, 2) in network pixels, their cells, the cells given, and the
    (N, K) mask of corrupted points."""
    generator = Generator().manual_seed(0)
    points, _ = draw_points(
        torch.from_numpy(table.points), torch.from_numpy(table.boxes), size, augment, table.info.keypoints.mirrored,
        generator,
    )  # fmt: skip
    cells = points.floor().clamp(0, size - 1).long()
    known = torch.from_numpy(table.mask)[..., None]
    given, changed = corrupted(torch.where(known, cells, BLANK), count, size, False, generator)
    return points.double().numpy(), cells.numpy(), given.numpy(), changed.numpy()


@torch.no_grad()
def errors_of_corrupted(
    net: Denoiser, table: FaceTable, count: int, augment: Augment | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) mean errors over the corrupted points of each face, shares of the normaliser: the highest cell against the
    true one (the paper's grid), and the sub-pixel answer against the true position."""
    net.eval()
    points, cells, given, changed = corrupted_table(table, net.size, count, augment)
    device = next(net.parameters()).device
    highest, between = [], []
    for part in torch.from_numpy(given).split(16):
        scores = net(part.to(device))
        highest.append(maximum(scores).cpu())
        between.append(subpixel(scores).points.cpu())
    scale, counted = table.info.keypoints.scale(points), changed & table.mask
    grid = point_errors(torch.cat(highest).double().numpy() - 0.5, cells, scale)
    continuous = point_errors(torch.cat(between).double().numpy(), points, scale)
    return image_errors(grid, counted), image_errors(continuous, counted)


def errors_of_rivals(table: FaceTable, train: FaceTable, valid: FaceTable, size: int, count: int) -> dict[str, Any]:
    """The same for two simple models, which are told which points are clean: the mean shape fitted to those, and the
    most probable shape of a linear (PCA) model, whose number of modes `valid` chooses."""

    def errors(model: ShapeModel, of: FaceTable) -> tuple[np.ndarray, np.ndarray]:
        points, cells, given, changed = corrupted_table(of, size, count)
        found = model.complete(given + 0.5, ~changed & of.mask)
        scale, counted = of.info.keypoints.scale(points), changed & of.mask
        on_grid = np.clip(np.floor(found), 0, size - 1)
        return (
            image_errors(point_errors(on_grid, cells, scale), counted),
            image_errors(point_errors(found, points, scale), counted),
        )

    shapes = corrupted_table(train, size, 0)[0]
    models = {modes: ShapeModel.fit(shapes, train.mask, modes) for modes in (0, *MODES)}
    best = min(MODES, key=lambda m: float(np.nanmean(errors(models[m], valid)[0])))
    return {"mean shape": errors(models[0], table), f"linear model, {best} modes": errors(models[best], table)}


def evaluate_denoiser(
    weights: str | os.PathLike[str], data: str | os.PathLike[str], *, count: int = CORRUPT, limit: int | None = None
) -> dict[str, Any]:
    """A report: errors in percent of the `count` corrupted points of each face of the table, and of the rivals where
    train.parquet and valid.parquet lie beside it. Raises InputError if the weights are not a denoiser's."""
    loaded = load_weights(weights)
    if not isinstance(loaded.net, Denoiser):
        raise InputError(f"{weights}: not a denoiser")
    table = load_table(data, limit=limit)
    if table.info.keypoints.names != loaded.keypoints.names:
        raise InputError(f"{data}: its keypoints ({table.info.keypoints.name}) are not those of {weights}")
    if not 0 < count < len(table.info.keypoints) - 1:
        raise InputError(f"{count} corrupted of {len(table.info.keypoints)} points leave fewer than 2 clean ones")
    results = {"denoiser": errors_of_corrupted(loaded.net, table, count)}
    beside = [Path(data).parent / f"{split}.parquet" for split in ("train", "valid")]
    if all(p.is_file() for p in beside):
        results |= errors_of_rivals(table, load_table(beside[0]), load_table(beside[1]), loaded.net.size, count)
    rows = {}
    for name, (grid, continuous) in results.items():
        rows[name] = {
            "nme_paper": 100 * float(np.nanmean(grid)),
            "nme_paper_ci95": [100 * v for v in bootstrap_ci(grid[np.isfinite(grid)])],
            "nme": 100 * float(np.nanmean(continuous)),
        }
    return {
        "weights": str(weights), "model": loaded.net.config, "corrupted": count, "rows": rows,
        "data": {
            "dataset": table.info.dataset, "split": table.info.split, "images": len(table),
            "fingerprint": table.fingerprint,
        },
        "protocol": f"{count} random points of each face moved to uniform cells (seed 0), error of those only, divided "
        "by the eye distance; nme_paper: highest cell against true cell; the rivals are told which points are clean",
        "training": loaded.training,
    }  # fmt: skip


# ---- anybody's points --------------------------------------------------------------------------------------------


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
    fits = moved(template, linear, shift)
    size = np.sqrt(np.abs(np.linalg.det(linear)))  # of the template's unit, here
    gap = np.linalg.norm(fits[:, known] - points[known], axis=2) / np.maximum(size, 1e-9)[:, None]
    gap = np.where(np.isfinite(gap), gap, np.inf)
    cost = np.minimum(gap, 0.1).sum(axis=1)
    near = gap[cost.argmin()] < 0.1
    if near.sum() < 3:
        near[:] = True
    used = known[near]
    linear, shift = similarity(template[used], points[None, used], np.ones((1, len(used))))
    return moved(template, linear, shift)[0]


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
