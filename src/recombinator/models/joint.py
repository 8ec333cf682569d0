"""The joint model (section 4, Fig. 2): an RCN's scores plus a denoiser's, which is fed the RCN's hard answer."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from recombinator.models.base import KeypointNet, merge_groups
from recombinator.models.decode import maximum
from recombinator.models.denoiser import Denoiser
from recombinator.models.networks import ScoreMapNet
from recombinator.utils.errors import InputError


class Joint(KeypointNet):
    """Pre-softmax maps A of the image network, B of the denoiser at the cells where A is highest; the answer is
    A + weight * B. Each further iteration feeds the denoiser the last sum's highest cells. (The caption of Fig. 2 says
    softmax values are summed; text, arrows and code sum what comes before it: SPEC 7 row 13.)
    """

    task = ""  # its two parts are trained apart

    def __init__(self, image: ScoreMapNet, denoiser: Denoiser, weight: float = 1.0, iterations: int = 1) -> None:
        super().__init__()
        if (image.keypoints, image.size) != (denoiser.keypoints, denoiser.size):
            raise InputError(
                f"the image network has {image.keypoints} keypoints at {image.size}x{image.size}, the denoiser "
                f"{denoiser.keypoints} at {denoiser.size}x{denoiser.size}: they cannot be joined"
            )
        self.image, self.denoiser, self.weight, self.iterations = image, denoiser, weight, iterations
        self.size, self.channels, self.keypoints = image.size, image.channels, image.keypoints
        self.config = {
            "name": "joint", "keypoints": image.keypoints, "image": image.config, "denoiser": denoiser.config,
            "channels": image.channels, "weight": weight, "iterations": iterations,
        }  # fmt: skip

    def multiply_adds(self) -> int:
        return self.image.multiply_adds() + self.iterations * self.denoiser.multiply_adds()

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        return merge_groups(self.image.weight_groups(), self.denoiser.weight_groups())

    def plain(self) -> Self:
        self.image.plain()
        return self

    def check_exportable(self, name: str) -> None:
        self.denoiser.check_exportable(name)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, S, S) images, 0..255 -> (B, K, S, S) scores."""
        from_image = self.image(x)
        total = from_image
        for _ in range(self.iterations):
            total = from_image + self.weight * self.denoiser.scores((maximum(total) - 0.5).long())
        return total
