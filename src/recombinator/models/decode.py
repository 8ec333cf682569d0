"""Score maps to points. A cell's centre is its integer + 0.5 (transforms.affine states the convention)."""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 7  # side of the neighbourhood of the maximum, in cells


def decode(output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What any network for images gave -> sub-pixel points, centres of the highest cells, (B, K) confidences. From
    coordinates (a regression's (B, K, 2)) both are the coordinates, and the confidence is 1: it says nothing."""
    if output.ndim == 3:
        return output, output, torch.ones_like(output[..., 0])
    points, confidence = subpixel(output)
    return points, maximum(output), confidence


def maximum(scores: Tensor) -> Tensor:
    """(B, K, H, W) scores -> (B, K, 2) centres of the highest cells (the first of equals): the paper's decoder."""
    cell = scores.flatten(2).argmax(dim=2)
    width = scores.shape[-1]
    return torch.stack([cell % width, cell // width], dim=-1) + 0.5


def subpixel(scores: Tensor, window: int = WINDOW) -> tuple[Tensor, Tensor]:
    """(B, K, H, W) scores -> (B, K, 2) points and (B, K) confidences.

    The point is the probability-weighted mean of the cell centres in the window around the maximum; the
    confidence is the softmax probability inside that window.
    """
    scores = scores.float()
    _, _, h, w = scores.shape
    peak = maximum(scores) - 0.5
    probability = scores.flatten(2).softmax(dim=2).unflatten(2, (h, w))
    # distances from the peak, zero beyond the window: sums over it are two products with the whole map
    dx = torch.arange(w, device=scores.device) - peak[..., :1]  # (B, K, w)
    dy = torch.arange(h, device=scores.device) - peak[..., 1:]
    near_x, near_y = ((d.abs() <= window // 2).to(scores.dtype) for d in (dx, dy))
    across = (near_y[:, :, None] @ probability)[:, :, 0]  # (B, K, w), summed over the window's rows
    down = (probability @ near_x[..., None])[..., 0]
    mass = (across * near_x).sum(dim=2)
    shift = torch.stack([(across * near_x * dx).sum(dim=2), (down * near_y * dy).sum(dim=2)], dim=2)
    return peak + shift / mass[..., None] + 0.5, mass
