"""Score maps to points. A cell's center is its integer + 0.5 (transforms.affine states the convention)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recombinator.keypoints import RADII, SURE
from recombinator.models.base import KeypointNet


@dataclass(frozen=True)
class Decoded:
    """What a network says of each keypoint, in network pixels. points: (B, K, 2); highest: (B, K, 2), centers of the
    highest cells, the paper's answer; within: (B, K, len(RADII)) probabilities of the squares around those;
    covariance: (B, K, 3) of the network's distribution about the answer: xx, xy, yy."""

    points: Tensor
    highest: Tensor
    within: Tensor
    covariance: Tensor

    @property
    def confidence(self) -> Tensor:
        """(B, K) probability of the square of 7x7 cells around the highest one."""
        return self.within[..., SURE]


def answers(net: KeypointNet, inputs: Tensor) -> Decoded:
    """What a network for images says of `inputs`."""
    return decode(net(inputs), net.temperature, net.tile)


def decode(output: Tensor, temperature: float = 1.0, tile: int = 1) -> Decoded:
    """What any network for images gave, its scores divided by `temperature` first. tile: ScoreMapNet.tile; cells that
    share a score are one cell, and the answer is its center, not the first of equals. Coordinates (a regression's
    (B, K, 2)) are the answer as they are, with probability 1 and covariance 0: they say nothing."""
    if output.ndim == 3:
        there = output[..., :1]
        return Decoded(
            output, output, torch.ones_like(there).expand(-1, -1, len(RADII)), torch.zeros_like(there).expand(-1, -1, 3)
        )
    scores = output if temperature == 1 else output / temperature
    if tile == 1:
        return subpixel(scores)
    coarse = subpixel(scores[..., ::tile, ::tile])
    return Decoded(coarse.points * tile, coarse.highest * tile, coarse.within, coarse.covariance * tile**2)


def maximum(scores: Tensor) -> Tensor:
    """(B, K, H, W) scores -> (B, K, 2) centers of the highest cells (the first of equals): the paper's decoder."""
    cell = scores.flatten(2).argmax(dim=2)
    width = scores.shape[-1]
    return torch.stack([cell % width, cell // width], dim=-1) + 0.5


def subpixel(scores: Tensor) -> Decoded:
    """(B, K, H, W) scores: the point is the probability-weighted mean of the cell centers around the highest cell."""
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
    shift = torch.stack([(across * dx).sum(dim=2), (down * dy).sum(dim=2)], dim=2) / within[..., SURE, None]
    gap_x, gap_y = dx - shift[..., :1], dy - shift[..., 1:]
    moments = probability @ torch.stack([gap_x**2, gap_x, torch.ones_like(gap_x)], dim=3)  # (B, K, h, 3), of each row
    factors = torch.stack([torch.ones_like(gap_y), gap_y, gap_y**2], dim=3)
    return Decoded(highest + shift, highest, within, (moments * factors).sum(dim=2))
