"""Score maps to points. A cell's centre is its integer + 0.5 (transforms.affine states the convention)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    b, k, h, w = scores.shape
    peak = (maximum(scores) - 0.5).long()
    probability = scores.flatten(2).softmax(dim=2).reshape(b * k, h, w)
    r = window // 2
    padded = F.pad(probability, (r, r, r, r))
    offset = torch.arange(window, device=scores.device)
    x, y = peak.reshape(b * k, 2).unbind(1)
    rows, columns = y[:, None] + offset, x[:, None] + offset
    each = torch.arange(b * k, device=scores.device)[:, None, None]
    patch = padded[each, rows[:, :, None], columns[:, None, :]]
    mass = patch.sum(dim=(1, 2))
    centres = offset - r + 0.5
    dx = (patch.sum(dim=1) * centres).sum(dim=1) / mass
    dy = (patch.sum(dim=2) * centres).sum(dim=1) / mass
    points = torch.stack([x + dx, y + dy], dim=1)
    return points.reshape(b, k, 2), mass.reshape(b, k)
