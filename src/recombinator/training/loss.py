"""What is minimised: the spatial softmax cross-entropy of Eq. 2, or the L2 distance of footnote 4."""

from __future__ import annotations

import torch
from torch import Tensor


def target_cells(points: Tensor, size: int) -> Tensor:
    """(..., 2) points in network pixels -> whole cells, clamped to the map (SPEC 2.8)."""
    return points.floor().clamp(0, size - 1)


def masked_sum(terms: Tensor, mask: Tensor) -> Tensor:
    """K * mean over the points that count: a sum over keypoints, a mean over images where none is masked."""
    return terms.shape[1] * (terms * mask).sum() / (mask.sum() + 1e-8)


def softmax_loss(scores: Tensor, points: Tensor, mask: Tensor, sigma: float = 0.0) -> Tensor:
    """Eq. 2 without its regulariser. scores (B, K, S, S), points (B, K, 2) in network pixels, mask (B, K).

    sigma > 0 spreads the target: a Gaussian of that many cells around the sub-pixel position, normalised over
    the map, in place of one cell (beyond the paper).
    """
    size = scores.shape[-1]
    log_total = scores.flatten(2).logsumexp(dim=2)
    if sigma == 0:
        cell = target_cells(points, size).long()
        index = cell[..., 1] * size + cell[..., 0]
        at_target = scores.flatten(2).gather(2, index[..., None])[..., 0]
    else:
        centres = torch.arange(size, device=scores.device) + 0.5
        weights = (-((centres - points[..., None]) ** 2) / (2 * sigma**2)).softmax(dim=-1)  # (B, K, 2, S)
        rows = (scores @ weights[:, :, 0, :, None])[..., 0]
        at_target = (rows * weights[:, :, 1]).sum(dim=-1)
    return masked_sum(log_total - at_target, mask)


def l2_loss(scores: Tensor, points: Tensor, mask: Tensor, sigma: float = 0.0) -> Tensor:
    """Squared distance, in pixels, of the softmax's mean position from the true one (footnote 4)."""
    size = scores.shape[-1]
    p = scores.flatten(2).softmax(dim=2).unflatten(2, (size, size))
    centres = torch.arange(size, device=scores.device) + 0.5
    mean = torch.stack([(p.sum(dim=2) * centres).sum(-1), (p.sum(dim=3) * centres).sum(-1)], dim=-1)
    return masked_sum(((mean - points) ** 2).sum(dim=-1), mask)


LOSSES = {"softmax": softmax_loss, "l2": l2_loss}
