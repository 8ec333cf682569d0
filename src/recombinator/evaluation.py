"""A network on a table: points, confidences and errors in both protocols."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombinator import metrics
from recombinator.data.table import FaceTable, load_table
from recombinator.errors import InputError
from recombinator.files import write_atomically
from recombinator.keypoints import KeypointSet
from recombinator.models import ScoreMapNet
from recombinator.models.decode import maximum, subpixel
from recombinator.transforms.augment import Augment, draw_samples
from recombinator.weights import load_weights

PAPER_GRID = 80


@dataclass
class Evaluation:
    """Per-sample results. All points in network input pixels (0..size); errors are fractions of the scale."""

    size: int
    files: list[str]
    true: np.ndarray  # (N, K, 2)
    mask: np.ndarray  # (N, K)
    predicted: np.ndarray  # (N, K, 2), sub-pixel
    highest: np.ndarray  # (N, K, 2), centre of the highest cell
    confidence: np.ndarray  # (N, K)
    scale: np.ndarray  # (N,), normalising distance in the same pixels

    @cached_property
    def errors(self) -> np.ndarray:
        """(N, K), "continuous" protocol: the sub-pixel prediction against the true position."""
        return metrics.point_errors(self.predicted, self.true, self.scale)

    @cached_property
    def errors_paper(self) -> np.ndarray:
        """(N, K), "paper" protocol: highest cell against true cell, both whole numbers on the 80x80 grid,
        divided by the continuous distance (SPEC 4)."""
        k = PAPER_GRID / self.size
        cells = np.clip(np.floor(self.true * k), 0, PAPER_GRID - 1)
        return metrics.point_errors(np.floor(self.highest * k), cells, self.scale * k)

    def image_errors(self, protocol: str) -> np.ndarray:
        errors = self.errors_paper if protocol == "paper" else self.errors
        return metrics.image_errors(errors, self.mask)

    def summary(self) -> dict[str, Any]:
        """Errors in percent, rates and areas in [0, 1]."""
        per_image = self.image_errors("continuous")
        used = per_image[np.isfinite(per_image)]
        paper = self.image_errors("paper")
        low, high = metrics.bootstrap_ci(used)
        paper_low, paper_high = metrics.bootstrap_ci(paper[np.isfinite(paper)])
        kept = np.maximum(self.mask.sum(axis=0), 1)
        return {
            "images": len(used),
            "nme_paper": 100 * float(np.nanmean(paper)),
            "nme_paper_ci95": [100 * paper_low, 100 * paper_high],
            "nme": 100 * float(used.mean()),
            "nme_ci95": [100 * low, 100 * high],
            "per_keypoint": (100 * (self.errors * self.mask).sum(axis=0) / kept).tolist(),
            "failure_rate_10": metrics.failure_rate(used),
            "auc_10": metrics.auc(used),
        }


PROTOCOLS = {
    "paper": "highest cell against true cell on the 80x80 grid, divided by the eye distance, mean over keypoints "
    "and images; crop from the ground-truth keypoints, as the authors do",
    "continuous": "sub-pixel prediction against the true position, same normaliser, same crop",
}


def fixed_samples(
    table: FaceTable, size: int, augment: Augment | None, device: torch.device, batch: int = 64, seed: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (inputs, points) in table order; `augment` draws the same jitter at every call."""
    generator = torch.Generator().manual_seed(seed)
    mirrored = table.info.keypoints.mirrored
    for i in range(0, len(table), batch):
        part = slice(i, i + batch)
        yield draw_samples(
            torch.from_numpy(table.images[part]).to(device), torch.from_numpy(table.points[part]).to(device),
            torch.from_numpy(table.boxes[part]).to(device), size, augment, mirrored, generator,
        )  # fmt: skip


@torch.no_grad()
def evaluate_table(net: ScoreMapNet, table: FaceTable, augment: Augment | None = None, batch: int = 64) -> Evaluation:
    """Runs `net` over the table; `augment` jitters every sample once, from seed 0 (the authors' validation)."""
    device = next(net.parameters()).device
    net.eval()
    true, predicted, highest, confidence = [], [], [], []
    for inputs, points in fixed_samples(table, net.size, augment, device, batch):
        scores = net(inputs)
        p, c = subpixel(scores)
        true.append(points.cpu())
        predicted.append(p.cpu())
        highest.append(maximum(scores).cpu())
        confidence.append(c.cpu())
    truth = torch.cat(true).double().numpy()
    return Evaluation(
        net.size, table.files, truth, table.mask, torch.cat(predicted).double().numpy(),
        torch.cat(highest).double().numpy(), torch.cat(confidence).numpy(), table.info.keypoints.scale(truth),
    )  # fmt: skip


def evaluate(
    weights: str | os.PathLike[str], data: str | os.PathLike[str], *, limit: int | None = None
) -> tuple[Evaluation, dict[str, Any]]:
    """`weights` (shipped name, file or run folder) on the table `data`: per-sample results, and a report with
    errors in percent, both protocols by name, and how the network was trained.

    Raises InputError if either cannot be read or their keypoints differ.
    """
    loaded = load_weights(weights)
    table = load_table(data, loaded.net.channels, limit)
    if table.info.keypoints.names != loaded.keypoints.names:
        raise InputError(
            f"{data}: has {len(table.info.keypoints)} keypoints ({table.info.keypoints.name}), but {weights} "
            f"finds {len(loaded.keypoints)} ({loaded.keypoints.name})"
        )
    result = evaluate_table(loaded.net, table)
    report = {
        "weights": str(weights),
        "keypoints": list(loaded.keypoints.names),
        "model": loaded.net.config,
        "data": {
            "dataset": table.info.dataset, "split": table.info.split, "images": len(table),
            "fingerprint": table.fingerprint,
        },
        **result.summary(),
        "protocols": PROTOCOLS,
        "normaliser": normaliser_text(table.info.keypoints),
        "crop": f"ground-truth keypoints, rule {table.info.crop_rule!r}",
        "decoder": {"nme_paper": "highest cell", "nme": "probability-weighted mean of 7x7 cells"},
        "grid": loaded.net.size,
        "training": loaded.training,
    }  # fmt: skip
    return result, report


def normaliser_text(keypoints: KeypointSet) -> str:
    """The normalising distance in words."""
    a, b = keypoints.normaliser
    if not a or not b:
        return "geometric mean of the sides of the points' bounding box"

    def named(group: tuple[int, ...]) -> str:
        return " + ".join(keypoints.names[i] for i in group)

    return f"distance between {named(a)} and {named(b)}"


def write_per_image(path: Path, result: Evaluation) -> None:
    """One Parquet row an image: file, errors in both protocols (shares of the normaliser), per keypoint too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "file": result.files,
            "error_paper": result.image_errors("paper"),
            "error": result.image_errors("continuous"),
            "errors": result.errors.tolist(),
            "confidence": result.confidence.tolist(),
        }
    )
    write_atomically(path, lambda p: pq.write_table(table, p))


def network_inputs(data: str | os.PathLike[str], size: int, channels: int = 1, limit: int | None = None) -> np.ndarray:
    """(N, C, size, size) float32: what a network of that input size sees of a table, without jitter."""
    table = load_table(data, channels, limit)
    batches = fixed_samples(table, size, None, torch.device("cpu"))
    return torch.cat([inputs for inputs, _ in batches]).numpy()
