"""Convolution with large kernels, computed exactly in the frequency domain."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recombinator.models.layers import Conv
from recombinator.transforms.samples import BLANK


def _waves(positions: Tensor, n: int, frequencies: int, dtype: torch.dtype) -> Tensor:
    """Return the first rows of the matrix of a discrete Fourier transform of length n, at (P,) integer positions.

    Returns:
        (frequencies, P) complex values exp(-2 pi i f p / n).
    """
    f = torch.arange(frequencies, device=positions.device)
    angle = ((f[:, None] * positions) % n).double() * (-2 * math.pi / n)
    return torch.polar(torch.ones_like(angle), angle).to(dtype.to_complex())


def spectrum(maps: Tensor, positions: Tensor, n: int) -> Tensor:
    """Compute the two-dimensional spectra of M real maps.

    They are computed by two matrix products. For maps of a few dozen cells this is faster on a CPU than an FFT.

    Args:
        maps: (X, Y, M) maps with X = Y.
        positions: (X,) integer positions of rows and of columns.
        n: Length of the transform.

    Returns:
        (n // 2 + 1, n, M) complex spectra.
    """
    across, down = (_waves(positions, n, f, maps.dtype) for f in (n // 2 + 1, n))
    rows = torch.cat([across.real, across.imag]) @ maps.flatten(1)
    real, imaginary = rows.unflatten(1, maps.shape[1:]).chunk(2)
    return down @ torch.complex(real, imaginary)


def from_spectrum(values: Tensor, n: int, size: int) -> Tensor:
    """Invert `spectrum` at positions 0 to size - 1.

    Args:
        values: (n // 2 + 1, n, M) complex spectra of real maps.
        n: Length of the transform.
        size: Side of the result in cells.

    Returns:
        (size, size, M) real maps.
    """
    half = n // 2 + 1
    positions, dtype = torch.arange(size, device=values.device), values.real.dtype
    across, down = (_waves(positions, n, f, dtype).T / n for f in (half, n))
    columns = torch.view_as_real(down.conj().resolve_conj() @ values)  # (half, Y, M, 2)
    twice = torch.full((half,), 2.0, dtype=dtype, device=values.device)  # each also counts for its negative
    twice[0] = 1
    if n % 2 == 0:
        twice[-1] = 1
    inverse = torch.cat([across.real * twice, across.imag * twice], dim=1)
    parts = torch.cat([columns[..., 0], columns[..., 1]])
    return (inverse @ parts.flatten(1)).unflatten(1, parts.shape[1:])


class SpectralConv(nn.Module):
    """Convolution with a large kernel in the frequency domain; equals `conv2d` with padding k // 2.

    Maps are (X, Y, channels, B): in this layout neither the transforms nor the product copy memory. In evaluation mode
    the spectra of the kernels are cached.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Kernel side in cells, odd.
        size: Map side in cells, S.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, size: int) -> None:
        super().__init__()
        conv = Conv(inputs, outputs, kernel)  # initial values
        self.weight, self.bias, self.size = conv.weight, conv.bias, size
        self.n = size + kernel // 2  # the shortest period without wrap-around at the border
        self._cache: tuple[tuple[int, int], Tensor] | None = None  # version of the weights, their spectra

    def train(self, mode: bool = True) -> SpectralConv:
        self._cache = None
        return super().train(mode)

    def _kernel_spectra(self) -> Tensor:
        """(n // 2 + 1, n, O, I) spectra of the kernels, from the cache in evaluation mode."""
        if self.training:
            return self._compute_kernel_spectra()
        version = (id(self.weight), self.weight._version)  # changed by `load_state_dict` and by optimizers
        if self._cache is None or self._cache[0] != version or self._cache[1].device != self.weight.device:
            self._cache = version, self._compute_kernel_spectra()
        return self._cache[1]

    def _compute_kernel_spectra(self) -> Tensor:
        o, i, k, _ = self.weight.shape
        offsets = k // 2 - torch.arange(k, device=self.weight.device)  # conv2d is a correlation: kernels are mirrored
        kernels = self.weight.permute(3, 2, 0, 1).reshape(k, k, o * i)
        return spectrum(kernels, offsets, self.n).unflatten(2, (o, i))

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve (S, S, C, B) maps, x first, into (S, S, O, B) maps."""
        positions = torch.arange(self.size, device=maps.device)
        return self._convolve_spectra(spectrum(maps.flatten(2), positions, self.n).unflatten(2, maps.shape[2:]))

    def _convolve_spectra(self, values: Tensor) -> Tensor:
        """Convolve maps given by their (n // 2 + 1, n, C, B) spectra."""
        product = self._kernel_spectra() @ values
        out = from_spectrum(product.flatten(2), self.n, self.size).unflatten(2, product.shape[2:])
        return out if self.bias is None else out + self.bias[:, None]

    def from_cells(self, cells: Tensor) -> Tensor:
        """Convolve one-hot maps, each given by the cell of its one.

        In evaluation mode on a CPU, each kernel is added to the output at its cell, without a transform.

        Args:
            cells: (B, C, 2) cells x, y; BLANK for a map of zeros.

        Returns:
            (S, S, O, B) maps.
        """
        if self.training or self.weight.is_cuda:
            x, y = (cells[..., i].T.flatten() for i in range(2))  # (C * B,)
            across, down = (_waves(p, self.n, f, self.weight.dtype) for p, f in ((x, self.n // 2 + 1), (y, self.n)))
            one_hot = across[:, None] * (down * (x >= 0))
            return self._convolve_spectra(one_hot.unflatten(2, cells.shape[1::-1]))
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
        return out.permute(3, 2, 1, 0).contiguous()
