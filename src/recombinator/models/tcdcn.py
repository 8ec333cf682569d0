"""TCDCN, the regression baseline of Table 3 (Zhang, Luo, Loy, Tang; ECCV 2014).

One small convolutional network regresses coordinates and classifies facial attributes. The layers follow the network's
public descriptions.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.models.base import KeypointNet, check_input, merge_groups, split_weights
from recombinator.models.lcn import NORMALIZATIONS
from recombinator.utils.errors import InputError, check_choice

AUXILIARY = {"gender": 2, "smile": 2, "glasses": 2, "pose": 5}  # MTFL's attributes and their classes
_CONVOLUTIONS = (
    (16, 5, True),
    (48, 3, True),
    (64, 3, True),
    (64, 2, False),
)  # maps, kernel, whether 2x2 pooling follows
FEATURES = 100


class TCDCN(KeypointNet):
    """Regress (B, K, 2) points in input pixels from (B, channels, S, S) images.

    The input is averaged down by 2 (80 to the original's 40). Four convolutions without padding and 100 features
    follow, all with |tanh|, then linear heads.

    Args:
        keypoints: K.
        size: Side of the input in pixels, 64 or more.
        channels: Input channels: 1 (gray) or 3 (RGB).
        norm: Input normalization: "image", "batch" or "global" (see `lcn`).
        auxiliary: Whether to build the heads for MTFL's attributes.

    Attributes:
        best: (tasks,) lowest validation loss of each auxiliary task.
        since: (tasks,) epochs since that loss. Both are for task-wise early stopping and are buffers, so that a resumed
            training continues exactly.

    Raises:
        InputError: Unknown `norm`, or an input that is too small.
    """

    task = "regression"
    best: Tensor
    since: Tensor

    def __init__(
        self, keypoints: int = 5, *, size: int = 80, channels: int = 1, norm: str = "image", auxiliary: bool = True
    ) -> None:
        super().__init__()
        check_choice("norm", norm, NORMALIZATIONS)
        self.keypoints, self.size, self.channels = keypoints, size, channels
        self.norm: nn.Module = NORMALIZATIONS[norm]()
        widths = [channels, *(maps for maps, _, _ in _CONVOLUTIONS)]
        self.trunk = nn.ModuleList(
            nn.Conv2d(a, b, kernel) for (a, b), (_, kernel, _) in zip(pairwise(widths), _CONVOLUTIONS, strict=True)
        )
        self.sizes, side = [], size // 2
        for _, kernel, pooled in _CONVOLUTIONS:
            side = side - kernel + 1
            self.sizes.append(side)
            side = side // 2 if pooled else side
        if side < 1:
            raise InputError(f"input size {size} is too small for TCDCN; use 64 or more")
        tasks = AUXILIARY if auxiliary else {}
        self.branch = nn.ModuleDict({
            "features": nn.Linear(widths[-1] * side**2, FEATURES), "points": nn.Linear(FEATURES, 2 * keypoints),
            **{name: nn.Linear(FEATURES, classes) for name, classes in tasks.items()},
        })  # fmt: skip
        for layer in (*self.trunk, *self.branch.values()):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.tasks = tuple(tasks)
        self.register_buffer("best", torch.full((len(tasks),), math.inf))
        self.register_buffer("since", torch.zeros(len(tasks)))

    def multiply_adds(self) -> int:
        convolutions = sum(c.weight.numel() * s**2 for c, s in zip(self.trunk, self.sizes, strict=True))  # type: ignore
        return convolutions + sum(layer.weight.numel() for layer in self.branch.values())  # type: ignore

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return merge_groups(split_weights("trunk", self.trunk), split_weights("branch", self.branch))

    def heads(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute all outputs of the network.

        Args:
            x: (B, channels, S, S) images with values 0 to 255.

        Returns:
            (B, K, 2) points in units of half the input side, relative to its center, and (B, classes) logits by
            auxiliary task.
        """
        check_input(x, self.channels, self.size)
        with torch.autocast(x.device.type, enabled=False):
            x = F.avg_pool2d(self.norm(x.float()), 2)
        for conv, (_, _, pooled) in zip(self.trunk, _CONVOLUTIONS, strict=True):
            x = torch.tanh(conv(x)).abs()
            x = F.max_pool2d(x, 2) if pooled else x
        x = torch.tanh(self.branch["features"](x.flatten(1))).abs()
        points = self.branch["points"](x).float().unflatten(1, (self.keypoints, 2))
        return points, {name: self.branch[name](x).float() for name in self.tasks}

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K, 2) points in input pixels of (B, channels, S, S) images with values 0 to 255."""
        return (self.heads(x)[0] + 1) * (self.size / 2)
