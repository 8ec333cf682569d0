"""The joint model (section 4, Fig. 2): the score maps of an RCN plus those of a denoiser."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from recombinator.models.base import KeypointNet, merge_groups
from recombinator.models.decode import maximum
from recombinator.models.denoiser import Denoiser
from recombinator.models.networks import ScoreMapNet
from recombinator.utils.errors import InputError


class Joint(KeypointNet):
    """Sum of image scores A and denoiser scores B: A + weight * B.

    The denoiser's input is the highest cell of each map of A. Each further iteration takes the highest cells of the
    last sum instead. The sum is over pre-softmax scores, as in section 4 (the caption of Fig. 2 says softmax values).

    Args:
        image: Network for images.
        denoiser: Denoiser with the same keypoints and input size.
        weight: Factor of the denoiser's scores.
        iterations: Number of passes through the denoiser.

    Raises:
        InputError: The networks differ in keypoints or input size.
    """

    task = ""  # the two networks are trained separately

    def __init__(self, image: ScoreMapNet, denoiser: Denoiser, weight: float = 1.0, iterations: int = 1) -> None:
        super().__init__()
        if (image.keypoints, image.size) != (denoiser.keypoints, denoiser.size):
            raise InputError(
                f"cannot be joined: the network for images has {image.keypoints} keypoints at "
                f"{image.size}x{image.size}, the denoiser {denoiser.keypoints} at {denoiser.size}x{denoiser.size}"
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

    def channel_readers(self) -> dict[nn.Conv2d, list[tuple[nn.Conv2d, int]]]:
        return self.image.channel_readers()

    def plain(self) -> Self:
        self.image.plain()
        return self

    def check_exportable(self, name: str) -> None:
        self.denoiser.check_exportable(name)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K, S, S) scores of (B, channels, S, S) images with values 0 to 255."""
        return self.total(self.image(x), self.weight, self.iterations)

    def total(self, image_scores: Tensor, weight: float, iterations: int) -> Tensor:
        """Add the denoiser's scores to (B, K, S, S) image scores, with the given weight and number of passes."""
        total = image_scores
        for _ in range(iterations):
            total = image_scores + weight * self.denoiser.averaged((maximum(total) - 0.5).long())
        return total
