"""Augmentation: training samples from stage-1 crops by jitter, flip, photometric changes and occlusion.

Everything works on batches, on the device of its input. Random numbers are drawn on the CPU from the caller's
generator, so that they are the same on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from recombinator.transforms.affine import apply, box_affine, compose, flip_affine, invert, warp
from recombinator.utils.errors import InputError

# smallest and largest value of Augment's fields
RANGES: dict[str, tuple[float, float]] = {
    "shift": (0, 1), "zoom": (0, 0.9), "degrees": (0, 180), "turned": (0, 1), "stretch": (0, 10), "gamma": (0, 10),
    "blur": (0, 100), "noise": (0, 255),
}  # fmt: skip


def check_ranges(settings: Any, ranges: dict[str, tuple[float, float]]) -> None:
    """Check that numbers are within their ranges.

    Args:
        settings: An object with the fields.
        ranges: Smallest and largest value of each field, both allowed.

    Raises:
        InputError: A field is outside its range, or NaN.
    """
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            limits = f"of {low} or more" if high == math.inf else f"from {low} to {high}"
            raise InputError(f"{name}={value}: expected a number {limits}")


@dataclass(frozen=True)
class Augment:
    """Ranges of the random changes; zero switches one off.

    The defaults of shift, zoom, degrees and occlude are the paper's (section 5.1, footnotes 7 and 9).

    Attributes:
        shift: Largest shift of the box to each side, as a share of its side.
        zoom: Largest change of the box's side, as a share of it.
        degrees: Largest rotation to each side.
        turned: Share of the samples that are rotated by any angle instead.
        stretch: Largest ratio, minus 1, between the scales of width and height, in either direction.
        flip: Mirror half of the samples, and exchange their left and right keypoints.
        occlude: Smallest and largest side of one black rectangle, in pixels of an 80x80 input.
        gamma: Largest power of 2, up or down, of the gamma exponent.
        blur: Largest Gaussian sigma in pixels, for half of the samples.
        noise: Largest standard deviation of Gaussian noise in gray levels, for half of the samples.
    """

    shift: float = 0.1
    zoom: float = 0.1
    degrees: int = 40
    turned: float = 0.0
    stretch: float = 0.0
    flip: bool = False
    occlude: tuple[int, int] = (20, 50)
    gamma: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self, RANGES)
        if not 0 <= self.occlude[0] <= self.occlude[1] <= 80:
            raise InputError(f"occlude={self.occlude}: expected the smallest and the largest side, 0 to 80 pixels")

    @property
    def moves(self) -> bool:
        """Return whether any pixel can move."""
        return bool(self.shift or self.zoom or self.degrees or self.turned or self.stretch or self.flip)


OCCLUSION = Augment(shift=0.0, zoom=0.0, degrees=0)  # one black rectangle, nothing else


def draw_points(
    points: Tensor, boxes: Tensor, size: int, augment: Augment | None, mirrored: list[int], generator: Generator
) -> tuple[Tensor, Tensor]:
    """Draw the jitter of each sample, and bring its points into the network's input.

    Args:
        points: (B, K, 2) x, y in crop pixels.
        boxes: (B, 3) stage-2 squares (x, y, side) in crop pixels.
        size: Side of the network's input in pixels.
        augment: The ranges; None for no jitter, as in evaluation.
        mirrored: `KeypointSet.mirrored`.
        generator: A generator on the CPU.

    Returns:
        (B, K, 2) points in pixels of the network's input, and (B, 2, 3) affines from there to the crop.
    """
    n, device = len(points), points.device
    if augment is None:
        to_source = box_affine(boxes, size)
        return apply(invert(to_source), points), to_source
    zoom, shift = 1 + augment.zoom * _uniform(device, generator, n), augment.shift * _uniform(device, generator, n, 2)
    degrees = torch.randint(-augment.degrees, augment.degrees + 1, (n,), generator=generator).float().to(device)
    if augment.turned:
        anywhere, chosen = 180 * _uniform(device, generator, n), _uniform(device, generator, n) < 2 * augment.turned - 1
        degrees = torch.where(chosen, anywhere, degrees)
    stretch = None
    if augment.stretch:
        stretch = (1 + augment.stretch) ** _uniform(device, generator, n)
    to_source = box_affine(boxes, size, shift, zoom, degrees, stretch)
    if augment.flip:
        flipped = _uniform(device, generator, n) < 0
        to_source = compose(to_source, flip_affine(size, flipped))
        points = torch.where(flipped[:, None, None], points[:, mirrored], points)
    return apply(invert(to_source), points), to_source


def _uniform(device: torch.device, generator: Generator, *shape: int) -> Tensor:
    """Draw uniform numbers in [-1, 1) on the CPU, and move them to the device."""
    return (torch.rand(*shape, generator=generator) * 2 - 1).to(device)


def draw_samples(
    images: Tensor, points: Tensor, boxes: Tensor, size: int, augment: Augment | None, mirrored: list[int],
    generator: Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Draw one sample of each crop.

    Args:
        images: (B, C, S, S) uint8 crops.
        points: (B, K, 2) x, y in crop pixels.
        boxes: (B, 3) stage-2 squares (x, y, side) in crop pixels.
        size: Side of the network's input in pixels.
        augment: The ranges; None for the unchanged crop of evaluation.
        mirrored: `KeypointSet.mirrored`.
        generator: A generator on the CPU.

    Returns:
        (B, C, size, size) float network inputs from 0 to 255, and (B, K, 2) points in their pixels.
    """
    points, to_source = draw_points(points, boxes, size, augment, mirrored, generator)
    return draw_pixels(images, to_source, size, augment, generator), points


