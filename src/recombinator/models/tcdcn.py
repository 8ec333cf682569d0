"""TCDCN, the paper's baseline (Zhang, Luo, Loy, Tang; ECCV 2014), as its public descriptions agree on it (SPEC 6).

Coordinates by regression from one small convolutional network, helped by what else is known of a face.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.models.base import KeypointNet, check_input, merge_groups, split_weights
from recombinator.models.lcn import NORMALIZATIONS
from recombinator.utils.errors import InputError

AUXILIARY = {"gender": 2, "smile": 2, "glasses": 2, "pose": 5}  # MTFL's attributes and their classes
_CONVOLUTIONS = ((16, 5, True), (48, 3, True), (64, 3, True), (64, 2, False))  # maps, kernel, pooled by 2 after
FEATURES = 100


class TCDCN(KeypointNet):
    """(B, channels, S, S) images -> (B, K, 2) points in the input's pixels.

    The input is averaged down by 2 (80 to the original's 40), then four convolutions without padding, 100 features,
    |tanh| everywhere, linear heads. `auxiliary` False leaves the heads for the attributes out.
    """

    task = "regression"

    def __init__(
        self, keypoints: int = 5, *, size: int = 80, channels: int = 1, norm: str = "image", auxiliary: bool = True
    ) -> None:
        super().__init__()
        if norm not in NORMALIZATIONS:
            raise InputError(f"norm={norm!r} is not known: use one of {', '.join(NORMALIZATIONS)}")
        self.keypoints, self.size, self.channels = keypoints, size, channels
        self.norm: nn.Module = NORMALIZATIONS[norm]()
        widths = [channels, *(maps for maps, _, _ in _CONVOLUTIONS)]
        self.trunk = nn.ModuleList(
            nn.Conv2d(a, b, kernel) for (a, b), (_, kernel, _) in zip(pairwise(widths), _CONVOLUTIONS, strict=True)
        )
        self.sizes, side = [], size // 2
        for _, kernel, halved in _CONVOLUTIONS:
            side = side - kernel + 1
            self.sizes.append(side)
            side = side // 2 if halved else side
        if side < 1:
            raise InputError(f"input size {size} is too small for TCDCN: use 64 or more")
        tasks = AUXILIARY if auxiliary else {}
        self.branch = nn.ModuleDict({
            "features": nn.Linear(widths[-1] * side**2, FEATURES), "points": nn.Linear(FEATURES, 2 * keypoints),
            **{name: nn.Linear(FEATURES, classes) for name, classes in tasks.items()},
        })  # fmt: skip
        for layer in (*self.trunk, *self.branch.values()):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.tasks = tuple(tasks)
        # task-wise early stopping, kept with the weights so that a resumed run goes on as it was
        self.register_buffer("best", torch.full((len(tasks),), math.inf))
        self.register_buffer("since", torch.zeros(len(tasks)))

    best: Tensor  # (tasks,) lowest validation loss of each auxiliary task
    since: Tensor  # (tasks,) epochs since then

    def multiply_adds(self) -> int:
        convolved = sum(c.weight.numel() * s**2 for c, s in zip(self.trunk, self.sizes, strict=True))  # type: ignore
        return convolved + sum(layer.weight.numel() for layer in self.branch.values())  # type: ignore

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return merge_groups(split_weights("trunk", self.trunk), split_weights("branch", self.branch))

    def heads(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Points, (B, K, 2) in units of half the input around its center, and each auxiliary task's (B, classes)."""
        check_input(x, self.channels, self.size)
        with torch.autocast(x.device.type, enabled=False):
            x = F.avg_pool2d(self.norm(x.float()), 2)
        for conv, (_, _, halved) in zip(self.trunk, _CONVOLUTIONS, strict=True):
            x = torch.tanh(conv(x)).abs()
            x = F.max_pool2d(x, 2) if halved else x
        x = torch.tanh(self.branch["features"](x.flatten(1))).abs()
        points = self.branch["points"](x).float().unflatten(1, (self.keypoints, 2))
        return points, {name: self.branch[name](x).float() for name in self.tasks}

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, S, S) images, 0..255 -> (B, K, 2) points in their pixels."""
        return (self.heads(x)[0] + 1) * (self.size / 2)
