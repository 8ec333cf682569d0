"""Evaluate denoisers (section 4) by how well they predict corrupted keypoints, next to simple baselines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from recombinator.data.table import FaceTable
from recombinator.evaluation.metrics import bootstrap_ci, image_errors, point_errors
from recombinator.evaluation.sources import TableLike, as_table
from recombinator.models import Denoiser
from recombinator.models.decode import maximum, subpixel
from recombinator.predict.session import check_finite
from recombinator.transforms.augment import Augment
from recombinator.transforms.samples import corrupted_table
from recombinator.transforms.shapes import ShapeModel
from recombinator.utils.errors import InputError
from recombinator.weights.files import WeightsLike, load_weights

CORRUPT = 35  # of 68 keypoints (section 4)
MODES = (10, 15, 20, 30, 40)  # sizes of the linear baseline; validation chooses

Errors = tuple[np.ndarray, np.ndarray]  # (N,) on the paper's grid, (N,) continuous; shares of the normalizing distance


def _face_errors(
    table: FaceTable, true: tuple[np.ndarray, np.ndarray], predicted: tuple[np.ndarray, np.ndarray], changed: np.ndarray
) -> Errors:
    """Average the errors over the corrupted points of each face.

    Args:
        table: The table, for its mask and its normalizing distance.
        true: (N, K, 2) true cells, and true points in network pixels.
        predicted: (N, K, 2) predicted cells, and predicted points.
        changed: (N, K) mask of the corrupted points.
    """
    scale, counted = table.info.keypoints.scale(true[1]), changed & table.mask
    grid, continuous = (image_errors(point_errors(p, t, scale), counted) for p, t in zip(predicted, true, strict=True))
    return grid, continuous


@torch.no_grad()
def errors_of_corrupted(net: Denoiser, table: FaceTable, count: int, augment: Augment | None = None) -> Errors:
    """Measure a denoiser on the corrupted points of each face; the corruption is the same at every call.

    Args:
        net: The denoiser; it is switched to evaluation mode.
        table: A table with the denoiser's keypoints.
        count: Number of points of each face that are moved to uniform random cells.
        augment: Jitter of the points; None for none.

    Returns:
        (N,) mean errors as shares of the normalizing distance: the highest cell against the true one (the paper's
        grid), and the sub-pixel prediction against the true position.
    """
    net.eval()
    points, cells, given, changed = corrupted_table(table, net.size, count, augment)
    device = next(net.parameters()).device
    highest, refined = [], []
    for part in torch.from_numpy(given).split(16):
        scores = net(part.to(device))
        check_finite([scores.cpu().numpy()], net.config.get("name", type(net).__name__))
        highest.append(maximum(scores).cpu())
        refined.append(subpixel(scores).points.cpu())
    predicted = torch.cat(highest).double().numpy() - 0.5, torch.cat(refined).double().numpy()
    return _face_errors(table, (cells, points), predicted, changed)


def errors_of_baselines(
    table: FaceTable, train: FaceTable, valid: FaceTable, size: int, count: int
) -> dict[str, Errors]:
    """Measure two simple models in the same way; unlike a denoiser they know which points are not corrupted.

    The mean shape is fitted to those points by a similarity. The linear (PCA) model gives its most probable shape.

    Args:
        table: The table to measure on.
        train: The table that the models are fitted to.
        valid: The table that chooses the linear model's number of modes.
        size: Side of the grid in cells.
        count: Number of corrupted points of each face.

    Returns:
        By the baseline's name, what `errors_of_corrupted` returns.
    """

    def errors(model: ShapeModel, of: FaceTable) -> Errors:
        points, cells, given, changed = corrupted_table(of, size, count)
        predicted = model.complete(given + 0.5, ~changed & of.mask)
        on_grid = np.clip(np.floor(predicted), 0, size - 1)
        return _face_errors(of, (cells, points), (on_grid, predicted), changed)

    shapes = corrupted_table(train, size, 0)[0]
    models = {modes: ShapeModel.fit(shapes, train.mask, modes) for modes in (0, *MODES)}
    best = min(MODES, key=lambda m: float(np.nanmean(errors(models[m], valid)[0])))
    return {"mean shape": errors(models[0], table), f"linear model, {best} modes": errors(models[best], table)}


def evaluate_denoiser(
    weights: WeightsLike, data: TableLike, *, count: int = CORRUPT, limit: int | None = None,
    train: TableLike | None = None, valid: TableLike | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluate a denoiser on the corrupted points of each face of a table.

    Args:
        weights: A shipped name, a weights file, a run folder, or loaded weights.
        data: A table that `prepare` wrote, or a loaded one.
        count: Number of points of each face that are corrupted.
        limit: Use only the first rows of the file.
        train: The table that the baselines are fitted to; by default train.parquet in the folder of `data`.
        valid: The table that chooses the linear baseline; by default valid.parquet in the folder of `data`.

    Returns:
        A report with errors in percent, also of the baselines where `train` and `valid` exist.

    Raises:
        InputError: The weights are not a denoiser's, do not fit the table, or too few points stay uncorrupted.
    """
    loaded = load_weights(weights)
    if loaded.net.task != "denoising":
        raise InputError(f"{weights}: expected the weights of a denoiser")
    net, name = cast(Denoiser, loaded.net), str(weights)
    table = as_table(data, loaded.keypoints, None, name, limit=limit)
    if not 0 < count < len(loaded.keypoints) - 1:
        raise InputError(f"{count} corrupted of {len(loaded.keypoints)} points leave fewer than 2 uncorrupted ones")
    results = {"denoiser": errors_of_corrupted(net, table, count)}
    if isinstance(data, str | os.PathLike):
        folder = Path(data).parent
        train, valid = (
            given or (path if path.is_file() else None)
            for given, path in ((train, folder / "train.parquet"), (valid, folder / "valid.parquet"))
        )
    if train is not None and valid is not None:
        fitted, chosen = (as_table(source, loaded.keypoints, None, name) for source in (train, valid))
        results |= errors_of_baselines(table, fitted, chosen, net.size, count)
    rows = {}
    for label, (grid, continuous) in results.items():
        rows[label] = {
            "nme_paper": 100 * float(np.nanmean(grid)),
            "nme_paper_ci95": [100 * v for v in bootstrap_ci(grid[np.isfinite(grid)])],
            "nme": 100 * float(np.nanmean(continuous)),
        }
    return {
        "weights": name, "model": loaded.net.config, "corrupted": count, "rows": rows,
        "data": table.describe(),
        "protocol": f"{count} random points of each face moved to uniform cells (seed 0), error of those only, divided "
        "by the eye distance; nme_paper: highest cell against true cell; the baselines know which points are not "
        "corrupted",
        "training": loaded.training,
    }  # fmt: skip
