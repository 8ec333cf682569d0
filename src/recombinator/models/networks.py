"""SumNet (Eq. 1) and Recombinator Networks (Eq. 3), built from one definition of trunk and branches.

A network is described by a tuple of `Level`s, finest first. Every network maps (B, channels, S, S) images with values 0
to 255 to (B, K, S, S) pre-softmax scores, the paper's score maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.models.base import KeypointNet, check_input, check_mirror, merge_groups, split_weights
from recombinator.models.layers import (
    Conv,
    CountedConv,
    LearnedUpsampling,
    conv_over_concat,
    only_maxima,
    pool,
    shift_map,
    smooth_scores,
    upsample,
)  # fmt: skip
from recombinator.models.lcn import NORMALIZATIONS
from recombinator.utils.errors import InputError, check_choice


@dataclass(frozen=True)
class Level:
    """One resolution of a network.

    Attributes:
        trunk: Output channels of the trunk convolution.
        branch: (output channels, kernel side) of each branch convolution. A convolution that gives the score maps has K
            channels instead and no ReLU: the last one of every branch in SumNet, of the finest branch in RCN.
        trunk_kernel: Kernel side of the trunk convolution.
    """

    trunk: int
    branch: tuple[tuple[int, int], ...]
    trunk_kernel: int = 3

    def scaled(self, factor: float) -> Level:
        """Return the level with all channel counts multiplied by `factor`, at least 1."""

        def scale(maps: int) -> int:
            return max(1, round(maps * factor))

        return replace(self, trunk=scale(self.trunk), branch=tuple((scale(maps), k) for maps, k in self.branch))


class ScoreMapNet(KeypointNet):
    """The trunk T and everything else that SumNet and RCN share.

    A trunk convolution that only masked-out coarser branches would use is not built.

    Args:
        levels: Resolutions, finest first.
        keypoints: K.
        size: Side of the input in pixels.
        channels: Input channels: 1 (gray) or 3 (RGB).
        mask: 1 for each branch to keep and 0 for each to leave out, coarsest first as in Table 1.
        upsampling: "tile" or "bilinear" (footnote 3); RCN also "learned".
        norm: Input normalization: "image", "batch" or "global" (see `lcn`).
        fold: The finest level has side S / fold: squares of fold x fold pixels enter as channels, and squares of
            fold x fold score cells leave as channels (not in the paper).
        mirror: `KeypointSet.mirrored`: predictions average the scores of the image and of its mirror image, at twice
            the cost (not in the paper; not applied in training mode).
        shift: Predictions average the scores of the image and of the image shifted by `shift` pixels towards each
            corner, at five times the cost (not in the paper; not applied in training mode).
        smooth: Predictions smooth the probabilities by a Gaussian with this standard deviation in cells; 0 for none
            (not in the paper; not applied in training mode).

    Raises:
        InputError: An option has an invalid value, or the input is too small for the poolings.
    """

    skip = False  # whether a branch passes on what it received (RCN)

    def __init__(
        self, levels: tuple[Level, ...], keypoints: int, *, size: int = 80, channels: int = 1,
        mask: tuple[int, ...] | None = None, upsampling: str = "tile", norm: str = "image", fold: int = 1,
        mirror: Sequence[int] = (), shift: int = 0, smooth: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        check_choice("upsampling", upsampling, ("tile", "bilinear", "learned"))
        check_choice("norm", norm, NORMALIZATIONS)
        if keypoints < 1 or channels < 1:
            raise InputError(f"keypoints={keypoints} and channels={channels} must be 1 or more")
        finest_first = tuple(reversed(mask)) if mask is not None else (1,) * len(levels)
        if len(finest_first) != len(levels) or not any(finest_first) or not set(finest_first) <= {0, 1}:
            raise InputError(
                f"mask {mask} must have {len(levels)} entries 0 or 1, coarsest branch first, at least one of them 1"
            )
        check_mirror(mirror, keypoints)
        if not 0 <= shift <= size // 4:
            raise InputError(f"shift={shift} must be from 0 to {size // 4} pixels, a quarter of the input")
        if not 0 <= smooth <= size / 8:
            raise InputError(f"smooth={smooth} must be from 0 to {size / 8:g} cells, an eighth of the input")
        if fold < 1 or size % fold:
            raise InputError(f"fold={fold} must be 1 or more and divide the input size {size}")
        self.included = [i for i, on in enumerate(finest_first) if on]
        self.sizes = [(size // fold) // 2**i for i in range(len(levels))]
        if self.sizes[-1] < 1:
            smallest = fold * 2 ** (len(levels) - 1)
            raise InputError(
                f"input size {size} is too small for {len(levels)} branches: {len(levels) - 1} poolings need "
                f"at least {smallest} pixels; use a larger size or fewer branches"
            )
        self.size, self.channels, self.keypoints, self.upsampling = size, channels, keypoints, upsampling
        self.fold, self.mirror, self.shift, self.smooth = fold, list(mirror), shift, smooth
        self.layout = torch.channels_last  # memory format of the maps: the fast one on CPUs and GPUs
        self.fused = True
        self.branch = nn.ModuleDict()  # by level; filled by the subclasses
        self.norm: nn.Module = NORMALIZATIONS[norm]()
        widths = [channels * fold**2] + [level.trunk for level in levels]
        self.trunk = nn.ModuleList(
            Conv(widths[i], widths[i + 1], levels[i].trunk_kernel) for i in range(self.included[-1] + 1)
        )

    @property
    def tile(self) -> int:  # type: ignore[override]
        """Side in cells of the squares over which a score is constant.

        It is more than 1 where the finest branches are masked out and the coarser output is tiled.
        """
        factor, rest = divmod(self.size, self.fold * self.sizes[self.included[0]])
        return factor if self.upsampling == "tile" and not rest and not self.shift and not self.smooth else 1

    def features(self, x: Tensor) -> list[Tensor]:
        """Compute the trunk.

        Args:
            x: (B, channels, S, S) normalized images.

        Returns:
            Trunk maps T^(R) to T^(1), finest first.
        """
        check_input(x, self.channels, self.size)
        maps: list[Tensor] = []
        if self.fold > 1:
            x = F.pixel_unshuffle(x, self.fold).contiguous(memory_format=self.layout)
        for i, conv in enumerate(self.trunk):
            x = torch.relu_(conv(pool(x) if i else x))
            maps.append(x)
        return maps

    def scores(self, maps: list[Tensor]) -> Tensor:
        """Compute (B, K, S, S) pre-softmax scores from the trunk maps that `features` returns."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Compute the score maps of a batch, with the network's shifts, mirror image and smoothing.

        Args:
            x: (B, channels, S, S) images with values 0 to 255, of any real dtype.

        Returns:
            (B, K, S, S) pre-softmax scores.
        """
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.float())
        if self.training:
            return self._one_position(x)
        scores = self._shifted(x) if self.shift else self._one_position(x)
        return smooth_scores(scores, self.smooth) if self.smooth else scores

    def _shifted(self, x: Tensor) -> Tensor:
        """Scores of normalized images, averaged over the image as it is and shifted towards each corner."""
        corners = [(right, down) for right in (-self.shift, self.shift) for down in (-self.shift, self.shift)]
        scores = self._one_position(x)
        for right, down in corners:
            scores = scores + shift_map(self._one_position(shift_map(x, right, down)), -right, -down)
        return scores / (1 + len(corners))

    def _one_position(self, x: Tensor) -> Tensor:
        """Scores of normalized images, averaged with those of the mirror images if the network has `mirror`."""
        scores = self.scores(self.features(x.contiguous(memory_format=self.layout)))
        if not self.mirror or self.training:
            return scores
        mirrored = self.scores(self.features(x.flip(-1).contiguous(memory_format=self.layout)))
        return (scores + mirrored.flip(-1)[:, self.mirror]) / 2

    def branches(self) -> Iterator[tuple[int, list[Conv]]]:
        """Yield (level, convolutions) of every included branch, finest first."""
        for i in self.included:
            yield i, cast(list[Conv], list(cast(nn.ModuleList, self.branch[str(i)])))

    def adapt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Expand the first and last layer of weights with `fold=1` to this network's fold, as a close start."""
        own, repeated, f = self.state_dict(), dict(tensors), self.fold**2
        for name, value in tensors.items():
            shape = own[name].shape if name in own else value.shape
            if name.startswith("trunk.0.") and value.ndim == 4 and shape[1] == value.shape[1] * f:
                repeated[name] = value.repeat_interleave(f, dim=1) / f  # the pixels of a square share the kernel
            elif name.startswith("branch.0.") and shape[0] == value.shape[0] * f:
                repeated[name] = value.repeat_interleave(f, dim=0)  # the cells of a square start with its score
        return repeated

    def ends_in_scores(self, level: int) -> bool:
        """Return whether the last convolution of that level's branch gives score maps, without a ReLU."""
        raise NotImplementedError

    def rectified(self) -> list[nn.Conv2d]:
        score_convs = {convs[-1] for i, convs in self.branches() if self.ends_in_scores(i)}
        return [c for c in (*self.trunk, *(c for _, convs in self.branches() for c in convs)) if c not in score_convs]

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return merge_groups(split_weights("branch", self.branch), split_weights("trunk", self.trunk))

    def channel_readers(self) -> dict[nn.Conv2d, list[tuple[nn.Conv2d, int]]]:
        readers: dict[nn.Conv2d, list[tuple[nn.Conv2d, int]]] = {conv: [] for conv in self.rectified()}
        trunk = cast(list[Conv], list(self.trunk))
        for conv, reader in pairwise(trunk):
            readers[conv].append((reader, 0))
        passed: list[Conv] = []  # their maps enter the next finer branch, in the order of its input channels
        for level, convs in reversed(list(self.branches())):
            start = 0
            for source in (trunk[level], *passed):
                readers[source].append((convs[0], start))
                start += source.out_channels
            for conv, reader in pairwise(convs):
                readers[conv].append((reader, 0))
            passed = [convs[-1], *(passed if self.skip else [])] if not self.ends_in_scores(level) else []
        return readers

    def plain(self) -> Self:
        self.layout, self.fused = torch.contiguous_format, False  # ONNX Runtime chooses the layout itself
        return self

    def layers(self) -> list[CountedConv]:
        """List every convolution, trunk first, then branches from the finest."""

        def row(name: str, conv: nn.Module, level: int) -> CountedConv:
            c = cast(Conv, conv)
            return CountedConv(name, c.in_channels, c.out_channels, c.kernel_size[0], self.sizes[level])

        trunk = [row(f"trunk{i + 1}", conv, i) for i, conv in enumerate(self.trunk)]
        return trunk + [
            row(f"{self.sizes[i]}.{j + 1}", conv, i) for i, convs in self.branches() for j, conv in enumerate(convs)
        ]

    def multiply_adds(self) -> int:
        """Return the multiply-adds per image, without pooling, normalization and upsampling."""
        return self._multiply_adds_per_pass() * (2 if self.mirror else 1) * (5 if self.shift else 1)

    def _multiply_adds_per_pass(self) -> int:
        return sum(row.multiply_adds for row in self.layers())


