"""What is minimized: the spatial softmax cross-entropy of Eq. 2, or the L2 distance of footnote 4."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def target_cells(points: Tensor, size: int) -> Tensor:
    """(..., 2) points in network pixels -> whole cells, clamped to the map (SPEC 2.8)."""
    return points.floor().clamp(0, size - 1)


def masked_sum(terms: Tensor, mask: Tensor) -> Tensor:
    """K * mean over the points that count: a sum over keypoints, a mean over images where none is masked."""
    return terms.shape[1] * (terms * mask).sum() / (mask.sum() + 1e-8)


def softmax_loss(scores: Tensor, points: Tensor, mask: Tensor, sigma: float = 0.0) -> Tensor:
    """Eq. 2 without its regularizer. scores (B, K, S, S), points (B, K, 2) in network pixels, mask (B, K).

    sigma > 0 spreads the target: a Gaussian of that many cells around the sub-pixel position, normalized over
    the map, in place of one cell (beyond the paper).
    """
    size = scores.shape[-1]
    share = mask * (scores.shape[1] / (mask.sum() + 1e-8))
    if sigma == 0:
        cell = target_cells(points, size).long()
        x, y = (F.one_hot(cell[..., i], size).to(scores.dtype) for i in range(2))
    else:
        centers = torch.arange(size, device=scores.device) + 0.5
        x, y = (-((centers - points[..., None]) ** 2) / (2 * sigma**2)).softmax(dim=-1).to(scores.dtype).unbind(dim=2)
    return _CrossEntropy.apply(scores, x, y, share)


def distillation_loss(scores: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the maps' distributions with a teacher's, in the place and scale of `softmax_loss` (Hinton,
    Vinyals, Dean, 2015; without their temperature). scores, teacher (B, K, S, S), mask (B, K)."""
    terms = (teacher.flatten(2).softmax(dim=2) * scores.flatten(2).log_softmax(dim=2)).sum(dim=2)
    return masked_sum(-terms, mask)


class _CrossEntropy(torch.autograd.Function):
    """sum of share * (logsumexp(scores) - sum(y x scores)), the targets as outer products of rows and columns.

    Its gradient is share * (softmax - y x), made in one large map: with 68 keypoints the usual
    chain of operations over (B, K, S, S) costs more than some convolutions.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, x: Tensor, y: Tensor, share: Tensor) -> Tensor:
        log_p = scores.flatten(2).log_softmax(dim=2).view_as(scores)
        at_target = ((log_p @ x[..., None])[..., 0] * y).sum(dim=-1)
        ctx.save_for_backward(log_p, x, y, share)
        return -(at_target * share).sum()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None, None]:
        log_p, x, y, share = ctx.saved_tensors
        factor = (share * gradient[0])[..., None]
        p = log_p.exp().mul_(factor[..., None])
        b, k, s, _ = p.shape
        p.view(b * k, s, s).baddbmm_((y * factor).view(b * k, s, 1), x.reshape(b * k, 1, s), alpha=-1)
        return p, None, None, None


def l2_loss(scores: Tensor, points: Tensor, mask: Tensor, sigma: float = 0.0) -> Tensor:
    """Squared distance, in pixels, of the softmax's mean position from the true one (footnote 4)."""
    size = scores.shape[-1]
    p = scores.flatten(2).softmax(dim=2).unflatten(2, (size, size))
    centers = torch.arange(size, device=scores.device) + 0.5
    mean = torch.stack([(p.sum(dim=2) * centers).sum(-1), (p.sum(dim=3) * centers).sum(-1)], dim=-1)
    return masked_sum(((mean - points) ** 2).sum(dim=-1), mask)


LOSSES = {"softmax": softmax_loss, "l2": l2_loss}
