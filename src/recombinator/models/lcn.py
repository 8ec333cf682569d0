"""Local contrast normalization, the first layer of every network (SPEC 2.7)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIGMA, TAPS = 1.591, 9


class LocalContrastNorm(nn.Module):
    """Gray (B, C, H, W), values 0..255 -> (B, C, H, W), centered at 0.5.

    v = x - g*x with a 9x9 Gaussian g (zero-padded); s = sqrt(g*v^2); out = (v / max(s, m) + 2.5) / 5.
    The floor m is the mean of s over each image and channel (`floor="image"`), or over the whole batch
    (`floor="batch"`, the authors' code, where a prediction depends on its neighbors in the batch).
    A constant-zero image gives 0.5 everywhere.
    """

    taps: Tensor

    def __init__(self, floor: str = "image") -> None:
        super().__init__()
        x = torch.arange(TAPS, dtype=torch.float64) - TAPS // 2
        g = torch.exp(-(x**2) / (2 * SIGMA**2))
        self.register_buffer("taps", (g / g.sum()).float(), persistent=False)
        self.floor = floor

    def _blur(self, x: Tensor) -> Tensor:
        c, r = x.shape[1], TAPS // 2
        row = self.taps.view(1, 1, 1, TAPS).expand(c, 1, 1, TAPS)
        x = F.conv2d(x, row, padding=(0, r), groups=c)
        return F.conv2d(x, row.transpose(2, 3), padding=(r, 0), groups=c)

    def forward(self, x: Tensor) -> Tensor:
        v = x - self._blur(x)
        s = self._blur(v * v).sqrt()
        m = s.mean() if self.floor == "batch" else s.mean(dim=(2, 3), keepdim=True)
        return (v / torch.maximum(s, m).clamp_min(1e-6) + 2.5) / 5


class GlobalNorm(nn.Module):
    """Per-image mean and standard deviation removed: the authors' path without local normalization."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = x.mean(dim=(1, 2, 3), keepdim=True), x.std(dim=(1, 2, 3), keepdim=True)
        return (x - mean) / std.clamp_min(1e-6)


NORMALIZATIONS: dict[str, Callable[[], nn.Module]] = {
    "image": lambda: LocalContrastNorm("image"),
    "batch": lambda: LocalContrastNorm("batch"),
    "global": GlobalNorm,
}
