"""A network on a table: points, confidences and errors in both protocols."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from recombinator import metrics
from recombinator.data.table import FaceTable
from recombinator.models import ScoreMapNet
from recombinator.models.decode import maximum, subpixel
from recombinator.transforms.augment import Augment, draw_samples

PAPER_GRID = 80


@dataclass
class Evaluation:
    """Per-sample results. All points in network input pixels (0..size); errors are fractions of the scale."""

    size: int
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
def evaluate_table(
    net: ScoreMapNet, table: FaceTable, augment: Augment | None = None, batch: int = 64
) -> Evaluation:
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
        net.size, truth, table.mask, torch.cat(predicted).double().numpy(), torch.cat(highest).double().numpy(),
        torch.cat(confidence).numpy(), table.info.keypoints.scale(truth),
    )  # fmt: skip
