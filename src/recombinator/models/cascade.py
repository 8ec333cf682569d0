"""Coarse to fine: score maps of the whole input, then of one patch at full resolution around each coarse point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recombinator.models.base import KeypointNet, merge_groups
from recombinator.models.decode import Decoded, decode, subpixel, within_by_temperature
from recombinator.models.networks import ScoreMapNet
from recombinator.utils.errors import InputError


class Cascade(KeypointNet):
    """Two score-map networks: one for the whole input, one for patches of it (not in the paper).

    The input is averaged over squares of `factor` x `factor` pixels for the coarse network. A patch of the input is cut
    around each of its points. The fine network, with the same weights for every patch, has one map per keypoint; the
    map of the patch's own keypoint counts. The logarithm of the coarse probability is added to it, so that a maximum
    that the coarse network excludes cannot win.

    Args:
        coarse: Network for the whole input.
        fine: Network for patches, with the same keypoints and channels.
        factor: Input pixels per pixel of the coarse network.
        weight: Factor on the coarse network's log-probability.
        sharpness: The coarse network's temperature.

    Raises:
        InputError: The networks differ in keypoints or channels, or a patch is larger than the input.
    """

    task = ""  # the two networks are trained one after the other

    def __init__(
        self, coarse: ScoreMapNet, fine: ScoreMapNet, factor: int, weight: float = 1.0, sharpness: float = 1.0
    ) -> None:
        super().__init__()
        if (coarse.keypoints, coarse.channels) != (fine.keypoints, fine.channels):
            raise InputError(
                f"the coarse network has {coarse.keypoints} keypoints and {coarse.channels} channels, the fine one "
                f"{fine.keypoints} and {fine.channels}: expected the same"
            )
        self.coarse, self.fine, self.factor, self.weight, self.sharpness = coarse, fine, factor, weight, sharpness
        self.size, self.channels, self.keypoints = coarse.size * factor, coarse.channels, coarse.keypoints
        if fine.size > self.size:
            raise InputError(f"patches of {fine.size} pixels do not fit an input of {self.size}; use a larger factor")
        self.config = {
            "name": "cascade", "keypoints": self.keypoints, "coarse": coarse.config, "fine": fine.config,
            "factor": factor, "weight": weight, "sharpness": sharpness,
        }  # fmt: skip

    def multiply_adds(self) -> int:
        return self.coarse.multiply_adds() + self.keypoints * self.fine.multiply_adds()

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return merge_groups(self.coarse.weight_groups(), self.fine.weight_groups())

    def plain(self) -> Self:
        self.coarse.plain()
        self.fine.plain()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the score maps of every keypoint's patch.

        Args:
            x: (B, channels, size, size) images with values 0 to 255.

        Returns:
            (B, K, P, P) scores with the coarse log-probability added; (B, K, 2) upper left corners of the patches in
            input pixels, whole numbers; (B, K) the coarse probability of the patch.
        """
        coarse = self.coarse(F.avg_pool2d(x.float(), self.factor)).float() / self.sharpness
        return self.refine(x, coarse)

    def refine(self, x: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Do what `forward` does, given the coarse network's (B, K, S, S) scores."""
        b, k, s, _ = coarse.shape
        side = self.fine.size
        prior = coarse.flatten(2).log_softmax(dim=2).view(b, k, s, s)
        corners = (subpixel(coarse).points * self.factor - side / 2).round()
        cells = torch.arange(side, device=x.device)
        at = corners.long()[..., None, :] + cells[:, None] + side  # (B, K, P, 2) in the padded image
        padded = F.pad(x.float(), (side,) * 4)
        batch = torch.arange(b, device=x.device)[:, None, None, None]
        patches = padded.permute(0, 2, 3, 1)[batch, at[..., 1][..., :, None], at[..., 0][..., None, :]]
        scores = self.fine(patches.permute(0, 1, 4, 2, 3).flatten(0, 1)).float().view(b, k, k, side, side)
        own = torch.arange(k, device=x.device)
        # the coarse map at the centers of the patch's cells, in the coordinates of grid_sample
        place = (corners[..., None, :] + cells[:, None] + 0.5) * (2 / self.size) - 1
        grid = torch.stack(
            [
                place[..., 0][..., None, :].expand(b, k, side, side),
                place[..., 1][..., :, None].expand(b, k, side, side),
            ],
            dim=-1,
        ).flatten(0, 1)
        near = F.grid_sample(prior.reshape(b * k, 1, s, s), grid, padding_mode="border", align_corners=False)
        near = near.view(b, k, side, side)
        # the coarse probability of the cells with their center in the patch
        center = (torch.arange(s, device=x.device) + 0.5) * self.factor
        gap = center - corners[..., None]  # (B, K, 2, s)
        held = ((gap >= 0) & (gap <= side)).to(prior.dtype)
        inside = ((held[:, :, 1, None] @ prior.exp())[:, :, 0] * held[:, :, 0]).sum(dim=2)
        return scores[:, own, own] + self.weight * near, corners, inside

    def decode(self, output: tuple[Tensor, Tensor, Tensor], temperature: float | None = None) -> Decoded:
        scores, corners, inside = output
        found = decode(scores, self.temperature if temperature is None else temperature)
        return Decoded(
            found.points + corners, found.highest + corners, found.within * inside[..., None], found.covariance
        )

    def within(self, output: tuple[Tensor, Tensor, Tensor], temperatures: Sequence[float]) -> Tensor:
        scores, _, inside = output
        return within_by_temperature(scores, temperatures) * inside[..., None, None]
