"""Training losses: the spatial softmax cross-entropy of Eq. 2 and the L2 distance of footnote 4."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from recombinator.training.parallel import counted
from recombinator.transforms.affine import apply


def target_cells(points: Tensor, size: int) -> Tensor:
    """Return the integer cells of (..., 2) points in network pixels, clamped to the map as in the authors' code."""
    return points.floor().clamp(0, size - 1)


def masked_sum(terms: Tensor, mask: Tensor) -> Tensor:
    """Return K times the mean of the terms that count.

    Without masked terms this is the sum over keypoints of the mean over images, as in Eq. 2.

    Args:
        terms: (B, K) loss terms.
        mask: (B, K), False for a term that does not count.
    """
    return terms.shape[1] * (terms * mask).sum() / (counted(mask) + 1e-8)


def softmax_loss(scores: Tensor, points: Tensor, mask: Tensor, sigma: float = 0.0) -> Tensor:
    """Compute Eq. 2 without its regularization term.

    Args:
        scores: (B, K, S, S) pre-softmax scores.
        points: (B, K, 2) true points in network pixels.
        mask: (B, K), False for points that do not count.
        sigma: 0 has the true cell as target (the paper). A positive value has a Gaussian of that standard deviation in
            cells around the sub-pixel position, normalized over the map (not in the paper).

    Returns:
        The scalar loss.
    """
    size = scores.shape[-1]
    share = mask * (scores.shape[1] / (counted(mask) + 1e-8))
    if sigma == 0:
        cell = target_cells(points, size).long()
        x, y = (F.one_hot(cell[..., i], size).to(scores.dtype) for i in range(2))
    else:
        centers = torch.arange(size, device=scores.device) + 0.5
        x, y = (-((centers - points[..., None]) ** 2) / (2 * sigma**2)).softmax(dim=-1).to(scores.dtype).unbind(dim=2)
    return _CrossEntropy.apply(scores, x, y, share)


def distillation_loss(scores: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Compute the cross-entropy of the score maps with those of a teacher network, on the scale of `softmax_loss`.

    This is knowledge distillation (Hinton, Vinyals, Dean, 2015) without a temperature.

    Args:
        scores: (B, K, S, S) pre-softmax scores.
        teacher: (B, K, S, S) pre-softmax scores of the teacher.
        mask: (B, K), False for points that do not count.

    Returns:
        The scalar loss.
    """
    terms = (teacher.flatten(2).softmax(dim=2) * scores.flatten(2).log_softmax(dim=2)).sum(dim=2)
    return masked_sum(-terms, mask)


class _CrossEntropy(torch.autograd.Function):
    """Sum of share * (logsumexp(scores) - sum(y x scores)), with targets as outer products of rows and columns.

    The gradient share * (softmax - y x) is computed in one (B, K, S, S) map. With 68 keypoints the chain of operations
    of automatic differentiation costs more than some convolutions.
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


def soft_argmax(scores: Tensor) -> Tensor:
    """Return the (B, K, 2) mean positions of the softmax of (B, K, S, S) scores, in network pixels."""
    size = scores.shape[-1]
    p = scores.flatten(2).softmax(dim=2).unflatten(2, (size, size))
    centers = torch.arange(size, device=scores.device) + 0.5
    return torch.stack([(p.sum(dim=2) * centers).sum(-1), (p.sum(dim=3) * centers).sum(-1)], dim=-1)


def equivariance_loss(points: Tensor, target: Tensor, affine: Tensor, mirrored: list[int], size: int) -> Tensor:
    """Compute the squared distance between the points of an image and those of its transformed copy.

    This is the equivariant landmark transformation of Honari et al. (CVPR 2018, section 3.2): the points of T(x) should
    be T of the points of x. Points that T moves out of the input do not count.

    Args:
        points: (B, K, 2) points of T(x) in network pixels.
        target: (B, K, 2) points of x in network pixels.
        affine: (B, 2, 3) affines T.
        mirrored: `KeypointSet.mirrored`, for affines that mirror the image.
        size: Side of the network's input in pixels.

    Returns:
        The scalar loss in squared pixels, on the scale of `l2_loss`.
    """
    linear = affine[:, :, :2]
    flips = linear[:, 0, 0] * linear[:, 1, 1] < linear[:, 0, 1] * linear[:, 1, 0]
    target = apply(affine, torch.where(flips[:, None, None], target[:, mirrored], target))
    inside = ((target >= 0) & (target < size)).all(dim=2)
    return masked_sum(((points - target) ** 2).sum(dim=2), inside)


def l2_loss(scores: Tensor, points: Tensor, mask: Tensor, sigma: float = 0.0) -> Tensor:
    """Compute the squared distance between the mean position of the softmax and the true one (footnote 4).

    Args:
        scores: (B, K, S, S) pre-softmax scores.
        points: (B, K, 2) true points in network pixels.
        mask: (B, K), False for points that do not count.
        sigma: Ignored; `LOSSES` have one signature.

    Returns:
        The scalar loss in squared pixels.
    """
    return masked_sum(((soft_argmax(scores) - points) ** 2).sum(dim=-1), mask)


LOSSES = {"softmax": softmax_loss, "l2": l2_loss}
