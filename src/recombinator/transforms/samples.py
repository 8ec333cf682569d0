"""Samples for evaluation, the same at every call: network inputs, and corrupted keypoints for a denoiser."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator, Tensor

from recombinator.data.table import FaceTable
from recombinator.transforms.augment import Augment, draw_points, draw_samples

BLANK = -1  # the cell of a missing point, whose map is all zero


def fixed_samples(
    table: FaceTable, size: int, augment: Augment | None, device: torch.device, batch: int = 64, seed: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield a table's samples in batches, in the table's order.

    Args:
        table: The table.
        size: Side of the network's input in pixels.
        augment: Ranges of the jitter, which is the same at every call; None for none.
        device: Where the samples are made.
        batch: Samples per batch.
        seed: Seed of the jitter.

    Yields:
        (B, C, size, size) float network inputs from 0 to 255, and (B, K, 2) points in their pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    mirrored = table.info.keypoints.mirrored
    for i in range(0, len(table), batch):
        part = slice(i, i + batch)
        yield draw_samples(
            torch.from_numpy(table.images[part]).to(device), torch.from_numpy(table.points[part]).to(device),
            torch.from_numpy(table.boxes[part]).to(device), size, augment, mirrored, generator,
        )  # fmt: skip


def corrupted(cells: Tensor, count: int, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Move random points of each set to uniformly drawn cells, as the paper's denoiser is trained (section 4).

    Args:
        cells: (B, K, 2) x, y of the points' cells, whole numbers.
        count: Points to corrupt in each set.
        size: Cells to each side of the map.
        generator: A generator on the CPU.

    Returns:
        (B, K, 2) cells, and the (B, K) mask of those that were corrupted.
    """
    b, k, _ = cells.shape
    rank = torch.rand(b, k, generator=generator).argsort(dim=1).argsort(dim=1)
    changed = (rank < count).to(cells.device)
    anywhere = torch.randint(0, size, (b, k, 2), generator=generator).to(cells.device)
    return torch.where(changed[..., None], anywhere, cells), changed


def corrupted_table(
    table: FaceTable, size: int, count: int, augment: Augment | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Corrupt random points of every row of a table, the same at every call.

    Args:
        table: The table; points that its mask excludes are given as missing.
        size: Side of the network's input in pixels.
        count: Points to corrupt in each row.
        augment: Ranges of the jitter before; None for none.

    Returns:
        True points (N, K, 2) in pixels of the network's input, their cells (N, K, 2), the corrupted cells (N, K, 2),
        and the mask (N, K) of those that were corrupted.
    """
    generator = Generator().manual_seed(0)
    points, _ = draw_points(
        torch.from_numpy(table.points), torch.from_numpy(table.boxes), size, augment, table.info.keypoints.mirrored,
        generator,
    )  # fmt: skip
    cells = points.floor().clamp(0, size - 1).long()
    known = torch.from_numpy(table.mask)[..., None]
    given, changed = corrupted(torch.where(known, cells, BLANK), count, size, generator)
    return points.double().numpy(), cells.numpy(), given.numpy(), changed.numpy()
