"""The finder: where the objects of an image are, how large, and how far they are rotated (not in the paper).

It has the paper's coarse-to-fine structure. One small network is run on the whole image at several sizes.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.data.crops import RULES
from recombinator.models.base import KeypointNet, split_weights
from recombinator.models.layers import Conv
from recombinator.utils.errors import InputError, check_choice

STRIDE = 4  # input pixels per cell of the output
COARSEST = 32  # input pixels per cell of the coarsest maps: the sides of the input are multiples of it
OUTPUTS = ("presence", "x", "y", "size", "cosine", "sine")  # the maps of the output, in this order
REFERENCE = 32.0  # side in input pixels of an object whose `size` is 0
PRESENCE_AT_START = 0.01  # predicted everywhere before training, so that the many empty cells do not swamp the loss


class Finder(KeypointNet):
    """Predict for each cell whether an object's center is in it, and the square around that object.

    The square is what the localizer's crop rule cuts around the object's keypoints after the rotation to upright. So
    nothing in prediction depends on how objects are found.

    Trunk and branches follow Eq. 3: each branch reads the trunk maps of its resolution and the upsampled output of the
    coarser branch. Squares of 4x4 input pixels enter the finest level as channels.

    Args:
        keypoints: K of the localizer. The finder's own output does not depend on it.
        size: Side of the training images in pixels. In prediction, the input may have any height and width that are
            multiples of `COARSEST`.
        channels: Input channels: 1 (gray) or 3 (RGB).
        width: Factor on all map counts.
        rule: Crop rule of the localizer (a key of data.crops.RULES).

    Attributes:
        threshold: Probability from which a maximum counts as an object; training chooses it on validation scenes.

    Raises:
        InputError: An option has an invalid value.
    """

    task = "finding"
    TRUNK = ((16,), (32, 32), (64, 64), (96, 96))  # maps by resolution, finest first
    BRANCH = ((24, 24), (32, 32), (48, 48), (64, 64))  # 1x1 over trunk and coarser branch, then 3x3

    threshold: Tensor

    def __init__(
        self, keypoints: int, *, size: int = 128, channels: int = 1, width: float = 1.0, rule: str = "object"
    ) -> None:  # fmt: skip
        super().__init__()
        if size % COARSEST or size <= 0:
            raise InputError(f"size={size} must be a multiple of {COARSEST}")
        if channels not in (1, 3) or not 0 < width <= 100:
            raise InputError(f"channels={channels} must be 1 or 3, width={width} from 0 to 100")
        check_choice("rule", rule, [name for name in RULES if not RULES[name].whole])
        self.keypoints, self.size, self.channels, self.rule = keypoints, size, channels, rule
        self.register_buffer("threshold", torch.tensor(0.3))

        def scaled(maps: tuple[int, ...]) -> list[int]:
            return [max(1, round(m * width)) for m in maps]

        self.trunk, self.branch = nn.ModuleList(), nn.ModuleList()
        before = channels * STRIDE**2
        for maps in self.TRUNK:
            self.trunk.append(nn.ModuleList(Conv(a, b) for a, b in pairwise([before, *scaled(maps)])))
            before = scaled(maps)[-1]
        coarse = 0
        for own, maps in reversed(list(zip(self.TRUNK, self.BRANCH, strict=True))):
            first, second = scaled(maps)
            joined = Conv(scaled(own)[-1] + coarse, first, 1)
            self.branch.insert(0, nn.ModuleList([joined, Conv(first, second)]))
            coarse = second
        self.out = Conv(coarse, len(OUTPUTS), 1)
        assert self.out.bias is not None
        nn.init.normal_(self.out.weight, std=0.01)
        nn.init.constant_(self.out.bias[0], math.log(PRESENCE_AT_START / (1 - PRESENCE_AT_START)))

    def multiply_adds(self) -> int:
        """Return the multiply-adds for an input of `size` x `size` pixels."""
        cells, total = (self.size // STRIDE) ** 2, 0
        for i, (trunk, branch) in enumerate(zip(self.trunk, self.branch, strict=True)):
            weights = sum(
                p.numel() for n, p in [*trunk.named_parameters(), *branch.named_parameters()] if "weight" in n
            )
            total += weights * (cells >> 2 * i)
        return total + self.out.weight.numel() * cells

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return {
            **split_weights("trunk", self.trunk),
            "branch": [p for n, p in [*self.branch.named_parameters(), *self.out.named_parameters()] if "weight" in n],
            "none": [p for n, p in self.named_parameters() if "bias" in n],
        }

    def channel_readers(self) -> dict[nn.Conv2d, list[tuple[nn.Conv2d, int]]]:
        trunk, branch = ([list(cast(list[Conv], convs)) for convs in part] for part in (self.trunk, self.branch))
        chain = [conv for convs in trunk for conv in convs]
        readers: dict[nn.Conv2d, list[tuple[nn.Conv2d, int]]] = {chain[-1]: []}
        for conv, reader in pairwise(chain):
            readers[conv] = [(reader, 0)]
        for level, (joined, last) in enumerate(branch):
            readers[trunk[level][-1]].append((joined, 0))
            readers[joined] = [(last, 0)]
            finer = branch[level - 1][0] if level else None
            readers[last] = [(finer, trunk[level - 1][-1].out_channels)] if finer else [(self.out, 0)]
        return readers

    def adapt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert the first convolution of a finder for gray images to one for RGB, which sums the channels."""
        name = "trunk.0.0.weight"
        weight = tensors.get(name)
        if weight is None or self.channels * weight.shape[1] != self.state_dict()[name].shape[1]:
            return tensors
        return {**tensors, name: weight.repeat(1, self.channels, 1, 1) / self.channels}

    def check_locates(self, name: str) -> None:
        raise InputError(f"{name}: finds objects, not keypoints; give it to a localizer")

    def forward(self, x: Tensor) -> Tensor:
        """Compute the maps of a batch.

        Args:
            x: (B, channels, H, W) images with values 0 to 255, of any real dtype.

        Returns:
            (B, 6, H / 4, W / 4): the logit of an object's center being in the cell, the center relative to the cell's
            in cells, the logarithm of the side in units of `REFERENCE` pixels, and cosine and sine of the rotation
            (clockwise on the screen), not normalized.
        """
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % COARSEST or x.shape[3] % COARSEST:
            raise InputError(
                f"expected images of shape (B, {self.channels}, H, W) with H and W multiples of {COARSEST}, got "
                f"{tuple(x.shape)}"
            )
        x = F.pixel_unshuffle(x.float() / 64 - 2, STRIDE)
        maps: list[Tensor] = []
        for i, convolutions in enumerate(self.trunk):
            x = F.max_pool2d(x, 2) if i else x
            for conv in cast(nn.ModuleList, convolutions):
                x = torch.relu(conv(x))
            maps.append(x)
        coarse: Tensor | None = None
        for own, branch in zip(reversed(maps), reversed(list(self.branch)), strict=True):
            joined, conv = cast(nn.ModuleList, branch)
            if coarse is not None:
                own = torch.cat([own, F.interpolate(coarse, scale_factor=2.0, mode="nearest")], dim=1)
            coarse = torch.relu(conv(torch.relu(joined(own))))
        assert coarse is not None
        return self.out(coarse)
