"""The denoisers (section 4), which predict each keypoint from the other keypoints, without an image.

`MapDenoiser` is the paper's network of 45x45 convolutions. `PointDenoiser` is a much smaller transformer over the
keypoints (not in the paper).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.models.base import KeypointNet, check_mirror, merge_groups, split_weights
from recombinator.models.layers import Conv
from recombinator.models.spectral import SpectralConv
from recombinator.transforms.samples import BLANK
from recombinator.transforms.shapes import ShapeModel
from recombinator.utils.errors import InputError


class Denoiser(KeypointNet):
    """Base class of networks that predict one score map per keypoint from the cells of all keypoints.

    Args:
        keypoints: K.
        size: Side of the score maps in cells, S.
        mirror: `KeypointSet.mirrored`: predictions average the scores of the points and of their mirror image, at twice
            the cost (not in the paper; not applied in training mode).
    """

    task = "denoising"
    takes_images = False

    def __init__(self, keypoints: int, size: int, mirror: Sequence[int] = ()) -> None:
        super().__init__()
        self.keypoints, self.size, self.channels, self.mirror = keypoints, size, 0, list(mirror)
        check_mirror(mirror, keypoints)

    def forward(self, cells: Tensor) -> Tensor:
        """Check the input and compute the score maps.

        Args:
            cells: (B, K, 2) integer cells x, y from 0 to size - 1, or BLANK for an unknown keypoint.

        Returns:
            (B, K, S, S) pre-softmax scores.

        Raises:
            InputError: Wrong shape, or a cell outside the map.
        """
        if cells.shape[1:] != (self.keypoints, 2) or bool(((cells < BLANK) | (cells >= self.size)).any()):
            raise InputError(
                f"expected (B, {self.keypoints}, 2) cells from 0 to {self.size - 1} (or {BLANK}), "
                f"got {tuple(cells.shape)}"
            )
        return self.averaged(cells)

    def averaged(self, cells: Tensor) -> Tensor:
        """Compute the score maps as `forward` does, without its checks."""
        scores = self.scores(cells)
        if not self.mirror or self.training:
            return scores
        x, y = cells[:, self.mirror].unbind(dim=2)
        mirrored = torch.stack([torch.where(x == BLANK, BLANK, self.size - 1 - x), y], dim=2)
        return (scores + self.scores(mirrored).flip(-1)[:, self.mirror]) / 2

    def scores(self, cells: Tensor) -> Tensor:
        """Compute (B, K, S, S) pre-softmax scores from valid (B, K, 2) cells."""
        raise NotImplementedError

    def log_likelihood(self, cells: Tensor, points: Tensor) -> Tensor | None:
        """Compute the log-likelihood of true points without building score maps, if the network can.

        Args:
            cells: (B, K, 2) input cells.
            points: (B, K, 2) true points in pixels.

        Returns:
            (B, K) log probability densities per cell; None for a network that only has score maps.
        """
        return None


class MapDenoiser(Denoiser):
    """The paper's denoiser (section 4, Fig. 2): three large convolutions with ReLU, then a 1x1 convolution.

    Its channels are K -> width -> width -> width -> K; with 68 keypoints it has 25,406,212 parameters.

    Args:
        keypoints: K.
        size: Side of the score maps in cells.
        kernel: Kernel side of the large convolutions in cells, odd.
        width: Channels of the hidden layers.
        mirror: See `Denoiser`.

    Raises:
        InputError: The kernel is even or too large for the map.
    """

    def __init__(
        self, keypoints: int = 68, *, size: int = 80, kernel: int = 45, width: int = 64, mirror: Sequence[int] = ()
    ) -> None:  # fmt: skip
        super().__init__(keypoints, size, mirror)
        if kernel % 2 == 0 or kernel // 2 >= size:
            raise InputError(f"kernel={kernel} must be odd and less than twice the map's side, {size}")
        widths = [keypoints, width, width, width]
        self.large = nn.ModuleList(SpectralConv(a, b, kernel, size) for a, b in pairwise(widths))
        self.out = Conv(width, keypoints, 1)

    def multiply_adds(self) -> int:
        return self.size**2 * sum(p.numel() for n, p in self.named_parameters() if n.endswith("weight"))

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return split_weights("branch", self)

    def check_exportable(self, name: str) -> None:
        raise InputError(f"{name}: the paper's denoiser cannot be exported to ONNX; join denoiser-lite instead")

    def scores(self, cells: Tensor) -> Tensor:
        x = torch.relu(self.large[0].from_cells(cells))  # type: ignore[operator]
        for conv in list(self.large)[1:]:
            x = torch.relu(conv(x))
        return self.out(x.permute(3, 2, 1, 0).contiguous())

    def adapt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Interpolate the kernels of a denoiser of another size, such as 23x23 kernels on 40x40 cells.

        Each kernel covers the same share of the map as before. It has more cells to sum over, so it is divided by the
        growth in cells, except in the first layer: its input maps have at most one nonzero cell.
        """
        own, resized = self.state_dict(), dict(tensors)
        for name, kernels in tensors.items():
            if name in own and kernels.ndim == 4 and kernels.shape[:2] == own[name].shape[:2]:
                k = own[name].shape[-1]
                if kernels.shape[-1] != k:
                    interpolated = F.interpolate(kernels, size=(k, k), mode="bilinear", align_corners=True)
                    factor = 1.0 if name.startswith("large.0.") else ((kernels.shape[-1] - 1) / (k - 1)) ** 2
                    resized[name] = interpolated * factor
        return resized


def solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve (B, M, M) symmetric positive-definite systems for (B, M) right-hand sides.

    ONNX has no solver, so an exported graph multiplies by `newton_inverse`.
    """
    if torch.compiler.is_exporting():
        return (newton_inverse(matrix) @ right[..., None])[..., 0]
    return torch.linalg.solve(matrix, right)


def newton_inverse(matrix: Tensor, steps: int = 20) -> Tensor:
    """Invert symmetric positive-definite matrices by matrix products only (Newton-Schulz iteration).

    The matrices are scaled to a unit diagonal first. Convergence is quadratic: each step squares the error.

    Args:
        matrix: (B, M, M) matrices.
        steps: Iterations; 20 are enough for condition numbers of 1e5 after scaling.

    Returns:
        (B, M, M) inverses.
    """
    one = torch.eye(matrix.shape[1], device=matrix.device, dtype=matrix.dtype)
    scale = (matrix * one).sum(dim=2).rsqrt()
    scaled = matrix * scale[:, :, None] * scale[:, None]
    inverse = one / scaled.abs().sum(dim=2).amax(dim=1)[:, None, None]
    for _ in range(steps):
        inverse = inverse @ (2 * one - scaled @ inverse)
    return inverse * scale[:, :, None] * scale[:, None]


class PointDenoiser(Denoiser):
    """A transformer with one token per keypoint (denoiser-lite; not in the paper).

    The output for each keypoint is a mixture of Gaussians and a uniform distribution. Its logarithm on the grid is the
    score map.

    Before each layer a linear shape model is fitted to the input points by weighted least squares: a similarity
    transform and the coefficients of the modes. The network predicts the weight of each point. (The first fit has the
    similarity transform only, and equal weights.) Each token receives its point's residual from the fit, in the
    coordinate frame of the shape model, and its output is in that frame too. So the prediction rotates, moves and
    scales with the face.

    Args:
        keypoints: K.
        size: Side of the score maps in cells.
        width: Features per token.
        layers: Transformer layers.
        heads: Attention heads.
        parts: Gaussians per keypoint.
        modes: Modes of the linear shape model.
        mirror: See `Denoiser`.

    Raises:
        InputError: `width` is not a multiple of `heads`.
    """

    FEATURES = 6  # per coordinate: the coordinate and tanh of its multiples, coarse to fine

    def __init__(
        self, keypoints: int = 68, *, size: int = 80, width: int = 96, layers: int = 4, heads: int = 4, parts: int = 2,
        modes: int = 30, mirror: Sequence[int] = (),
    ) -> None:  # fmt: skip
        super().__init__(keypoints, size, mirror)
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
        """Set the shape model to the linear shape model of the training points."""
        model = ShapeModel.fit(points.astype(float), mask, len(self.modes))
        with torch.no_grad():
            self.shape.copy_(torch.from_numpy(model.mean))
            self.modes[: len(model.modes)].copy_(torch.from_numpy(model.modes).flatten(1))
            self.noise.fill_(math.log(model.noise))

    def multiply_adds(self) -> int:
        linear = sum(p.numel() for n, p in self.named_parameters() if p.ndim == 2 and n.endswith("weight"))
        attention = 2 * self.keypoints * self.name.shape[1] * len(self.layers)
        fits = 2 * len(self.modes) ** 2 * (len(self.layers) + 1)
        return self.keypoints * (linear + attention + fits + 5 * self.parts * self.size**2)

    def _similarity(self, shape: Tensor, at: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Fit the similarity transform that maps shapes to points, by weighted least squares.

        Args:
            shape: (B, K, 2) shapes.
            at: (B, K, 2) points.
            weight: (B, K, 1) weights.

        Returns:
            (B, 2, 2) linear part and (B, 1, 2) shift.
        """
        weight = weight / weight.sum(dim=1, keepdim=True)
        mean_shape, mean_at = (weight * shape).sum(1, keepdim=True), (weight * at).sum(1, keepdim=True)
        a, b = shape - mean_shape, at - mean_at
        spread = (weight * a * a).sum(dim=(1, 2)) + 1e-6
        cos = (weight * a * b).sum(dim=(1, 2)) / spread
        sin = (weight[..., 0] * (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])).sum(dim=1) / spread
        linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        return linear, mean_at - mean_shape @ linear.transpose(1, 2)

    @staticmethod
    def _to_shape_frame(at: Tensor, linear: Tensor, shift: Tensor) -> Tensor:
        """Map (B, K, 2) points into the frame of the shape: the inverse of a similarity transform."""
        squares = (linear**2).sum(dim=(1, 2), keepdim=True).clamp_min(2e-3)  # twice the square of the scale
        return ((at - shift) @ linear) * (2 / squares)

    def _fit(self, shape: Tensor, at: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run one round of the shape fit: similarity of the last shape, coefficients of the modes, similarity again.

        Returns:
            (B, K, 2) shape, then the linear part and shift of its similarity transform.
        """
        residual = (self._to_shape_frame(at, *self._similarity(shape, at, weight)) - self.shape).flatten(1)
        weighted = self.modes * weight.expand(-1, -1, 2).flatten(1)[:, None]  # (B, M, 2K)
        ridge = self.noise.exp() * torch.eye(len(self.modes), device=at.device)
        coefficients = solve_positive(weighted @ self.modes.T + ridge, (weighted @ residual[..., None])[..., 0])
        shape = self.shape + (coefficients @ self.modes).unflatten(1, (self.keypoints, 2))
        return shape, *self._similarity(shape, at, weight)

    def mixture(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute the predicted distribution of each keypoint, in coordinates where the map is [-1, 1].

        Args:
            cells: (B, K, 2) cells.

        Returns:
            (B, K, parts + 1) log mixture weights, the uniform one last. Then of the Gaussians: (B, K, parts, 2) means,
            (B, K, parts, 2) inverse standard deviations and (B, K, parts) shears of y by x.
        """
        known = (cells[..., :1] >= 0).to(self.name.dtype)
        at = self._unit(cells + 0.5)
        x = self.name + (1 - known) * self.blank
        multiples = 2.0 ** torch.arange(self.FEATURES - 1, device=at.device)
        weight = known + 1e-6  # not zero, so that the fit exists without any known point
        shape = self.shape.expand(cells.shape[0], -1, -1)
        linear, shift = self._similarity(shape, at, weight)  # all known points have equal weight at first
        for place, trust, layer in zip(self.place, self.trust, [*self.layers, nn.Identity()], strict=True):
            residual = (self._to_shape_frame(at, linear, shift) - shape).clamp(-4, 4)
            features = torch.cat([residual[..., None], torch.tanh(residual[..., None] * multiples)], dim=-1)
            x = layer(x + known * place(torch.cat([features.flatten(2), shape - self.shape], dim=2)))
            weight = known * torch.sigmoid(trust(x)) + 1e-6
            shape, linear, shift = self._fit(shape, at, weight)
        x = self.answer(x)
        parts = x[..., :-1].unflatten(-1, (self.parts, 6))
        share = torch.cat([parts[..., 0], x[..., -1:]], dim=-1).log_softmax(dim=-1)
        mean = shape[:, :, None] + 0.1 * parts[..., 1:3]
        mean = (mean.flatten(1, 2) @ linear.transpose(1, 2) + shift).unflatten(1, (self.keypoints, self.parts))
        inverse = torch.exp(parts[..., 3:5] + 2).clamp(max=1.5 * self.size)  # deviations of a third of a cell or more
        return share, mean, inverse, parts[..., 5]

    def _unit(self, position: Tensor) -> Tensor:
        """Convert pixels to coordinates where the map is [-1, 1]."""
        return position * (2 / self.size) - 1

    def _log_cell(self, share: Tensor, inverse: Tensor) -> Tensor:
        """Log probability of the cell at a Gaussian's mean, approximated by the density there times the cell's area."""
        return share + inverse.log().sum(dim=-1) + math.log(4 / self.size**2 / (2 * math.pi))

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        others = [self.name, self.blank, self.shape, self.modes, self.noise, *self.trust.parameters()]
        return merge_groups(split_weights("branch", self.place, self.layers, self.answer), {"none": others})

    def log_likelihood(self, cells: Tensor, points: Tensor) -> Tensor:
        share, mean, inverse, shear = self.mixture(cells)
        u, v = (inverse * (self._unit(points)[:, :, None] - mean)).unbind(dim=-1)
        parts = self._log_cell(share[..., :-1], inverse) - (u * u + (v + shear * u) ** 2) / 2
        constant = share[..., -1:] - 2 * math.log(self.size)
        return torch.cat([parts, constant], dim=-1).logsumexp(dim=-1)

    def scores(self, cells: Tensor) -> Tensor:
        share, mean, inverse, shear = self.mixture(cells)
        grid = self._unit(torch.arange(self.size, device=cells.device) + 0.5)
        u, v = (inverse[..., i : i + 1] * (grid - mean[..., i : i + 1]) for i in range(2))  # (B, K, parts, S)
        peak = self._log_cell(share[..., :-1], inverse)
        total = (share[..., -1] - 2 * math.log(self.size))[..., None, None].expand(-1, -1, self.size, self.size)
        for i in range(self.parts):
            across, down = u[:, :, i, None], v[:, :, i, :, None]
            squares = (down + shear[:, :, i, None, None] * across) ** 2 + across**2
            total = torch.logaddexp(total, peak[:, :, i, None, None] - squares / 2)
        return total
