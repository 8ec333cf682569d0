"""The interface that every network implements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from recombinator.models.decode import Decoded, decode, within_by_temperature
from recombinator.utils.errors import InputError


class KeypointNet(nn.Module):
    """A network that locates K keypoints.

    A new architecture subclasses this, sets the attributes, and gets one entry in `models.MODELS`. Then it can be
    trained, evaluated, calibrated, exported and joined like the others. Nothing in the package asks for a network's
    class.

    Attributes:
        keypoints: K.
        size: Side of the (square) input in pixels, S.
        channels: Input channels: 1 (gray) or 3 (RGB).
        config: Arguments of `create_model` that make this network again; set by `create_model`.
        task: How it is trained: a key of `training.tasks.TASKS`. "score_maps": (B, channels, S, S) images with values
            0 to 255 in, (B, K, S, S) pre-softmax scores out; "regression": the same images in, (B, K, 2) points in
            input pixels out; "denoising": (B, K, 2) cells in, (B, K, S, S) scores out; "finding": images in, the maps
            of `Finder` out; "" for a network that is not trained as a whole.
        takes_images: False for a denoiser, which sees keypoints only.
        temperature: Scores are divided by it where probabilities are computed. `load_weights` sets it.
        tile: Side in cells of the squares over which a score is constant.
        fused: Whether operations are merged for speed; False computes the plain form, convolution by convolution.
    """

    task: ClassVar[str] = "score_maps"
    takes_images: ClassVar[bool] = True
    keypoints: int
    size: int
    channels: int
    temperature: float = 1.0
    tile: int = 1
    fused: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}

    def decode(self, output: Any, temperature: float | None = None) -> Decoded:
        """Decode what `forward` returned for images into points and probabilities, in input pixels.

        Args:
            output: The network's output.
            temperature: Scores are divided by it; by default the network's own.
        """
        return decode(output, self.temperature if temperature is None else temperature, self.tile)

    def within(self, output: Any, temperatures: Sequence[float]) -> Tensor:
        """Return `Decoded.within` of an output at T temperatures, (B, K, T, len(RADII)), for calibration."""
        return within_by_temperature(output, temperatures, self.tile)

    def multiply_adds(self) -> int:
        """Return the multiply-adds per input, dense convolutions, zero padding counted."""
        raise NotImplementedError

    def weight_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return every parameter once, by the group that decides its weight decay.

        Groups are "trunk", "branch" and "alpha" (the names of the paper's L2 factors) and "none" for parameters that
        never decay, such as biases. The optimizer raises an error for a parameter in no group.
        """
        raise NotImplementedError

    def rectified(self) -> list[nn.Conv2d]:
        """Return the convolutions that a ReLU follows; their dead channels can be re-initialized."""
        return []

    def channel_readers(self) -> dict[nn.Conv2d, list[tuple[nn.Conv2d, int]]]:
        """Return, for each rectified convolution, the convolutions that read its channels.

        Each reader comes with the index of the first of its input channels that reads them. Used to equalize channels
        before 8-bit export; empty for no equalization.
        """
        return {}

    def initialize(self, points: np.ndarray, mask: np.ndarray) -> None:
        """Set what depends on the training data before the first step.

        Args:
            points: (N, K, 2) keypoints of the training table in crop pixels.
            mask: (N, K), False where a keypoint is unknown.
        """

    def adapt(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert another network's tensors to this one's shapes where that is possible (`train --start`)."""
        return tensors

    def plain(self) -> Self:
        """Switch to the form that exports best: contiguous tensors, no fused operations. Return self."""
        return self

    def check_locates(self, name: str) -> None:
        """Raise InputError, naming `name`, if the output is not keypoints."""

    def check_exportable(self, name: str) -> None:
        """Raise InputError, naming `name`, if the network has no ONNX form."""


def split_weights(group: str, *modules: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the modules' weights (convolutions, linear layers) under `group` and all other parameters under "none"."""
    groups: dict[str, list[nn.Parameter]] = {group: [], "none": []}
    for module in modules:
        for name, parameter in module.named_parameters():
            groups[group if name.rsplit(".", 1)[-1] == "weight" else "none"].append(parameter)
    return groups


def merge_groups(*groups: dict[str, list[nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """Return the union of several `weight_groups`."""
    merged: dict[str, list[nn.Parameter]] = {}
    for part in groups:
        for name, parameters in part.items():
            merged.setdefault(name, []).extend(parameters)
    return merged


def check_groups(net: KeypointNet, groups: dict[str, list[nn.Parameter]]) -> None:
    """Raise InputError unless every parameter of `net` is in exactly one group."""
    names = {id(p): n for n, p in net.named_parameters()}
    listed = [id(p) for parameters in groups.values() for p in parameters]
    missing = [n for i, n in names.items() if i not in set(listed)]
    twice = [names.get(i, "?") for i in set(listed) if listed.count(i) > 1]
    if missing or twice:
        what = f"{missing[0]} is in no group" if missing else f"{twice[0]} is in two groups"
        raise InputError(f"{type(net).__name__}.weight_groups(): {what}; list every parameter exactly once")


def check_takes_images(net: nn.Module, name: str) -> None:
    """Raise InputError, naming `name`, for a network that sees keypoints only."""
    if not getattr(net, "takes_images", True):
        raise InputError(f"{name}: a denoiser takes keypoints, not images; use a network for images or a joint model")


def check_mirror(mirror: Sequence[int], keypoints: int) -> None:
    """Raise InputError unless `mirror` is empty or a permutation of the keypoints' indices."""
    if mirror and sorted(mirror) != list(range(keypoints)):
        raise InputError(f"mirror={list(mirror)} must list each of the keypoints 0 to {keypoints - 1} once")


def check_input(x: Tensor, channels: int, size: int) -> None:
    """Raise InputError unless `x` is a (B, channels, size, size) batch."""
    if x.ndim != 4 or tuple(x.shape[1:]) != (channels, size, size):
        raise InputError(f"expected images of shape (B, {channels}, {size}, {size}), got {tuple(x.shape)}")
