"""What a denoiser is good for: corrupted points found again, beside simple rivals, and anybody's points repaired."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombinator.data.table import FaceTable, load_table
from recombinator.evaluation.metrics import bootstrap_ci, image_errors, point_errors
from recombinator.models import Denoiser
from recombinator.models.decode import maximum, subpixel
from recombinator.transforms.augment import Augment
from recombinator.transforms.samples import corrupted_table
from recombinator.transforms.shapes import ShapeModel
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights

CORRUPT = 35  # of 68 (section 4)
MODES = (10, 15, 20, 30, 40)  # sizes of the linear rival; validation chooses


@torch.no_grad()
def errors_of_corrupted(
    net: Denoiser, table: FaceTable, count: int, augment: Augment | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) mean errors over the corrupted points of each face, shares of the normalizer: the highest cell against the
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
