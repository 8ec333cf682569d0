"""The three pieces every network here is made of: a convolution, a pooling rule, an upsampling rule."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.utils.errors import InputError


def initial_bound(conv: nn.Conv2d) -> float:
    """Return b of the uniform distribution U(-b, b) that a convolution's weights start from (see `Conv`)."""
    outputs, inputs, height, width = conv.weight.shape
    return math.sqrt(6 / (inputs * height * width + outputs * height * width // 4))


class Conv(nn.Conv2d):
    """Stride-1 convolution, zero-padded to keep the size, one bias a map.

    Initialized uniformly in +-sqrt(6 / (fan_in + fan_out)) with fan_out = floor(out * k^2 / 4), biases
    zero: the authors' rule, which divides by the pool size even where no pooling follows.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        bound = initial_bound(self)
        nn.init.uniform_(self.weight, -bound, bound)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


def pooled(size: int) -> int:
    """Side of the map after `pool`."""
    return size // 2 if size % 2 == 0 else (size - 1) // 2


def pool(x: Tensor) -> Tensor:
    """Halves a (B, C, S, S) map: maximum of 2x2 cells; of 3x3 with stride 2 where S is odd (5 -> 2), which
    keeps the map left-right symmetric (paper, footnote 10)."""
    return F.max_pool2d(x, 2 if x.shape[-1] % 2 == 0 else 3, stride=2)


def upsample(x: Tensor, size: int, mode: str = "tile") -> Tensor:
    """Enlarges (B, C, s, s) to (B, C, size, size).

    "tile" repeats cells: exact tiling for whole factors; 2 -> 5 splits the columns 3 + 2, as tiling by three
    and dropping the last row and column does. "bilinear" interpolates (footnote 3).
    """
    if x.shape[-1] == size:
        return x
    if mode == "bilinear":
        return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return F.interpolate(x, size=(size, size), mode="nearest")


def shift_map(x: Tensor, right: int, down: int) -> Tensor:
    """(B, C, H, W) moved by whole cells; what comes in at the edges repeats them."""
    h, w = x.shape[-2:]
    m = max(abs(right), abs(down))
    return F.pad(x, (m, m, m, m), mode="replicate")[..., m - down : m - down + h, m - right : m - right + w]


class LearnedUpsampling(nn.Module):
    """Doubles (B, C, S, S) by a stride-2 transposed convolution; one 3x3 kernel shared by all maps, no bias."""

    def __init__(self) -> None:
        super().__init__()
        bound = math.sqrt(6 / (2 * 9))
        self.weight = nn.Parameter(torch.empty(1, 1, 3, 3).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        one_map = x.reshape(b * c, 1, h, w)
        return F.conv_transpose2d(one_map, self.weight, stride=2, padding=1, output_padding=1).reshape(
            b, c, 2 * h, 2 * w
        )


def only_maxima(x: Tensor) -> Tensor:
    """(B, C, S, S) with every cell that is not the maximum of its pooling window zero; ties keep all."""
    if x.shape[-1] % 2:
        raise InputError(f"keep_maxima wants maps of even size, got {x.shape[-1]}x{x.shape[-1]}")
    return torch.where(x == upsample(pool(x), x.shape[-1]), x, 0.0)


def tiled_kernel(weight: Tensor) -> Tensor:
    """The kernel of the transposed convolution that equals `weight` applied to a map tiled by two.

    Tiling is a stride-2 transposed convolution with 2x2 ones; a convolution after it makes one transposed
    convolution whose (k+1)x(k+1) kernel is the flipped `weight` convolved with those ones.
    (out, in, k, k) -> (in, out, k+1, k+1).
    """
    flipped = weight.flip(-1, -2)
    rows = F.pad(flipped, (0, 0, 0, 1)) + F.pad(flipped, (0, 0, 1, 0))
    return (F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))).transpose(0, 1)


def conv_over_concat(conv: nn.Conv2d, fine: Tensor, coarse: Tensor, mode: str = "tile", fused: bool = True) -> Tensor:
    """`conv(concat(fine, upsample(coarse)))`, without ever building the upsampled map where it is tiled by two.

    fine: (B, Cf, S, S); coarse: (B, Cc, s, s). For s = S / 2 the coarse half costs 4 products in place of 9
    for a 3x3 kernel (9 in place of 25 for 5x5); otherwise, and without `fused`, the plain form is computed.
    """
    channels, size = fine.shape[1], fine.shape[-1]
    if not fused or mode != "tile" or size != 2 * coarse.shape[-1]:
        return conv(torch.cat([fine, upsample(coarse, size, mode)], dim=1))
    k = conv.kernel_size[0]
    if k == 1:
        near = F.conv2d(coarse, conv.weight[:, channels:])
        return F.conv2d(fine, conv.weight[:, :channels], conv.bias) + upsample(near, size)
    near = F.conv2d(fine, conv.weight[:, :channels], conv.bias, padding=k // 2)
    return near + F.conv_transpose2d(coarse, tiled_kernel(conv.weight[:, channels:]), stride=2, padding=k // 2)
