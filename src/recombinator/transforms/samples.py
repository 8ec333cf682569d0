"""Batches of network inputs from a table, the same at every call, and corrupted keypoints for the denoiser."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from recombinator.data.table import FaceTable, load_table
from recombinator.transforms.augment import Augment, draw_points, draw_samples

BLANK = -1  # the cell of a point whose map is all zero


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


def network_inputs(data: str | os.PathLike[str], size: int, channels: int = 1, limit: int | None = None) -> np.ndarray:
    """(N, C, size, size) float32: what a network of that input size sees of a table, without jitter."""
    table = load_table(data, channels, limit)
    batches = fixed_samples(table, size, None, torch.device("cpu"))
    return torch.cat([inputs for inputs, _ in batches]).numpy()


def corrupted(cells: Tensor, count: int, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """`count` random points of each set moved to uniform cells: (B, K, 2) cells and the (B, K) mask of what was
    changed (section 4)."""
    b, k, _ = cells.shape
    rank = torch.rand(b, k, generator=generator).argsort(dim=1).argsort(dim=1)
    changed = (rank < count).to(cells.device)
    anywhere = torch.randint(0, size, (b, k, 2), generator=generator).to(cells.device)
    return torch.where(changed[..., None], anywhere, cells), changed


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
    given, changed = corrupted(torch.where(known, cells, BLANK), count, size, generator)
    return points.double().numpy(), cells.numpy(), given.numpy(), changed.numpy()