def draw_pixels(images: Tensor, to_source: Tensor, size: int, augment: Augment | None, generator: Generator) -> Tensor:
    """Resample crops by affines, and draw the changes of their pixels.

    Args:
        images: (B, C, S, S) uint8 crops.
        to_source: (B, 2, 3) affines from the network's input to the crop, from `draw_points`.
        size: Side of the network's input in pixels.
        augment: The ranges; None for no change.
        generator: A generator on the CPU.

    Returns:
        (B, C, size, size) float network inputs from 0 to 255.
    """
    pixels, n, device = warp(images, to_source, size), len(images), images.device
    if augment is None:
        return pixels
    if augment.gamma:
        exponent = torch.exp2(augment.gamma * _uniform(device, generator, n))[:, None, None, None]
        pixels = (pixels / 255).clamp(0, 1).pow(exponent) * 255
    if augment.blur:
        pixels = blurred(pixels, augment.blur * _uniform(device, generator, n).clamp_min(0))
    if augment.noise:
        noise = torch.randn(pixels.shape, generator=generator).to(device)
        strength = augment.noise * _uniform(device, generator, n).clamp_min(0)  # zero for half of the samples
        pixels = (pixels + strength[:, None, None, None] * noise).clamp(0, 255)
    if augment.occlude[1]:
        pixels = occluded(pixels, augment.occlude, generator)
    return pixels


def blurred(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Blur each of (B, C, H, W) images by a Gaussian of its own sigma, (B,) in pixels; 0 leaves it unchanged."""
    n, c, h, w = pixels.shape
    x = torch.arange(-4, 5, device=pixels.device)
    taps = torch.exp(-(x**2) / (2 * sigma[:, None].clamp_min(0.05) ** 2))
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None, None]
    flat = F.pad(pixels.reshape(1, n * c, h, w), (4, 4, 4, 4), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, taps, groups=n * c), taps.transpose(2, 3), groups=n * c)
    return flat.reshape(n, c, h, w)


def occluded(pixels: Tensor, sides: tuple[int, int], generator: Generator) -> Tensor:
    """Draw one black rectangle into each image (the paper, footnote 9).

    Args:
        pixels: (B, C, S, S) images.
        sides: Smallest and largest side in pixels of an 80x80 image, scaled with S. Height and width are independent
            and uniform; the position is uniform within the image.
        generator: A generator on the CPU.
    """
    n, _, size, _ = pixels.shape
    extent = torch.randint(sides[0], sides[1] + 1, (n, 2), generator=generator) * size // 80
    start = (torch.rand(n, 2, generator=generator) * (size - extent + 1)).floor()
    start, end = start.to(pixels.device), (start + extent).to(pixels.device)
    cell = torch.arange(size, device=pixels.device)
    inside = (cell >= start[..., None]) & (cell < end[..., None])  # (n, 2, size)
    return pixels.masked_fill((inside[:, 1, :, None] & inside[:, 0, None, :])[:, None], 0.0)
