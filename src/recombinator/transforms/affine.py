"""Affine transforms of points and pixels.

The coordinate convention of the whole package is stated here. Coordinates are floats (x, y) in pixels, x to the
right, y down. A pixel's center is at its integer + 0.5: an image of W x H pixels spans [0, W] x [0, H], and its first
pixel spans [0, 1] x [0, 1], with the center at (0.5, 0.5). The cells of a score map follow the same convention. Files
and libraries with another one are converted where they are read or called.

An affine is a (B, 2, 3) tensor A that maps a point p of one frame to q = A[:, :, :2] p + A[:, :, 2] of another.
Points and pixels are transformed by the same affine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def apply(affine: Tensor, points: Tensor) -> Tensor:
    """Apply (B, 2, 3) affines to (B, N, 2) points."""
    return points @ affine[:, :, :2].transpose(1, 2) + affine[:, None, :, 2]


def invert(affine: Tensor) -> Tensor:
    """Invert (B, 2, 3) affines."""
    linear = torch.linalg.inv(affine[:, :, :2])
    return torch.cat([linear, -linear @ affine[:, :, 2:]], dim=2)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Compose (B, 2, 3) affines: the result applies `inner`, then `outer`."""
    linear = outer[:, :, :2] @ inner[:, :, :2]
    return torch.cat([linear, outer[:, :, :2] @ inner[:, :, 2:] + outer[:, :, 2:]], dim=2)


def box_affine(
    boxes: Tensor, size: int, shift: Tensor | None = None, zoom: Tensor | None = None,
    degrees: Tensor | None = None, stretch: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Make the affines from a network's input to the frame that boxes are in.

    The box is shifted, enlarged about its center and rotated about its center, in this order (the paper's jitter,
    footnote 7, as the authors' code applies it).

    Args:
        boxes: (B, 3) squares (x, y, side), in pixels of their frame.
        size: Side of the network's input in pixels.
        shift: (B, 2) shift of the box, in sides.
        zoom: (B,) enlargement of the box; above 1 shows more.
        degrees: (B,) rotation of the box, clockwise on the screen.
        stretch: (B,) ratio between width and height of the box, at the same area, before the rotation; above 1 shows a
            face narrower. Not in the paper.

    Returns:
        (B, 2, 3) affines that map [0, size] x [0, size] to the box.
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
    """Make (B, 2, 3) affines that mirror, x -> size - x, where the (B,) bools `flipped` are True."""
    out = torch.zeros(len(flipped), 2, 3, device=flipped.device)
    sign = torch.where(flipped, -1.0, 1.0)
    out[:, 0, 0], out[:, 1, 1], out[:, 0, 2] = sign, 1.0, torch.where(flipped, float(size), 0.0)
    return out


def warp(images: Tensor, to_source: Tensor, size: int) -> Tensor:
    """Resample images by affines, bilinearly and without antialiasing, as the authors' code does.

    Args:
        images: (B, C, H, W) images.
        to_source: (B, 2, 3) affines from output to image.
        size: Side of the output in pixels.

    Returns:
        (B, C, size, size) float, the image at `to_source` of each pixel's center; 0 outside the image.
    """
    height, width = images.shape[-2:]
    scale = torch.tensor([[2 / width], [2 / height]], device=images.device)
    linear = to_source[:, :, :2] * scale
    # the affine of grid_sample's [-1, 1] frames; both have a pixel's center at its integer + 0.5
    offset = to_source[:, :, 2:] * scale - 1 + linear.sum(dim=2, keepdim=True) * (size / 2)
    theta = torch.cat([linear * (size / 2), offset], dim=2)
    grid = F.affine_grid(theta, [len(images), 1, size, size], align_corners=False)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
