"""The denoising keypoint model (section 4; SPEC 1.6): where each point lies, given where the others do.

One-hot maps in, score maps out, no image. The paper's 45x45 convolutions are computed exactly, as products of spectra.
Beside them a much smaller model for the same question (not in the paper): attention between the points.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.models.base import KeypointNet, merge_groups, split_weights
from recombinator.models.layers import Conv
from recombinator.transforms.samples import BLANK
from recombinator.transforms.shapes import ShapeModel
from recombinator.utils.errors import InputError


def _waves(positions: Tensor, n: int, frequencies: int, dtype: torch.dtype) -> Tensor:
    """(P,) whole positions -> (frequencies, P) complex values exp(-2 pi i f p / n): the first rows of a discrete
    Fourier transform of length n."""
    f = torch.arange(frequencies, device=positions.device)
    angle = ((f[:, None] * positions) % n).double() * (-2 * math.pi / n)
    return torch.polar(torch.ones_like(angle), angle).to(dtype.to_complex())


def spectrum(maps: Tensor, positions: Tensor, n: int) -> Tensor:
    """(X, Y, M) real maps, M of them side by side -> their (n // 2 + 1, n, M) spectra. positions: (X,) = (Y,), where
    rows and columns lie. Two matrix products: on a CPU these are faster than an FFT of a few dozen cells."""
    across, down = (_waves(positions, n, f, maps.dtype) for f in (n // 2 + 1, n))
    rows = torch.cat([across.real, across.imag]) @ maps.flatten(1)
    real, imaginary = rows.unflatten(1, maps.shape[1:]).chunk(2)
    return down @ torch.complex(real, imaginary)


def from_spectrum(values: Tensor, n: int, size: int) -> Tensor:
    """The inverse of `spectrum` at positions 0 to size - 1: (n // 2 + 1, n, M) -> (size, size, M)."""
    half = n // 2 + 1
    positions, dtype = torch.arange(size, device=values.device), values.real.dtype
    across, down = (_waves(positions, n, f, dtype).T / n for f in (half, n))
    columns = torch.view_as_real(down.conj().resolve_conj() @ values)  # (half, Y, M, 2)
    twice = torch.full((half,), 2.0, dtype=dtype, device=values.device)  # frequencies that stand for their negatives
    twice[0] = 1
    if n % 2 == 0:
        twice[-1] = 1
    back = torch.cat([across.real * twice, across.imag * twice], dim=1)
    parts = torch.cat([columns[..., 0], columns[..., 1]])
    return (back @ parts.flatten(1)).unflatten(1, parts.shape[1:])


class SpectralConv(nn.Module):
    """A convolution with a large kernel as products of spectra. Equals `conv2d` with padding k // 2.

    Maps are (X, Y, channels, B), the layout in which neither transform nor product moves memory. Kernel spectra are
    kept while not training.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, size: int) -> None:
        super().__init__()
        like = Conv(inputs, outputs, kernel)
        self.weight, self.bias, self.size = like.weight, like.bias, size
        self.n = size + kernel // 2  # the shortest period at which no kernel reaches around the border
        self._kept: tuple[tuple[int, int], Tensor] | None = None

    def train(self, mode: bool = True) -> SpectralConv:
        self._kept = None
        return super().train(mode)

    def _spectrum(self) -> Tensor:
        """(n // 2 + 1, n, O, I), the kernels' spectra."""
        if self.training:
            return self._prepared()
        now = (id(self.weight), self.weight._version)  # what `load_state_dict` or an optimizer changes
        if self._kept is None or self._kept[0] != now or self._kept[1].device != self.weight.device:
            self._kept = now, self._prepared()
        return self._kept[1]

    def _prepared(self) -> Tensor:
        o, i, k, _ = self.weight.shape
        offsets = k // 2 - torch.arange(k, device=self.weight.device)  # a correlation: mirrored kernels
        kernels = self.weight.permute(3, 2, 0, 1).reshape(k, k, o * i)
        return spectrum(kernels, offsets, self.n).unflatten(2, (o, i))

    def forward(self, maps: Tensor) -> Tensor:
        """(S, S, C, B) maps, x first -> (S, S, O, B)."""
        positions = torch.arange(self.size, device=maps.device)
        return self._product(spectrum(maps.flatten(2), positions, self.n).unflatten(2, maps.shape[2:]))

    def _product(self, values: Tensor) -> Tensor:
        """The same for maps given by their (n // 2 + 1, n, C, B) spectra."""
        product = self._spectrum() @ values
        out = from_spectrum(product.flatten(2), self.n, self.size).unflatten(2, product.shape[2:])
        return out if self.bias is None else out + self.bias[:, None]

    def from_cells(self, cells: Tensor) -> Tensor:
        """The same for one-hot maps given by their (B, C, 2) cells (BLANK: a map of zeros). In inference the kernels
        are gathered at their cells, which costs no transform and reads only what lies on the map."""
        if self.training:
            x, y = (cells[..., i].T.flatten() for i in range(2))  # (C * B,)
            across, down = (_waves(p, self.n, f, self.weight.dtype) for p, f in ((x, self.n // 2 + 1), (y, self.n)))
            one_hot = across[:, None] * (down * (x >= 0))
            return self._product(one_hot.unflatten(2, cells.shape[1::-1]))
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


class Denoiser(KeypointNet):
    """Keypoints in, one score map a keypoint out."""

    task = "denoising"
    takes_images = False

    def __init__(self, keypoints: int, size: int) -> None:
        super().__init__()
        self.keypoints, self.size, self.channels = keypoints, size, 0

    def forward(self, cells: Tensor) -> Tensor:
        """(B, K, 2) whole cells x, y in 0..size-1, or BLANK -> (B, K, S, S) pre-softmax scores."""
        if cells.shape[1:] != (self.keypoints, 2) or bool(((cells < BLANK) | (cells >= self.size)).any()):
            raise InputError(
                f"expected (B, {self.keypoints}, 2) cells from 0 to {self.size - 1} (or {BLANK}), "
                f"got {tuple(cells.shape)}"
            )
        return self.scores(cells)

    def scores(self, cells: Tensor) -> Tensor:
        raise NotImplementedError

    def log_likelihood(self, cells: Tensor, points: Tensor) -> Tensor | None:
        """Return the (B, K) log probabilities of the true (B, K, 2) points in pixels, as a share of a cell; None if
        the network has them as score maps only."""
        return None


class MapDenoiser(Denoiser):
    """The paper's denoiser: three large convolutions with ReLU, then 1x1: K -> width -> width -> width -> K
    (25,406,212 parameters for 68 points)."""

    def __init__(self, keypoints: int = 68, *, size: int = 80, kernel: int = 45, width: int = 64) -> None:
        super().__init__(keypoints, size)
        if kernel % 2 == 0 or kernel // 2 >= size:
            raise InputError(f"kernel={kernel} must be odd and reach less far than the {size}x{size} map")
        widths = [keypoints, width, width, width]
        self.large = nn.ModuleList(SpectralConv(a, b, kernel, size) for a, b in pairwise(widths))
        self.out = Conv(width, keypoints, 1)

    def multiply_adds(self) -> int:
        return self.size**2 * sum(p.numel() for n, p in self.named_parameters() if n.endswith("weight"))

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return split_weights("branch", self)

    def check_exportable(self, name: str) -> None:
        raise InputError(f"{name}: the paper's denoiser has no ONNX form; join denoiser-lite instead")

    def scores(self, cells: Tensor) -> Tensor:
        x = torch.relu(self.large[0].from_cells(cells))  # type: ignore[operator]
        for conv in list(self.large)[1:]:
            x = torch.relu(conv(x))
        return self.out(x.permute(3, 2, 1, 0).contiguous())

    def adapt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a denoiser of another size, such as 23x23 kernels on 40x40 cells, as this one's: kernels
        interpolated over the same share of the map. A sum over a map's cells grows with their number, the first
        layer's, over one cell a map, does not."""
        own, resized = self.state_dict(), dict(tensors)
        for name, kernels in tensors.items():
            if name in own and kernels.ndim == 4 and kernels.shape[:2] == own[name].shape[:2]:
                k = own[name].shape[-1]
                if kernels.shape[-1] != k:
                    wider = F.interpolate(kernels, size=(k, k), mode="bilinear", align_corners=True)
                    cells = 1.0 if name.startswith("large.0.") else ((kernels.shape[-1] - 1) / (k - 1)) ** 2
                    resized[name] = wider * cells
        return resized


def solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """(B, M, M) symmetric positive matrices, (B, M) -> (B, M). An exported graph has no solver: there the inverse is
    found by `newton_inverse`."""
    if torch.compiler.is_exporting():
        return (newton_inverse(matrix) @ right[..., None])[..., 0]
    return torch.linalg.solve(matrix, right)


def newton_inverse(matrix: Tensor, steps: int = 20) -> Tensor:
    """Inverses of symmetric positive matrices by matrix products alone (Newton and Schulz), scaled to a unit diagonal
    first. Each step squares the error; 20 are enough for condition numbers of 1e5 after scaling."""
    one = torch.eye(matrix.shape[1], device=matrix.device, dtype=matrix.dtype)
    scale = (matrix * one).sum(dim=2).rsqrt()
    scaled = matrix * scale[:, :, None] * scale[:, None]
    inverse = one / scaled.abs().sum(dim=2).amax(dim=1)[:, None, None]
    for _ in range(steps):
        inverse = inverse @ (2 * one - scaled @ inverse)
    return inverse * scale[:, :, None] * scale[:, None]


class PointDenoiser(Denoiser):
    """A transformer whose tokens are the points: each answers with a mixture of Gaussians and a constant, whose
    logarithm, laid out as a map, are its scores.

    Before each layer a linear shape model is fitted to the given points: a similarity and the weights of its modes,
    each point counted by how much the network trusts it so far. A token is told where its point lies relative to that
    fit, in the shape's own frame, and the answers are given there too. So a turned, moved or larger face gives the
    answer turned, moved or larger.
    """

    FEATURES = 6  # of a coordinate: itself and its squashed multiples, coarse to fine

    def __init__(
        self, keypoints: int = 68, *, size: int = 80, width: int = 96, layers: int = 4, heads: int = 4, parts: int = 2,
        modes: int = 30,
    ) -> None:  # fmt: skip
        super().__init__(keypoints, size)
        if width % heads:
            raise InputError(f"width={width} must be a multiple of heads={heads}")
        self.parts = parts
        self.name = nn.Parameter(0.02 * torch.randn(keypoints, width))
        self.blank = nn.Parameter(0.02 * torch.randn(width))
        self.shape = nn.Parameter(torch.randn(keypoints, 2))
        self.modes = nn.Parameter(0.02 * torch.randn(min(modes, 2 * keypoints), 2 * keypoints))
        self.noise = nn.Parameter(torch.tensor(-6.0))  # the logarithm of a coordinate's variance
        self.place = nn.ModuleList(nn.Linear(2 * self.FEATURES + 2, width) for _ in range(layers + 1))
        self.trust = nn.ModuleList(nn.Linear(width, 1) for _ in range(layers + 1))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.answer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6 * parts + 1))

    def initialize(self, points: np.ndarray, mask: np.ndarray) -> None:
        """Begin with the linear shape model of the training points."""
        model = ShapeModel.fit(points.astype(float), mask, len(self.modes))
        with torch.no_grad():
            self.shape.copy_(torch.from_numpy(model.mean))
            self.modes[: len(model.modes)].copy_(torch.from_numpy(model.modes).flatten(1))
            self.noise.fill_(math.log(model.noise))

    def multiply_adds(self) -> int:
        linear = sum(p.numel() for n, p in self.named_parameters() if p.ndim == 2 and n.endswith("weight"))
        between = 2 * self.keypoints * self.name.shape[1] * len(self.layers)
        fits = 2 * len(self.modes) ** 2 * (len(self.layers) + 1)
        return self.keypoints * (linear + between + fits + 5 * self.parts * self.size**2)

    def _similarity(self, shape: Tensor, at: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weighted least-squares similarity of (B, K, 2) shapes to points: (B, 2, 2) linear, (B, 1, 2) shift."""
        weight = weight / weight.sum(dim=1, keepdim=True)  # (B, K, 1)
        mean_shape, mean_at = (weight * shape).sum(1, keepdim=True), (weight * at).sum(1, keepdim=True)
        a, b = shape - mean_shape, at - mean_at
        spread = (weight * a * a).sum(dim=(1, 2)) + 1e-6
        cos = (weight * a * b).sum(dim=(1, 2)) / spread
        sin = (weight[..., 0] * (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])).sum(dim=1) / spread
        linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        return linear, mean_at - mean_shape @ linear.transpose(1, 2)

    @staticmethod
    def _into(at: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
        """Points into the shape's frame."""
        size = (linear**2).sum(dim=(1, 2), keepdim=True).clamp_min(2e-3)  # twice the scale's square
        return ((at - shift) @ linear) * (2 / size)

    def _fit(self, shape: Tensor, at: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One round: similarity of the last shape, weights of the modes, similarity again."""
        rest = (self._into(at, *self._similarity(shape, at, weight)) - self.shape).flatten(1)
        counted = self.modes * weight.expand(-1, -1, 2).flatten(1)[:, None]  # (B, M, 2K)
        ridge = self.noise.exp() * torch.eye(len(self.modes), device=at.device)
        found = solve_positive(counted @ self.modes.T + ridge, (counted @ rest[..., None])[..., 0])
        shape = self.shape + (found @ self.modes).unflatten(1, (self.keypoints, 2))
        return shape, *self._similarity(shape, at, weight)

    def mixture(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(B, K, 2) cells -> log shares (B, K, parts + 1; the constant's last), then of each part, where the map is
        [-1, 1]: means (B, K, parts, 2), inverse deviations (B, K, parts, 2) and tilts (B, K, parts)."""
        there = (cells[..., :1] >= 0).to(self.name.dtype)
        at = self._unit(cells + 0.5)
        x = self.name + (1 - there) * self.blank
        multiples = 2.0 ** torch.arange(self.FEATURES - 1, device=at.device)
        weight = there + 1e-6  # a set without any point is answered too
        shape = self.shape.expand(cells.shape[0], -1, -1)
        linear, shift = self._similarity(shape, at, weight)  # nothing is trusted yet: the mean shape alone
        for place, trust, layer in zip(self.place, self.trust, [*self.layers, nn.Identity()], strict=True):
            rest = (self._into(at, linear, shift) - shape).clamp(-4, 4)
            features = torch.cat([rest[..., None], torch.tanh(rest[..., None] * multiples)], dim=-1)
            x = layer(x + there * place(torch.cat([features.flatten(2), shape - self.shape], dim=2)))
            weight = there * torch.sigmoid(trust(x)) + 1e-6
            shape, linear, shift = self._fit(shape, at, weight)
        x = self.answer(x)
        parts = x[..., :-1].unflatten(-1, (self.parts, 6))
        share = torch.cat([parts[..., 0], x[..., -1:]], dim=-1).log_softmax(dim=-1)
        mean = shape[:, :, None] + 0.1 * parts[..., 1:3]
        mean = (mean.flatten(1, 2) @ linear.transpose(1, 2) + shift).unflatten(1, (self.keypoints, self.parts))
        inverse = torch.exp(parts[..., 3:5] + 2).clamp(max=1.5 * self.size)  # a deviation is a third of a cell or more
        return share, mean, inverse, parts[..., 5]

    def _unit(self, position: Tensor) -> Tensor:
        return position * (2 / self.size) - 1

    def _log_cell(self, share: Tensor, inverse: Tensor) -> Tensor:
        """A part's log probability of the cell at its mean, about: the density there times a cell's area."""
        return share + inverse.log().sum(dim=-1) + math.log(4 / self.size**2 / (2 * math.pi))

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        others = [self.name, self.blank, self.shape, self.modes, self.noise, *self.trust.parameters()]
        return merge_groups(split_weights("branch", self.place, self.layers, self.answer), {"none": others})

    def log_likelihood(self, cells: Tensor, points: Tensor) -> Tensor:
        share, mean, inverse, tilt = self.mixture(cells)
        u, v = (inverse * (self._unit(points)[:, :, None] - mean)).unbind(dim=-1)
        parts = self._log_cell(share[..., :-1], inverse) - (u * u + (v + tilt * u) ** 2) / 2
        constant = share[..., -1:] - 2 * math.log(self.size)
        return torch.cat([parts, constant], dim=-1).logsumexp(dim=-1)

    def scores(self, cells: Tensor) -> Tensor:
        share, mean, inverse, tilt = self.mixture(cells)
        grid = self._unit(torch.arange(self.size, device=cells.device) + 0.5)
        u, v = (inverse[..., i : i + 1] * (grid - mean[..., i : i + 1]) for i in range(2))  # (B, K, parts, S)
        top = self._log_cell(share[..., :-1], inverse)
        total = (share[..., -1] - 2 * math.log(self.size))[..., None, None].expand(-1, -1, self.size, self.size)
        for i in range(self.parts):
            far = (v[:, :, i, :, None] + (tilt[:, :, i, None] * u[:, :, i])[:, :, None]) ** 2 + u[:, :, i, None] ** 2
            total = torch.logaddexp(total, top[:, :, i, None, None] - far / 2)
        return total
