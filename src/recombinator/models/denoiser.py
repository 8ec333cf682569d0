"""The denoising keypoint model (section 4; SPEC 1.6): where each point lies, given where the others do.

One-hot maps in, score maps out, no image. Its 45x45 convolutions are done by FFT, exactly.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.errors import InputError
from recombinator.models.layers import Conv

BLANK = -1  # the cell of a point whose map is all zero


def fast_size(n: int) -> int:
    """The smallest whole number >= n without a prime factor above 5: a quick FFT."""
    while True:
        rest = n
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        if rest == 1:
            return n
        n += 1


def kernel_spectrum(weight: Tensor, n: int) -> Tensor:
    """(..., k, k) correlation kernels -> (..., n, n // 2 + 1) spectra; multiplying by them is the "same" convolution
    of a map no larger than n - k // 2."""
    k = weight.shape[-1]
    placed = F.pad(weight.flip(-1, -2), (0, n - k, 0, n - k))
    return torch.fft.rfft2(torch.roll(placed, (-(k // 2), -(k // 2)), (-2, -1)))


def one_hot_spectrum(cells: Tensor, n: int) -> Tensor:
    """(..., 2) cells x, y -> (..., n, n // 2 + 1) spectra of their one-hot maps; BLANK cells give zero."""

    def wave(position: Tensor, frequencies: Tensor) -> Tensor:
        angle = -2 * math.pi / n * ((position[..., None] * frequencies) % n)
        return torch.polar(torch.ones_like(angle), angle)

    f = torch.arange(n, device=cells.device)
    x, y = cells.unbind(-1)
    there = (x >= 0).to(torch.float32)[..., None, None]
    return wave(y, f)[..., :, None] * wave(x, f[: n // 2 + 1])[..., None, :] * there


class SpectralConv(nn.Module):
    """A convolution with a large kernel, by FFT. Dense (every input map to every output map) or depth-wise (a kernel
    a map). Equals `conv2d` with padding k // 2. Kernel spectra are kept while not training."""

    def __init__(self, inputs: int, outputs: int, kernel: int, size: int, depthwise: bool) -> None:
        super().__init__()
        if depthwise and inputs != outputs:
            raise InputError(f"a depth-wise convolution keeps its maps: {inputs} in, {outputs} out")
        like = Conv(1 if depthwise else inputs, outputs, kernel)
        self.weight, self.bias, self.size, self.depthwise = like.weight, like.bias, size, depthwise
        self.n = fast_size(size + kernel // 2)
        self._kept: Tensor | None = None

    def train(self, mode: bool = True) -> SpectralConv:
        self._kept = None
        return super().train(mode)

    def _spectrum(self) -> Tensor:
        if self.training:
            return self._prepared()
        if self._kept is None or self._kept.device != self.weight.device:
            self._kept = self._prepared()
        return self._kept

    def _prepared(self) -> Tensor:
        spectrum = kernel_spectrum(self.weight, self.n)
        return spectrum[:, 0] if self.depthwise else spectrum.flatten(2).permute(2, 0, 1).contiguous()

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, O, S, S)."""
        return self.from_spectrum(torch.fft.rfft2(maps, s=(self.n, self.n)))

    def from_spectrum(self, spectrum: Tensor) -> Tensor:
        """The same for maps given by their (B, C, n, n // 2 + 1) spectra."""
        if self.depthwise:
            product = spectrum * self._spectrum()
        else:
            b, c, n, half = spectrum.shape
            mixed = self._spectrum() @ spectrum.reshape(b, c, n * half).permute(2, 1, 0)  # a frequency a matrix
            product = mixed.permute(2, 1, 0).reshape(b, -1, n, half)
        out = torch.fft.irfft2(product, s=(self.n, self.n))[..., : self.size, : self.size]
        return out if self.bias is None else out + self.bias[:, None, None]

    def from_cells(self, cells: Tensor) -> Tensor:
        """The same for one-hot maps given by their (B, C, 2) cells: at inference the kernels are gathered at their
        cells, which costs no transform and reads only what lies on the map."""
        if self.training or self.depthwise:
            return self.from_spectrum(one_hot_spectrum(cells, self.n).to(self.weight.dtype.to_complex()))
        b, size, k = len(cells), self.size, self.weight.shape[-1]
        c = k // 2
        out = self.weight.new_zeros(b, len(self.weight), size, size)
        if self.bias is not None:
            out += self.bias[:, None, None]
        flipped = self.weight.flip(-1, -2)
        for i, points in enumerate(cells.tolist()):
            for j, (x, y) in enumerate(points):
                if x == BLANK:
                    continue
                x0, x1, y0, y1 = max(x - c, 0), min(x + c + 1, size), max(y - c, 0), min(y + c + 1, size)
                out[i, :, y0:y1, x0:x1] += flipped[:, j, y0 - y + c : y1 - y + c, x0 - x + c : x1 - x + c]
        return out


class Denoiser(nn.Module):
    """Three large convolutions with ReLU, then 1x1: K -> width -> width -> width -> K.

    `depthwise=False` is the paper's (25,406,212 parameters for 68 points); `depthwise=True` replaces each dense
    45x45 convolution by one kernel a map and a 1x1 mixing of maps: small enough for a CPU and a repository.
    """

    def __init__(
        self, keypoints: int = 68, *, size: int = 80, kernel: int = 45, width: int = 64, depthwise: bool = False
    ) -> None:
        super().__init__()
        if kernel % 2 == 0 or kernel // 2 >= size:
            raise InputError(f"kernel={kernel} must be odd and reach less far than the {size}x{size} map")
        self.keypoints, self.size = keypoints, size
        widths = [keypoints, width, width, width]
        self.large = nn.ModuleList(
            SpectralConv(a, a if depthwise else b, kernel, size, depthwise) for a, b in pairwise(widths)
        )
        self.mix = nn.ModuleList(Conv(a, b, 1) for a, b in pairwise(widths) if depthwise)
        self.out = Conv(width, keypoints, 1)
        self.config: dict[str, Any] = {}

    def multiply_adds(self) -> int:
        """Per set of points, of the dense form."""
        return self.size**2 * sum(p.numel() for n, p in self.named_parameters() if n.endswith("weight"))

    def forward(self, cells: Tensor) -> Tensor:
        """(B, K, 2) whole cells x, y in 0..size-1, or BLANK -> (B, K, S, S) pre-softmax scores."""
        if cells.shape[1:] != (self.keypoints, 2) or bool(((cells < BLANK) | (cells >= self.size)).any()):
            raise InputError(
                f"expected (B, {self.keypoints}, 2) cells from 0 to {self.size - 1} (or {BLANK}), "
                f"got {tuple(cells.shape)}"
            )
        x = self.large[0].from_cells(cells)  # type: ignore[operator]
        for i in range(len(self.large)):
            x = self.large[i](x) if i else x
            x = torch.relu(self.mix[i](x) if self.mix else x)
        return self.out(x)
