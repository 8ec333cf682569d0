"""Calibrate a network's probabilities with one temperature, fitted on validation images, and report how well it holds.

Half of the images are occluded, so that low confidence can be related to occluded keypoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recombinator.data.table import FaceTable, load_table
from recombinator.evaluation import metrics
from recombinator.evaluation.relation import relation
from recombinator.evaluation.sources import TableLike, as_table, identity
from recombinator.keypoints import RADII, SURE
from recombinator.models.base import KeypointNet, check_takes_images
from recombinator.predict.session import check_finite
from recombinator.transforms.augment import OCCLUSION, Augment, occluded
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, WeightsLike, load_weights

JITTER = Augment(occlude=(0, 0))  # the paper's jitter (footnote 7) without occlusion
TEMPERATURES = tuple(np.geomspace(0.25, 8, 41).tolist())
FALSE_ALARMS = 0.05  # share of visible points that may be flagged as occluded
FALSE_REJECTIONS = 0.001  # share of the faces without occlusion that may be taken for false detections


@torch.no_grad()
def collect(
    net: KeypointNet, table: FaceTable, occlude: bool, temperatures: Sequence[float], augment: Augment = JITTER,
    seed: int = 0,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Run a network on jittered images and collect what calibration needs of every known point inside the crop.

    The images, the jitter and the occlusion are the same at every call.

    Args:
        net: A network with score maps.
        table: Images with the network's channels and keypoints.
        occlude: Occlude each image by one black rectangle.
        temperatures: T temperatures at which probabilities are computed.
        augment: Ranges of the jitter.
        seed: Seed of the jitter.

    Returns:
        Arrays over the P points. `gap` (P,): the larger of |dx| and |dy| between the true point and the center of the
        highest cell, in network pixels. `keypoint`, `image` (P,): indices. `occluded` (P,): whether the rectangle is on
        the point. `within` (P, T, R): probabilities of the squares RADII for each temperature.
    """
    net.eval()
    device = next(net.parameters()).device
    generator = torch.Generator().manual_seed(1)
    parts: dict[str, list[Tensor]] = {k: [] for k in ("gap", "keypoint", "image", "occluded", "within")}
    known = torch.from_numpy(table.mask)
    start = 0
    for pixels, points in fixed_samples(table, net.size, augment, device, 64, seed):
        images = torch.arange(start, start + len(points))
        start += len(points)
        under_rectangle = torch.zeros(points.shape[:2], dtype=torch.bool)
        if occlude:
            visible = occluded(torch.ones_like(pixels[:, :1]), OCCLUSION.occlude, generator)
            pixels = pixels * visible
            cell = points.floor().long().clamp(0, net.size - 1)
            under_rectangle = visible[torch.arange(len(points))[:, None], 0, cell[..., 1], cell[..., 0]] == 0
        scores = net(pixels)
        inside = ((points >= 0) & (points < net.size)).all(dim=2).cpu() & known[images]
        decoded = net.decode(scores)
        check_finite([decoded.points.cpu().numpy()], net.config.get("name", type(net).__name__))
        batch = {
            "gap": (decoded.highest - points).abs().amax(dim=2), "occluded": under_rectangle,
            "within": net.within(scores, temperatures),
            "keypoint": torch.arange(net.keypoints).expand(len(points), -1),
            "image": images[:, None].expand(-1, net.keypoints),
        }  # fmt: skip
        for key, value in batch.items():
            parts[key].append(value.cpu()[inside])
    return {k: torch.cat(v).numpy() for k, v in parts.items()}


def collect_both(net: KeypointNet, table: FaceTable) -> dict[str, np.ndarray]:
    """Concatenate `collect` at TEMPERATURES without and with occlusion; image indices of the second half follow on."""
    plain, occluded_part = (collect(net, table, occlude, TEMPERATURES) for occlude in (False, True))
    occluded_part["image"] += len(table)
    return {k: np.concatenate([plain[k], occluded_part[k]]) for k in plain}


def is_within(points: dict[str, np.ndarray]) -> np.ndarray:
    """Return (P, R) bools: whether the true point is in each of the squares RADII around the highest cell."""
    return points["gap"][:, None] <= np.array(RADII) + 0.5


def _quantile(values: np.ndarray, share: float) -> float:
    """Return a quantile; 0, a threshold that nothing is below, where there are no values."""
    return float(np.quantile(values, share)) if len(values) else 0.0


