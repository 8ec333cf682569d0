"""Probabilities that mean what they say: one temperature a network, fitted on validation images, and how well it
holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recombinator.data.table import FaceTable, load_table
from recombinator.evaluation import metrics
from recombinator.keypoints import RADII, SURE
from recombinator.models.base import KeypointNet, check_takes_images
from recombinator.models.decode import decode
from recombinator.transforms.augment import COVERED, Augment, occluded
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, load_weights

MOVED = Augment(occlude=(0, 0))  # the paper's jitter, nothing covered
TEMPERATURES = tuple(np.geomspace(0.25, 8, 41).tolist())
FALSE_ALARMS = 0.05  # share of visible points that may be called covered
LOST = 0.001  # share of uncovered faces that may be taken for false detections


@torch.no_grad()
def answers(net: KeypointNet, table: FaceTable, cover: bool, temperatures: Sequence[float]) -> dict[str, np.ndarray]:
    """Of every known point inside the crop, on jittered images, `cover`ed by one black rectangle each or not.

    `gap` (P,): the larger of |dx| and |dy| between truth and highest cell in network pixels; `keypoint`, `image` (P,);
    `hidden` (P,): whether the rectangle lies on it; `within` (P, T, R): probabilities of the squares RADII for
    each of the `temperatures`. The same draw at every call.
    """
    device = next(net.parameters()).device
    generator = torch.Generator().manual_seed(1)
    parts: dict[str, list[Tensor]] = {k: [] for k in ("gap", "keypoint", "image", "hidden", "within")}
    known = torch.from_numpy(table.mask)
    for i, (pixels, points) in enumerate(fixed_samples(table, net.size, MOVED, device)):
        hidden = torch.zeros(points.shape[:2], dtype=torch.bool)
        if cover:
            there = occluded(torch.ones_like(pixels[:, :1]), COVERED.occlude, generator)
            pixels = pixels * there
            cell = points.floor().long().clamp(0, net.size - 1)
            hidden = there[torch.arange(len(points))[:, None], 0, cell[..., 1], cell[..., 0]] == 0
        scores = net(pixels)
        inside = ((points >= 0) & (points < net.size)).all(dim=2).cpu() & known[64 * i : 64 * i + len(points)]
        told = [decode(scores, t, net.tile) for t in temperatures]
        within = torch.stack([d.within for d in told], dim=2)
        found = {
            "gap": (told[0].highest - points).abs().amax(dim=2), "hidden": hidden, "within": within,
            "keypoint": torch.arange(net.keypoints).expand(len(points), -1),
            "image": torch.arange(64 * i, 64 * i + len(points))[:, None].expand(-1, net.keypoints),
        }  # fmt: skip
        for key, value in found.items():
            parts[key].append(value.cpu()[inside])
    return {k: torch.cat(v).numpy() for k, v in parts.items()}


def both(net: KeypointNet, table: FaceTable) -> dict[str, np.ndarray]:
    """`answers` without and with a rectangle, one after the other."""
    plain, covered = (answers(net, table, cover, TEMPERATURES) for cover in (False, True))
    covered["image"] += len(table)
    return {k: np.concatenate([plain[k], covered[k]]) for k in plain}


def is_within(found: dict[str, np.ndarray]) -> np.ndarray:
    """(P, R) whether the truth lies in each of the squares RADII around the highest cell."""
    return found["gap"][:, None] <= np.array(RADII) + 0.5


def _quantile(values: np.ndarray, share: float) -> float:
    """0 where there is no value: a threshold that nothing falls under."""
    return float(np.quantile(values, share)) if len(values) else 0.0


def fit(net: KeypointNet, table: FaceTable) -> dict[str, Any]:
    """The temperature with the least cross-entropy of the five squares' probabilities, half of the images covered; for
    each keypoint the confidence under which a visible point falls FALSE_ALARMS of the time; and `least`, under which
    the mean confidence of a face falls LOST of the time."""
    found = both(net, table)
    if not len(found["gap"]):
        raise InputError(f"{table.info.dataset}: no point of its {table.info.split} table lies in its crop")
    truth = is_within(found)[:, None]
    p = np.clip(found["within"].astype(np.float64), 1e-6, 1 - 1e-6)
    loss = -np.where(truth, np.log(p), np.log(1 - p)).mean(axis=(0, 2))
    best = int(loss.argmin())
    confidence = found["within"][:, best, SURE]
    visible = ~found["hidden"]
    below = [_quantile(confidence[visible & (found["keypoint"] == k)], FALSE_ALARMS) for k in range(net.keypoints)]
    plain = found["image"] < len(table)
    sums, counts = np.bincount(found["image"][plain], confidence[plain]), np.bincount(found["image"][plain])
    least = _quantile(sums[counts > 0] / counts[counts > 0], LOST)
    return {
        "temperature": round(float(TEMPERATURES[best]), 4), "least": round(least, 4),
        "covered_below": [round(v, 6) for v in below],
        "data": table.fingerprint, "dataset": table.info.dataset, "split": table.info.split,
    }  # fmt: skip


def _image_net(weights: Weights, name: str) -> KeypointNet:
    check_takes_images(weights.net, name)
    if weights.net.task == "regression":
        raise InputError(f"{name}: has no score maps, so there is nothing to calibrate")
    return weights.net


def _table(weights: Weights, data: str | os.PathLike[str], limit: int | None) -> FaceTable:
    table = load_table(data, _image_net(weights, str(data)).channels, limit)
    if table.info.keypoints.names != weights.keypoints.names:
        raise InputError(f"{data}: its keypoints ({table.info.keypoints.name}) are not those of the weights")
    return table


def calibrate(weights: str | os.PathLike[str], data: str | os.PathLike[str]) -> Weights:
    """The weights (name, file or run folder) with a calibration fitted on the validation table `data`. Points move by a
    fraction of a pixel, since their weighted mean changes; highest cells do not. Raises InputError where they do not
    fit."""
    loaded = load_weights(weights)
    net = _image_net(loaded, str(weights))
    return loaded.calibrated(fit(net, _table(loaded, data, None)))


def report(
    weights: str | os.PathLike[str], data: str | os.PathLike[str], *, limit: int | None = None
) -> dict[str, Any]:
    """How well the probabilities hold on a table: for each square of RADII the reliability curve and expected
    calibration error with the stored temperature and with none, plain and covered; how well low confidence finds
    covered points (area under the ROC, mean over keypoints), and the share of visible and of covered points that are
    flagged."""
    loaded = load_weights(weights)
    net, table = _image_net(loaded, str(weights)), _table(loaded, data, limit)
    told: dict[str, Any] = {
        "weights": str(weights), "model": net.config, "calibration": loaded.calibration, "images": len(table),
        "data": {"dataset": table.info.dataset, "split": table.info.split, "fingerprint": table.fingerprint},
        "protocol": "jitter of the paper, one draw; a probability is right where the truth lies in the square of "
        "2r + 1 network pixels around the highest cell; covered: one black rectangle of 20 to 50 pixels on each image",
    }  # fmt: skip
    for name, cover in (("plain", False), ("covered", True)):
        found = answers(net, table, cover, (net.temperature, 1.0))
        truth, rows = is_within(found), []
        for r, radius in enumerate(RADII):
            curve, error = metrics.reliability(found["within"][:, 0, r], truth[:, r])
            _, before = metrics.reliability(found["within"][:, 1, r], truth[:, r])
            shares = {"right": float(truth[:, r].mean()), "error": error, "error_uncalibrated": before}
            rows.append({"radius": radius, **shares, "curve": curve})
        told[name] = rows
    confidence, hidden, keypoint = found["within"][:, 0, SURE], found["hidden"], found["keypoint"]
    areas = [metrics.auroc(-confidence[keypoint == k], hidden[keypoint == k]) for k in range(net.keypoints)]
    known = [a for a in areas if np.isfinite(a)]
    told["covered_auroc"] = float(np.mean(known)) if known else None
    if loaded.calibration:
        flagged = confidence < np.array(loaded.calibration["covered_below"])[keypoint]
        for name, part in (("flagged_visible", flagged[~hidden]), ("flagged_covered", flagged[hidden])):
            told[name] = float(part.mean()) if len(part) else None
    return told
