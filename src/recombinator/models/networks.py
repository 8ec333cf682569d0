"""SumNet (Eq. 1) and Recombinator Networks (Eq. 3), from one definition of trunk and branches.

A network is data: a tuple of `Level`s, finest first. Every network maps (B, channels, S, S) images with
values 0..255 to (B, K, S, S) scores, the paper's pre-softmax maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.models.base import KeypointNet, check_input, merge_groups, split_weights
from recombinator.models.layers import (
    Conv,
    LearnedUpsampling,
    conv_over_concat,
    only_maxima,
    pool,
    pooled,
    shift_map,
    upsample,
)  # fmt: skip
from recombinator.models.lcn import NORMALIZATIONS
from recombinator.utils.errors import InputError


@dataclass(frozen=True)
class Level:
    """One resolution: the trunk convolution's width and kernel, and the (width, kernel) of each branch
    convolution. The finest branch's last convolution has K maps instead, and no ReLU."""

    trunk: int
    branch: tuple[tuple[int, int], ...]
    trunk_kernel: int = 3

    def scaled(self, factor: float) -> Level:
        def w(n: int) -> int:
            return max(1, round(n * factor))

        return replace(self, trunk=w(self.trunk), branch=tuple((w(n), k) for n, k in self.branch))


@dataclass(frozen=True)
class CountedConv:
    """One convolution as the tables of SPEC 1 list it; products are those of the dense form."""

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


