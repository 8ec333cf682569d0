"""Building blocks of the networks: convolution, pooling and upsampling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.utils.errors import InputError


def initial_bound(conv: nn.Conv2d) -> float:
    """Return the bound b of the distribution U(-b, b) that initializes a convolution's weights (see `Conv`)."""
    outputs, inputs, height, width = conv.weight.shape
    return math.sqrt(6 / (inputs * height * width + outputs * height * width // 4))


class Conv(nn.Conv2d):
    """Stride-1 convolution with zero padding that keeps the map size, with one bias per output channel.

    Weights are initialized uniformly in +-sqrt(6 / (fan_in + fan_out)) with fan_out = floor(outputs * kernel^2 / 4),
    biases with zero. This is the authors' rule: it divides by the pool size even where no pooling follows.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Kernel side in cells, odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        bound = initial_bound(self)
        nn.init.uniform_(self.weight, -bound, bound)
        assert self.bias is not None
        nn.init.zeros_(self.bias)


@dataclass(frozen=True)
class CountedConv:
    """Shape and cost of one convolution, in its dense form.

    Attributes:
        name: "trunkN", or "SIZE.N" for the N-th convolution of the branch at that map size.
        inputs: Input maps.
        outputs: Output maps.
        kernel: Kernel side in cells.
        size: Map side in cells.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int
    size: int

    @property
    def parameters(self) -> int:
        return self.outputs * (self.inputs * self.kernel**2 + 1)

    @property
    def multiply_adds(self) -> int:
        return self.outputs * self.inputs * self.kernel**2 * self.size**2


def pool(x: Tensor) -> Tensor:
    """Halve a (B, C, S, S) map to (B, C, S // 2, S // 2) by max pooling.

    Windows are 2x2. Where S is odd they are 3x3 with stride 2 (5 -> 2), which keeps the map left-right symmetric
    (footnote 10).
    """
    return F.max_pool2d(x, 2 if x.shape[-1] % 2 == 0 else 3, stride=2)


def upsample(x: Tensor, size: int, mode: str = "tile") -> Tensor:
    """Upsample a (B, C, s, s) map to (B, C, size, size).

    Args:
        x: The map.
        size: Side of the result in cells.
        mode: "tile" repeats cells. 2 -> 5 splits the columns 3 + 2, which equals tiling by three and dropping the last
            row and column. "bilinear" interpolates (footnote 3).
    """
    if x.shape[-1] == size:
        return x
    if mode == "bilinear":
        return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
    return F.interpolate(x, size=(size, size), mode="nearest")


def shift_map(x: Tensor, right: int, down: int) -> Tensor:
    """Shift a (B, C, H, W) map by whole cells, replicating the cells of the edge."""
    h, w = x.shape[-2:]
    margin = max(abs(right), abs(down))
    padded = F.pad(x, (margin, margin, margin, margin), mode="replicate")
    return padded[..., margin - down : margin - down + h, margin - right : margin - right + w]


def smooth_scores(scores: Tensor, sigma: float) -> Tensor:
    """Return the scores whose softmax is that of `scores`, smoothed.

    Without it, the highest cell of a broad distribution is decided by small differences between neighboring cells.

    Args:
        scores: (B, K, H, W) pre-softmax scores.
        sigma: Standard deviation of the Gaussian in cells, cut at three times its value.

    Returns:
        (B, K, H, W) log-probabilities; probability that is smoothed out of the map is lost.
    """
    k, h, w = scores.shape[1:]
    radius = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=scores.device) / sigma) ** 2)
    rows = (kernel / kernel.sum()).expand(k, 1, 1, -1)  # a column is the same kernel, transposed
    probability = scores.float().flatten(2).softmax(dim=2).unflatten(2, (h, w))
    along = F.conv2d(probability, rows, padding=(0, radius), groups=k)
    smoothed = F.conv2d(along, rows.transpose(2, 3), padding=(radius, 0), groups=k)
    return torch.log(smoothed + 1e-12)


class LearnedUpsampling(nn.Module):
    """Upsample a (B, C, S, S) map by 2 with a transposed convolution: one 3x3 kernel for all channels, no bias."""

    def __init__(self) -> None:
        super().__init__()
        bound = math.sqrt(6 / (2 * 9))
        self.weight = nn.Parameter(torch.empty(1, 1, 3, 3).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        as_batch = x.reshape(b * c, 1, h, w)
        doubled = F.conv_transpose2d(as_batch, self.weight, stride=2, padding=1, output_padding=1)
        return doubled.reshape(b, c, 2 * h, 2 * w)


def only_maxima(x: Tensor) -> Tensor:
    """Keep the maximum of each 2x2 window of a (B, C, S, S) map, with ties, and set all other cells to zero."""
    if x.shape[-1] % 2:
        raise InputError(f"keep_maxima: expected maps of even size, got {x.shape[-1]}x{x.shape[-1]}")
    return torch.where(x == upsample(pool(x), x.shape[-1]), x, 0.0)


def tiled_kernel(weight: Tensor) -> Tensor:
    """Return the kernel of the transposed convolution that equals tiling a map by two and convolving it with `weight`.

    Tiling by two is a stride-2 transposed convolution with a 2x2 kernel of ones. The two operations merge into one
    transposed convolution, whose kernel is the flipped `weight` convolved with those ones.

    Args:
        weight: (out, in, k, k) weights of a convolution.

    Returns:
        (in, out, k + 1, k + 1) weights of a stride-2 transposed convolution.
    """
    flipped = weight.flip(-1, -2)
    rows = F.pad(flipped, (0, 0, 0, 1)) + F.pad(flipped, (0, 0, 1, 0))
    return (F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))).transpose(0, 1)


def conv_over_concat(conv: nn.Conv2d, fine: Tensor, coarse: Tensor, mode: str = "tile", fused: bool = True) -> Tensor:
    """Compute `conv(concat(fine, upsample(coarse)))` of Eq. 3.

    Where the coarse map is tiled by two, the upsampled map is never built: its share of a 3x3 convolution then costs 4
    products per cell instead of 9 (9 instead of 25 for 5x5).

    Args:
        conv: Convolution with Cf + Cc input channels.
        fine: (B, Cf, S, S) trunk map.
        coarse: (B, Cc, s, s) output of the coarser branch.
        mode: Upsampling, as in `upsample`.
        fused: False always builds the upsampled map.

    Returns:
        (B, outputs, S, S) map.
    """
    channels, size = fine.shape[1], fine.shape[-1]
    if not fused or mode != "tile" or size != 2 * coarse.shape[-1]:
        return conv(torch.cat([fine, upsample(coarse, size, mode)], dim=1))
    k = conv.kernel_size[0]
    fine_weight, coarse_weight = conv.weight[:, :channels], conv.weight[:, channels:]
    if k == 1:
        from_coarse = F.conv2d(coarse, coarse_weight)
        return F.conv2d(fine, fine_weight, conv.bias) + upsample(from_coarse, size)
    from_fine = F.conv2d(fine, fine_weight, conv.bias, padding=k // 2)
    return from_fine + F.conv_transpose2d(coarse, tiled_kernel(coarse_weight), stride=2, padding=k // 2)