class SumNet(ScoreMapNet):
    """P(Y_k | x) = softmax(sum_r alpha_rk M_k^(r)), Eq. 1.

    Args:
        levels: Resolutions, finest first.
        keypoints: K.
        alpha: "map" has one weight per branch and keypoint (the default of the authors' code); "pixel" one per branch,
            keypoint and pixel (the text under Eq. 1). Both start from U[0, 1).
        **shared: Options of `ScoreMapNet`.
    """

    def __init__(self, levels: tuple[Level, ...], keypoints: int, *, alpha: str = "map", **shared: Any) -> None:
        super().__init__(levels, keypoints, **shared)
        if self.upsampling == "learned" or self.fold > 1:
            raise InputError("upsampling='learned' and fold need an RCN; use upsampling='tile' or 'bilinear', fold=1")
        for i in self.included:
            kernel = levels[i].branch[-1][1]
            widths = [levels[i].trunk] + [w for w, _ in levels[i].branch[:-1]]
            kernels = [k for _, k in levels[i].branch]
            convs = [Conv(a, b, k) for a, b, k in zip(widths, widths[1:], kernels, strict=False)]
            self.branch[str(i)] = nn.ModuleList([*convs, Conv(widths[-1], keypoints, kernel)])
        shapes = {"map": (1, 1), "pixel": (self.size, self.size)}
        check_choice("alpha", alpha, shapes)
        self.alpha = nn.Parameter(torch.rand(len(self.included), keypoints, *shapes[alpha]))

    @property
    def tile(self) -> int:  # type: ignore[override]
        return super().tile if self.alpha.shape[-1] == 1 else 1

    def _multiply_adds_per_pass(self) -> int:
        return super()._multiply_adds_per_pass() + len(self.included) * self.keypoints * self.size**2  # alpha

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return {**super().weight_groups(), "alpha": [self.alpha]}

    def ends_in_scores(self, level: int) -> bool:
        return True

    def branch_maps(self, maps: list[Tensor]) -> list[Tensor]:
        """Compute the score maps M^(r) of every included branch from the trunk maps.

        Returns:
            (B, K, S, S) score maps, finest branch first.
        """
        out = []
        for i, (*hidden, last) in self.branches():
            x = maps[i]
            for conv in hidden:
                x = torch.relu_(conv(x))
            out.append(upsample(last(x), self.size, self.upsampling))
        return out

    def scores(self, maps: list[Tensor]) -> Tensor:
        total = torch.zeros((), device=maps[0].device)
        for weight, m in zip(self.alpha, self.branch_maps(maps), strict=True):
            total = total + weight * m
        return total


class RCN(ScoreMapNet):
    """M^(r) = branch(concat(T^(r), up(M^(r-1)))), P(Y_k | x) = softmax(M_k^(R)), Eq. 3.

    Where a branch is masked out, the coarser output is upsampled by the combined factor. Where the finest branch is
    masked out, the finest included one gives the K score maps.

    `upsampling="learned"` and `keep_maxima` reproduce the network of the authors' released 300-W weights, which the
    paper does not describe.

    Args:
        levels: Resolutions, finest first.
        keypoints: K.
        skip: Skip connections (section 3.2): a branch passes on its own output, concatenated with everything that
            it received (newest first). So the finest branch sees the output of every coarser one.
        keep_maxima: In the concatenation, trunk maps keep only the maximum of each 2x2 window and are zero elsewhere.
        **shared: Options of `ScoreMapNet`.
    """

    def __init__(
        self, levels: tuple[Level, ...], keypoints: int, *, skip: bool = False, keep_maxima: bool = False, **shared: Any
    ) -> None:
        super().__init__(levels, keypoints, **shared)
        self.skip, self.keep_maxima = skip, keep_maxima
        self.up = nn.ModuleDict()  # learned upsampling, by the level that is upsampled
        if self.upsampling == "learned":
            for fine, coarse in pairwise(self.included):
                if self.sizes[fine] != 2 * self.sizes[coarse] or self.included[0] != 0 or skip:
                    raise InputError(
                        "upsampling='learned' needs skip=False and every included branch at twice the resolution of "
                        f"the next coarser one, up to {self.sizes[0]}x{self.sizes[0]}; use five branches or "
                        "upsampling='tile'"
                    )
                self.up[str(coarse)] = LearnedUpsampling()
        received = 0  # channels from coarser branches
        for i in reversed(self.included):
            spec = list(levels[i].branch)
            if self.ends_in_scores(i):
                spec[-1] = (keypoints * self.fold**2, spec[-1][1])
            widths = [levels[i].trunk + received] + [w for w, _ in spec]
            self.branch[str(i)] = nn.ModuleList(
                Conv(a, b, k) for a, b, (_, k) in zip(widths, widths[1:], spec, strict=False)
            )
            received = widths[-1] + (received if skip else 0)

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        # learned upsampling kernels do not decay, as in the authors' code
        return merge_groups(super().weight_groups(), {"none": list(self.up.parameters())})

    def ends_in_scores(self, level: int) -> bool:
        return level == self.included[0]

    def scores(self, maps: list[Tensor]) -> Tensor:
        coarse: Tensor | None = None
        for i, (first, *rest) in reversed(list(self.branches())):
            if coarse is None:
                x = first(maps[i])
            else:
                fine = only_maxima(maps[i]) if self.keep_maxima else maps[i]
                x = conv_over_concat(first, fine, coarse, self.upsampling, self.fused)
            for conv in rest:
                x = conv(torch.relu_(x))
            if self.ends_in_scores(i):
                return upsample(F.pixel_shuffle(x, self.fold) if self.fold > 1 else x, self.size, self.upsampling)
            x = torch.relu_(x)
            if self.skip and coarse is not None:
                x = torch.cat([x, upsample(coarse, self.sizes[i], self.upsampling)], dim=1)
            coarse = self.up[str(i)](x) if self.up else x
        raise AssertionError("a network has at least one branch")