class ScoreMapNet(KeypointNet):
    """The trunk T and what SumNet and RCN share. `mask` is ordered coarsest to finest, as Table 1 prints it.

    A trunk convolution that only masked-out coarser branches would need is not built. With `fold` f the finest level
    works at S / f: f x f pixels enter as channels, and f x f cells of a score map leave as channels (beyond the paper).
    With `mirror`, KeypointSet.mirrored, the answer outside of training is the mean of the scores of the image and of
    its mirror image, at twice the cost; with `shift`, of the image where it is and moved by so many pixels towards each
    corner, at five times the cost (both beyond the paper).
    """

    def __init__(
        self, levels: tuple[Level, ...], keypoints: int, *, size: int = 80, channels: int = 1,
        mask: tuple[int, ...] | None = None, upsampling: str = "tile", norm: str = "image", fold: int = 1,
        mirror: Sequence[int] = (), shift: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        for label, value, known in (
            ("upsampling", upsampling, ("tile", "bilinear", "learned")), ("norm", norm, tuple(NORMALIZATIONS)),
        ):  # fmt: skip
            if value not in known:
                raise InputError(f"{label}={value!r} is not known: use one of {', '.join(known)}")
        if keypoints < 1 or channels < 1:
            raise InputError(f"keypoints={keypoints} and channels={channels} must be 1 or more")
        finest_first = tuple(reversed(mask)) if mask is not None else (1,) * len(levels)
        if len(finest_first) != len(levels) or not any(finest_first) or not set(finest_first) <= {0, 1}:
            raise InputError(
                f"mask {mask} must have {len(levels)} entries 0 or 1, coarsest branch first, at least one of them 1"
            )
        if mirror and sorted(mirror) != list(range(keypoints)):
            raise InputError(f"mirror={list(mirror)} must name each of the {keypoints} keypoints, from 0, once")
        if not 0 <= shift <= size // 4:
            raise InputError(f"shift={shift} must be from 0 to {size // 4} pixels, a quarter of the input")
        if fold < 1 or size % fold:
            raise InputError(f"fold={fold} must be 1 or more and divide the input size {size}")
        self.included = [i for i, on in enumerate(finest_first) if on]
        self.sizes = [size // fold]
        for _ in range(len(levels) - 1):
            self.sizes.append(pooled(self.sizes[-1]))
        if self.sizes[-1] < 1:
            smallest = fold * 2 ** (len(levels) - 1)
            raise InputError(
                f"input size {size} is too small for {len(levels)} branches: {len(levels) - 1} poolings need "
                f"at least {smallest} pixels; use a larger size or fewer branches"
            )
        self.size, self.channels, self.keypoints, self.upsampling = size, channels, keypoints, upsampling
        self.fold, self.mirror, self.shift = fold, list(mirror), shift
        self.layout = torch.channels_last  # of the maps in memory: the fast one on CPUs and GPUs
        self.fused = True  # tiled maps are never built; False computes the plain form, for comparison
        self.branch = nn.ModuleDict()  # by level; filled by the subclasses
        self.norm: nn.Module = NORMALIZATIONS[norm]()
        widths = [channels * fold**2] + [level.trunk for level in levels]
        self.trunk = nn.ModuleList(
            Conv(widths[i], widths[i + 1], levels[i].trunk_kernel) for i in range(self.included[-1] + 1)
        )

    @property
    def tile(self) -> int:  # type: ignore[override]
        """Side in cells of the squares over which a score is the same everywhere: more than 1 where the finest
        branches are masked out and what is left is tiled."""
        factor, rest = divmod(self.size, self.fold * self.sizes[self.included[0]])
        return factor if self.upsampling == "tile" and not rest and not self.shift else 1

    def features(self, x: Tensor) -> list[Tensor]:
        """Trunk maps, finest first: T^(R) .. T^(1)."""
        check_input(x, self.channels, self.size)
        maps: list[Tensor] = []
        if self.fold > 1:
            x = F.pixel_unshuffle(x, self.fold).contiguous(memory_format=self.layout)
        for i, conv in enumerate(self.trunk):
            x = torch.relu_(conv(pool(x) if i else x))
            maps.append(x)
        return maps

    def scores(self, maps: list[Tensor]) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, S, S) images, 0..255, any real dtype -> (B, K, S, S) pre-softmax scores."""
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.float())
        if not self.shift or self.training:
            return self._look(x)
        corners = [(right, down) for right in (-self.shift, self.shift) for down in (-self.shift, self.shift)]
        scores = self._look(x)
        for right, down in corners:
            scores = scores + shift_map(self._look(shift_map(x, right, down)), -right, -down)
        return scores / (1 + len(corners))

    def _look(self, x: Tensor) -> Tensor:
        """Scores of normalized images, with `mirror` both ways round."""
        scores = self.scores(self.features(x.contiguous(memory_format=self.layout)))
        if not self.mirror or self.training:
            return scores
        turned = self.scores(self.features(x.flip(-1).contiguous(memory_format=self.layout)))
        return (scores + turned.flip(-1)[:, self.mirror]) / 2

    def branches(self) -> Iterator[tuple[int, list[Conv]]]:
        """(level, convolutions) of every included branch, finest first."""
        for i in self.included:
            yield i, cast(list[Conv], list(cast(nn.ModuleList, self.branch[str(i)])))

    def rectified(self) -> list[nn.Conv2d]:
        ends = {convs[-1] for i, convs in self.branches() if self.ends(i)}
        return [c for c in (*self.trunk, *(c for _, convs in self.branches() for c in convs)) if c not in ends]

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return merge_groups(split_weights("branch", self.branch), split_weights("trunk", self.trunk))

    def plain(self) -> Self:
        self.layout, self.fused = torch.contiguous_format, False  # ONNX Runtime chooses the layout itself
        return self

    def ends(self, level: int) -> bool:
        """Whether that level's branch ends in score maps, which nothing rectifies."""
        raise NotImplementedError

    def layers(self) -> list[CountedConv]:
        """Every convolution with its map size, trunk first, in the paper's dense form."""
        rows = [
            CountedConv(f"trunk{i + 1}", c.in_channels, c.out_channels, c.kernel_size[0], self.sizes[i])
            for i, c in enumerate(self.trunk)
            if isinstance(c, Conv)
        ]
        for i, convs in self.branches():
            for j, c in enumerate(convs):
                rows.append(
                    CountedConv(f"{self.sizes[i]}.{j + 1}", c.in_channels, c.out_channels,
                                c.kernel_size[0], self.sizes[i])
                )  # fmt: skip
        return rows

    def multiply_adds(self) -> int:
        """Per image, dense convolutions, zero padding counted; pooling, normalization, upsampling not."""
        return self._multiply_adds_once() * (2 if self.mirror else 1) * (5 if self.shift else 1)

    def _multiply_adds_once(self) -> int:
        return sum(row.multiply_adds for row in self.layers())


class SumNet(ScoreMapNet):
    """P(Y_k | x) = softmax(sum_r alpha_rk M_k^(r)), Eq. 1.

    `alpha="map"`: one weight a branch and keypoint (the authors' default); `alpha="pixel"`: one a branch,
    keypoint and pixel, as the text under Eq. 1 has it. Drawn from U[0, 1).
    """

    def __init__(self, levels: tuple[Level, ...], keypoints: int, *, alpha: str = "map", **shared: Any) -> None:
        super().__init__(levels, keypoints, **shared)
        if self.upsampling == "learned" or self.fold > 1:
            raise InputError("upsampling='learned' and fold belong to RCN: use tile or bilinear, and no fold")
        for i in self.included:
            kernel = levels[i].branch[-1][1]
            widths = [levels[i].trunk] + [w for w, _ in levels[i].branch[:-1]]
            kernels = [k for _, k in levels[i].branch]
            convs = [Conv(a, b, k) for a, b, k in zip(widths, widths[1:], kernels, strict=False)]
            self.branch[str(i)] = nn.ModuleList([*convs, Conv(widths[-1], keypoints, kernel)])
        shapes = {"map": (1, 1), "pixel": (self.size, self.size)}
        if alpha not in shapes:
            raise InputError(f"alpha={alpha!r} is not known: use 'map' or 'pixel'")
        self.alpha = nn.Parameter(torch.rand(len(self.included), keypoints, *shapes[alpha]))

    @property
    def tile(self) -> int:  # type: ignore[override]
        return super().tile if self.alpha.shape[-1] == 1 else 1

    def _multiply_adds_once(self) -> int:
        return super()._multiply_adds_once() + len(self.included) * self.keypoints * self.size**2  # alpha

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return {**super().weight_groups(), "alpha": [self.alpha]}

    def ends(self, level: int) -> bool:
        return True

    def branch_maps(self, maps: list[Tensor]) -> list[Tensor]:
        """M^(r) of every included branch, finest first, each (B, K, S, S)."""
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

    With `skip`, what a branch passes on is concat(its own output, all that it received), newest first, so the
    finest branch sees every coarser one. A masked-out branch is left out: the coarser output is enlarged by the
    combined factor. Where the finest branch is masked out, the finest included one ends in K maps.

    The authors' released 300-W weights are of a variant that the paper does not describe (SPEC 9):
    `upsampling="learned"`, and `keep_maxima`: in the concatenation a trunk map keeps only the maximum of each 2x2
    window, zero elsewhere.
    """

    def __init__(
        self, levels: tuple[Level, ...], keypoints: int, *, skip: bool = False, keep_maxima: bool = False, **shared: Any
    ) -> None:
        super().__init__(levels, keypoints, **shared)
        self.skip, self.keep_maxima = skip, keep_maxima
        self.up = nn.ModuleDict()  # by the level that is enlarged
        if self.upsampling == "learned":
            for fine, coarse in pairwise(self.included):
                if self.sizes[fine] != 2 * self.sizes[coarse] or self.included[0] != 0 or skip:
                    raise InputError(
                        "upsampling='learned' wants every included branch twice as fine as the one before, the finest "
                        f"at {self.sizes[0]}x{self.sizes[0]}, and no skips; use five branches or upsampling='tile'"
                    )
                self.up[str(coarse)] = LearnedUpsampling()
        received = 0
        for i in reversed(self.included):
            spec = list(levels[i].branch)
            if i == self.included[0]:
                spec[-1] = (keypoints * self.fold**2, spec[-1][1])
            widths = [levels[i].trunk + received] + [w for w, _ in spec]
            self.branch[str(i)] = nn.ModuleList(
                Conv(a, b, k) for a, b, (_, k) in zip(widths, widths[1:], spec, strict=False)
            )
            received = widths[-1] + (received if skip else 0)

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        # a learned upsampling kernel does not decay
        return merge_groups(super().weight_groups(), {"none": list(self.up.parameters())})

    def ends(self, level: int) -> bool:
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
            if self.ends(i):
                return upsample(F.pixel_shuffle(x, self.fold) if self.fold > 1 else x, self.size, self.upsampling)
            x = torch.relu_(x)
            if self.skip and coarse is not None:
                x = torch.cat([x, upsample(coarse, self.sizes[i], self.upsampling)], dim=1)
            coarse = self.up[str(i)](x) if self.up else x
        raise AssertionError("a network has at least one branch")
