"""One affine for pixels and points, and the one coordinate convention of the whole package.

Coordinates are floats, x right, y down; the image spans [0, width] x [0, height], so a pixel's (and a score
cell's) center lies at its integer + 0.5. An affine is a (B, 2, 3) tensor that maps (x, y) of one frame to
another: q = A[:, :, :2] p + A[:, :, 2].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def apply(affine: Tensor, points: Tensor) -> Tensor:
    """(B, 2, 3) affines to (B, N, 2) points."""
    return points @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]


def invert(affine: Tensor) -> Tensor:
    """The (B, 2, 3) inverse."""
    linear = torch.linalg.inv(affine[:, :, :2])
    return torch.cat([linear, -linear @ affine[:, :, 2:]], dim=2)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The affine that applies `inner`, then `outer`."""
    linear = outer[:, :, :2] @ inner[:, :, :2]
    return torch.cat([linear, outer[:, :, :2] @ inner[:, :, 2:] + outer[:, :, 2:]], dim=2)


def box_affine(
    boxes: Tensor, size: int, shift: Tensor | None = None, zoom: Tensor | None = None,
    degrees: Tensor | None = None, stretch: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Maps the network's [0, size]^2 to the frame that `boxes` (B, 3: x, y, side) are in.

    The box is moved by `shift` (B, 2; in sides), enlarged by `zoom` (B; > 1 shows more) about its center and
    turned by `degrees` (B; clockwise on screen) about its center: SPEC 2.6. `stretch` (B; > 1 shows a face as
    that much narrower, and less high by its inverse) comes before the turn (not in the paper).
    """
    side = boxes[:, 2]
    center = boxes[:, :2] + side[:, None] / 2
    if shift is not None:
        center = center + shift * side[:, None]
    scale = side / size if zoom is None else side * zoom / size
    angle = torch.zeros_like(side) if degrees is None else torch.deg2rad(degrees)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    if stretch is not None:
        linear = torch.stack([stretch.sqrt(), stretch.rsqrt()], 1)[:, :, None] * linear
    middle = torch.full_like(center, size / 2)
    return torch.cat([linear, (center - (linear @ middle[..., None])[..., 0])[..., None]], dim=2)


def flip_affine(size: int, flipped: Tensor) -> Tensor:
    """(B,) bools -> (B, 2, 3): x -> size - x where True."""
    out = torch.zeros(len(flipped), 2, 3, device=flipped.device)
    sign = torch.where(flipped, -1.0, 1.0)
    out[:, 0, 0], out[:, 1, 1], out[:, 0, 2] = sign, 1.0, torch.where(flipped, float(size), 0.0)
    return out


def warp(images: Tensor, to_source: Tensor, size: int) -> Tensor:
    """(B, C, H, W) images -> (B, C, size, size) float: bilinear samples at `to_source` of each cell's center,
    black outside (no antialiasing, as in SPEC 2.6)."""
    height, width = images.shape[-2:]
    scale = torch.tensor([[2 / width], [2 / height]], device=images.device)
    linear = to_source[:, :, :2] * scale
    # the affine of grid_sample's [-1, 1] frames; both count a pixel's center at + 0.5
    offset = to_source[:, :, 2:] * scale - 1 + linear.sum(dim=2, keepdim=True) * (size / 2)
    theta = torch.cat([linear * (size / 2), offset], dim=2)
    grid = F.affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
