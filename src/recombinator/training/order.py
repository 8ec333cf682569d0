"""The order of an epoch's samples, and its batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor

from recombinator.data.stream import StreamedImages
from recombinator.data.table import FaceTable
from recombinator.training.recipe import Recipe


def epoch_rows(table: FaceTable, recipe: Recipe) -> Tensor:
    """Return the indices of the samples that an epoch visits: all, or with `equivariance` those with a known point."""
    if recipe.equivariance:
        return torch.from_numpy(np.flatnonzero(table.mask.any(axis=1)))
    return torch.arange(len(table))


def epoch_order(table: FaceTable, recipe: Recipe, generator: Generator) -> Tensor:
    """Draw the order of an epoch.

    Crops on disk are drawn by blocks: their row groups are put in random order, and the crops of `window` row groups
    at a time are mixed. An epoch then reads every row group once.

    Args:
        table: Training table.
        recipe: Its `shuffle` and `balance` decide.
        generator: Source of the order.

    Returns:
        (N,) indices of samples; see `epoch_rows`.
    """
    rows = epoch_rows(table, recipe)
    if not recipe.shuffle:
        return rows
    if recipe.balance:
        order = rows[balanced_order(torch.from_numpy(table.attributes[recipe.balance])[rows], generator)]
    else:
        order = rows[torch.randperm(len(rows), generator=generator)]
    if isinstance(table.images, StreamedImages):
        block = torch.randperm(len(table.images.reader.groups), generator=generator) // table.images.window
        order = order[block[torch.from_numpy(table.images.group_of)[order]].argsort(stable=True)]
    return order


def balanced_order(classes: Tensor, generator: Generator) -> Tensor:
    """Draw an epoch's samples in proportion to the square root of the size of their class.

    Args:
        classes: (N,) class of each sample.
        generator: Source of the order.

    Returns:
        (N,) indices in random order. How often two samples of one class are drawn differs by at most one.
    """
    n = len(classes)
    order = torch.randperm(n, generator=generator)
    share = classes.bincount()[classes].to(torch.float64).rsqrt()
    cumulative = (share * (n / share.sum()))[order].cumsum(0)
    ticks = torch.arange(n) + torch.rand(1, generator=generator, dtype=torch.float64)  # systematic sampling
    drawn = order[torch.searchsorted(cumulative, ticks).clamp(max=n - 1)]
    return drawn[torch.randperm(n, generator=generator)]


def batches(order: Tensor, size: int, processes: int) -> list[Tensor]:
    """Split an order into batches of at least one sample per process; the last one may be shorter or a little longer.

    Args:
        order: (N,) indices.
        size: Samples per batch.
        processes: Processes that share each batch.
    """
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) < processes:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts
