"""The base class of tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from recombinator.data.stream import StreamedImages
from recombinator.data.table import FaceTable
from recombinator.models.base import KeypointNet
from recombinator.training.loss import target_cells
from recombinator.training.recipe import Recipe


class OnDisk:
    """Crops on disk, indexed like a tensor on the device."""

    def __init__(self, images: StreamedImages, device: torch.device) -> None:
        self.images, self.device = images, device

    def __getitem__(self, index: Tensor) -> Tensor:
        return torch.from_numpy(self.images[index.cpu().numpy()]).to(self.device)


class Task:
    """Training data on the device, and what all tasks share.

    Args:
        net: Network to train.
        table: Training table.
        valid: Validation table.
        recipe: Settings of the training.
        device: Device of the network.
        teacher: Trained network that the task learns from, if any; each task says what it learns.

    Attributes:
        epoch: Epochs since the start of the training, with the part of the current one; the trainer sets it.
        bfloat16: Whether the network runs in bfloat16 during training.
        crop_rule: Name of the crop rule that the weights belong to.
        template: (K, 2) mean points relative to its square, from 0 to 1.
    """

    crop_rule: str
    template: np.ndarray
    epoch = 0.0
    bfloat16 = False

    def __init__(
        self, net: KeypointNet, table: FaceTable, valid: FaceTable, recipe: Recipe, device: torch.device,
        teacher: KeypointNet | None = None,
    ) -> None:  # fmt: skip
        self.net, self.valid, self.recipe, self.size, self.device = net, valid, recipe, net.size, device
        self.teacher, self.crop_rule, self.template = teacher, table.info.crop_rule, table.template
        self.mirrored = table.info.keypoints.mirrored
        learned = table.mask & ~table.at_border.any(axis=2)
        # NaN marks a point that must not be learned; unlike a mask, it follows its point through a flip
        points = np.where(learned[..., None], table.points, np.float32(np.nan))
        streamed = isinstance(table.images, StreamedImages)
        images: Any = OnDisk(table.images, device) if streamed else torch.from_numpy(table.images).to(device)
        self.data = [images, *(torch.from_numpy(x).to(device) for x in (points, table.boxes))]

    def inputs(self, index: Tensor, generator: Generator) -> Tensor:
        """Draw network inputs of the training samples `index`, augmented as in training."""
        raise NotImplementedError

    def loss(self, index: Tensor, generator: Generator) -> Tensor:
        """Compute the scalar loss of the training samples `index`."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Return validation errors in percent; "valid" decides which epoch is kept."""
        raise NotImplementedError

    def split_outside(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Clamp points that left the crop to its border, or leave them out, as the recipe says.

        Args:
            points: (B, K, 2) points in network pixels, NaN where unknown.

        Returns:
            (B, K, 2) points without NaN and the (B, K) mask of those to learn.
        """
        known = points.isfinite().all(dim=2)
        outside = (points < 0) | (points >= self.size)
        points = torch.where(known[..., None], points, 0.0)
        if self.recipe.outside == "clamp":
            return torch.where(outside, target_cells(points, self.size) + 0.5, points), known
        return points, known & ~outside.any(dim=2)