def fit(
    net: KeypointNet, table: FaceTable, augment: Augment = JITTER, occlude: bool = True, draws: int = 1
) -> dict[str, Any]:
    """Fit a calibration.

    Args:
        net: A network with score maps.
        table: Validation images with the network's channels and keypoints.
        augment: Ranges of the jitter.
        occlude: Use every image a second time, occluded.
        draws: Without `occlude`: jittered views of every image.

    Returns:
        `temperature`: the one with the lowest cross-entropy of the squares' probabilities, half of the images occluded.
        `covered_below`: (K,) confidences; a share of FALSE_ALARMS of the visible points is below.
        `least`: mean confidence; a share of FALSE_REJECTIONS of the faces without occlusion is below.
        `data`, `dataset`, `split`: what it was fitted on.

    Raises:
        InputError: No point of the table is inside its crop.
    """
    if occlude:
        points = collect_both(net, table)
    else:
        views = [collect(net, table, False, TEMPERATURES, augment, seed) for seed in range(draws)]
        points = {k: np.concatenate([v[k] for v in views]) for k in views[0]}
    if not len(points["gap"]):
        raise InputError(f"{table.info.dataset}: no point of its {table.info.split} table is inside its crop")
    truth = is_within(points)[:, None]
    p = np.clip(points["within"].astype(np.float64), 1e-6, 1 - 1e-6)
    loss = -np.where(truth, np.log(p), np.log(1 - p)).mean(axis=(0, 2))
    best = int(loss.argmin())
    confidence = points["within"][:, best, SURE]
    visible = ~points["occluded"]
    below = [_quantile(confidence[visible & (points["keypoint"] == k)], FALSE_ALARMS) for k in range(net.keypoints)]
    plain = points["image"] < len(table)
    sums, counts = np.bincount(points["image"][plain], confidence[plain]), np.bincount(points["image"][plain])
    least = _quantile(sums[counts > 0] / counts[counts > 0], FALSE_REJECTIONS)
    return {
        "temperature": round(float(TEMPERATURES[best]), 4), "least": round(least, 4),
        "covered_below": [round(v, 6) for v in below],
        "data": table.fingerprint, "dataset": table.info.dataset, "split": table.info.split,
    }  # fmt: skip


def _load(weights: WeightsLike, data: TableLike, limit: int | None = None) -> tuple[Weights, FaceTable]:
    """Load weights and table; raise InputError for a network that has nothing to calibrate, or another table."""
    loaded = load_weights(weights)
    check_takes_images(loaded.net, str(weights))
    if loaded.net.task == "regression":
        raise InputError(f"{weights}: the network has no score maps, so there is nothing to calibrate")
    return loaded, as_table(data, loaded.keypoints, loaded.net.channels, str(weights), limit=limit)


def calibrate(weights: WeightsLike, data: TableLike) -> Weights:
    """Calibrate a network on a validation table.

    Sub-pixel points move by a fraction of a pixel, since their weighted mean changes; highest cells do not. A finder
    gets the relation of its squares to those of the table's crop rule instead.

    Args:
        weights: A shipped name, a weights file, a run folder, or loaded weights, which are left as they are.
        data: A validation table: a file that `prepare` wrote, or a loaded one.

    Returns:
        A copy of the weights with the calibration.

    Raises:
        InputError: The network has no score maps, or does not fit the table.
    """
    loaded = load_weights(weights)
    if loaded.net.task == "finding":
        table = data if isinstance(data, FaceTable) else load_table(data)
        found = {table.info.crop_rule: relation(loaded.crop_rule, loaded.keypoints, table)}
        return replace(loaded, calibration={"relation": {**loaded.calibration.get("relation", {}), **found}})
    loaded, table = _load(loaded, data)
    return loaded.calibrated(fit(loaded.net, table))


def report(weights: WeightsLike, data: TableLike, *, limit: int | None = None) -> dict[str, Any]:
    """Report how well a network's probabilities hold on a table.

    Args:
        weights: A shipped name, a weights file, a run folder, or loaded weights.
        data: A table that `prepare` wrote, or a loaded one.
        limit: Use only the first images of the file.

    Returns:
        For each square of RADII the reliability curve and the expected calibration error, with the stored temperature
        and with none, without (`plain`) and with occlusion (`covered`); how well low confidence detects occluded
        points (`covered_auroc`, mean over keypoints); and the shares of visible and of occluded points that are
        flagged.

    Raises:
        InputError: The network has no score maps, or does not fit the table.
    """
    loaded, table = _load(weights, data, limit)
    net = loaded.net
    result: dict[str, Any] = {
        "weights": str(weights), "model": net.config, "calibration": loaded.calibration, "images": len(table),
        "data": identity(table),
        "protocol": "jitter of the paper, one draw; a probability is correct where the true point is in the square of "
        "2r + 1 network pixels around the highest cell; covered: each image occluded by one black rectangle of 20 to "
        "50 pixels",
    }  # fmt: skip
    points: dict[str, np.ndarray] = {}
    for name, occlude in (("plain", False), ("covered", True)):
        points = collect(net, table, occlude, (net.temperature, 1.0))
        truth, rows = is_within(points), []
        for r, radius in enumerate(RADII):
            curve, error = metrics.reliability(points["within"][:, 0, r], truth[:, r])
            _, before = metrics.reliability(points["within"][:, 1, r], truth[:, r])
            shares = {"right": float(truth[:, r].mean()), "error": error, "error_uncalibrated": before}
            rows.append({"radius": radius, **shares, "curve": curve})
        result[name] = rows
    confidence, is_occluded, keypoint = points["within"][:, 0, SURE], points["occluded"], points["keypoint"]
    areas = [metrics.auroc(-confidence[keypoint == k], is_occluded[keypoint == k]) for k in range(net.keypoints)]
    finite = [a for a in areas if np.isfinite(a)]
    result["covered_auroc"] = float(np.mean(finite)) if finite else None
    if loaded.calibration:
        flagged = confidence < np.array(loaded.calibration["covered_below"])[keypoint]
        for name, part in (("flagged_visible", flagged[~is_occluded]), ("flagged_covered", flagged[is_occluded])):
            result[name] = float(part.mean()) if len(part) else None
    return result
