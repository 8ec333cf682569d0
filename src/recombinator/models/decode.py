"""Decode score maps into points.

A cell's center is at its integer + 0.5 (the coordinate convention of transforms.affine).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recombinator.keypoints import RADII, SURE


@dataclass(frozen=True)
class Decoded:
    """Points, confidence and uncertainty of a batch, in network pixels.

    Attributes:
        points: (B, K, 2) sub-pixel positions x, y.
        highest: (B, K, 2) centers of the cells with the highest score, the paper's prediction.
        within: (B, K, len(RADII)) probabilities of the squares around the highest cells, one per radius.
        covariance: (B, K, 3) second moments xx, xy, yy of the predicted distribution around `points`.
    """

    points: Tensor
    highest: Tensor
    within: Tensor
    covariance: Tensor

    @property
    def confidence(self) -> Tensor:
        """(B, K) probabilities of the 7x7 cells around the highest one."""
        return self.within[..., SURE]


def decode(output: Tensor, temperature: float = 1.0, tile: int = 1) -> Decoded:
    """Decode score maps, or the points of a regression.

    Args:
        output: (B, K, S, S) pre-softmax scores, or (B, K, 2) points of a regression network in network pixels. Points
            are returned unchanged, with probability 1 and covariance 0: a regression has no distribution.
        temperature: Scores are divided by it first.
        tile: `KeypointNet.tile`. The cells of a tile share one score, so they count as one cell, and the prediction is
            the center of the tile.

    Returns:
        Points, probabilities and covariances in network pixels.
    """
    if output.ndim == 3:
        one_value = output[..., :1]
        certain = torch.ones_like(one_value).expand(-1, -1, len(RADII))
        return Decoded(output, output, certain, torch.zeros_like(one_value).expand(-1, -1, 3))
    scores = output if temperature == 1 else output / temperature
    if tile == 1:
        return subpixel(scores)
    coarse = subpixel(scores[..., ::tile, ::tile])
    return Decoded(coarse.points * tile, coarse.highest * tile, coarse.within, coarse.covariance * tile**2)


def maximum(scores: Tensor) -> Tensor:
    """Return the centers of the highest cells, the paper's decoder; the first of equal cells wins.

    Args:
        scores: (B, K, H, W) score maps.

    Returns:
        (B, K, 2) positions x, y.
    """
    cell = scores.flatten(2).argmax(dim=2)
    width = scores.shape[-1]
    return torch.stack([cell % width, cell // width], dim=-1) + 0.5


def within_by_temperature(scores: Tensor, temperatures: Sequence[float], tile: int = 1) -> Tensor:
    """Compute `Decoded.within` at several temperatures, with one pass over the maps for each.

    Args:
        scores: (B, K, S, S) pre-softmax scores.
        temperatures: T temperatures that the scores are divided by.
        tile: As in `decode`.

    Returns:
        (B, K, T, len(RADII)) probabilities.
    """
    # one image at a time, whose maps stay in the processor's cache
    return torch.cat([_within(maps[..., ::tile, ::tile].float(), temperatures) for maps in scores.split(1)])


def _within(scores: Tensor, temperatures: Sequence[float]) -> Tensor:
    relative = scores - scores.amax(dim=(2, 3), keepdim=True)
    reach = max(RADII)
    across, down = (maximum(relative) - 0.5).long().unbind(dim=2)  # (B, K)
    steps = torch.arange(-reach, reach + 1, device=scores.device)
    x, y = across[..., None] + steps, down[..., None] + steps
    h, w = scores.shape[2:]
    cells = (y.clamp(0, h - 1) * w)[..., :, None] + x.clamp(0, w - 1)[..., None, :]
    window = relative.flatten(2).gather(2, cells.flatten(2)).unflatten(2, (len(steps), len(steps)))
    inside = ((y >= 0) & (y < h))[..., :, None] & ((x >= 0) & (x < w))[..., None, :]
    window = window.masked_fill(~inside, float("-inf"))
    distance = torch.maximum(steps.abs()[:, None], steps.abs())
    squares = torch.stack([distance <= r for r in RADII]).to(window.dtype).flatten(1)  # (R, cells)
    return torch.stack([
        (window / t).exp().flatten(2) @ squares.T / (relative / t).exp().sum(dim=(2, 3))[..., None]
        for t in temperatures
    ], dim=2)  # fmt: skip


def subpixel(scores: Tensor) -> Decoded:
    """Decode score maps into the probability-weighted mean of the cell centers around the highest cell.

    Args:
        scores: (B, K, H, W) pre-softmax scores.

    Returns:
        Points, probabilities and covariances in cells.
    """
    scores = scores.float()
    _, _, h, w = scores.shape
    highest = maximum(scores)
    peak = highest - 0.5
    probability = scores.flatten(2).softmax(dim=2).unflatten(2, (h, w))
    # distances from the highest cell; sums over squares around it are products with the whole map
    dx = torch.arange(w, device=scores.device) - peak[..., :1]  # (B, K, w)
    dy = torch.arange(h, device=scores.device) - peak[..., 1:]
    radii = torch.tensor(RADII, device=scores.device)[:, None]
    near_x, near_y = ((d.abs()[:, :, None] <= radii).to(scores.dtype) for d in (dx, dy))  # (B, K, R, w)
    rows = near_y @ probability  # (B, K, R, w), summed over each square's rows
    within = (rows * near_x).sum(dim=3)
    across = rows[:, :, SURE] * near_x[:, :, SURE]
    down = (probability @ near_x[:, :, SURE, :, None])[..., 0] * near_y[:, :, SURE]
    offset = torch.stack([(across * dx).sum(dim=2), (down * dy).sum(dim=2)], dim=2) / within[..., SURE, None]
    gap_x, gap_y = dx - offset[..., :1], dy - offset[..., 1:]
    moments = probability @ torch.stack([gap_x**2, gap_x, torch.ones_like(gap_x)], dim=3)  # (B, K, h, 3), per row
    factors = torch.stack([torch.ones_like(gap_y), gap_y, gap_y**2], dim=3)
    return Decoded(highest + offset, highest, within, (moments * factors).sum(dim=2))
