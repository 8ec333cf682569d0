"""Training samples from stage-1 crops: jitter, flip, photometric changes, occlusion. Batched, on the device.

Random numbers are drawn on the CPU from the caller's generator, so a run is the same on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from recombinator.transforms.affine import apply, box_affine, compose, flip_affine, invert, warp
from recombinator.utils.errors import InputError

# what numbers may be, ends included
RANGES: dict[str, tuple[float, float]] = {
    "shift": (0, 1), "zoom": (0, 0.9), "degrees": (0, 180), "turned": (0, 1), "stretch": (0, 10), "gamma": (0, 10),
    "blur": (0, 100), "noise": (0, 255),
}  # fmt: skip


def check_ranges(settings: Any, ranges: dict[str, tuple[float, float]]) -> None:
    """Raises InputError for a field that lies outside its range, or is no number."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise InputError(f"{name}={value} must lie between {low} and {high}")


@dataclass(frozen=True)
class Augment:
    """Ranges of the random changes; zero switches one off.

    shift, zoom: +- share of the box side; degrees: +- rotation; turned: share of the samples that are turned by any
    angle instead; stretch: largest ratio minus one between the
    enlargements of width and height, either way; flip: exchange left and right in half of the
    samples; occlude: (smallest, largest) side in pixels of one black rectangle, of 80; gamma: log2 range; blur: largest
    Gaussian sigma in pixels; noise: largest standard deviation in gray levels (these two: half of the samples).
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
            raise InputError(f"occlude={self.occlude} wants the smallest and the largest side in pixels, of 80")

    @property
    def moves(self) -> bool:
        """False where pixels stay in their place."""
        return bool(self.shift or self.zoom or self.degrees or self.turned or self.stretch or self.flip)


COVERED = Augment(shift=0.0, zoom=0.0, degrees=0)  # one black rectangle, nothing else


def draw_points(
    points: Tensor, boxes: Tensor, size: int, augment: Augment | None, mirrored: list[int], generator: Generator
) -> tuple[Tensor, Tensor]:
    """(B, K, 2) points and (B, 3) boxes in crop pixels -> (B, K, 2) points in jittered network pixels, and the
    (B, 2, 3) affines from those to the crop. `augment=None`: no jitter. `mirrored`: KeypointSet.mirrored."""
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
    """In [-1, 1)."""
    return (torch.rand(*shape, generator=generator) * 2 - 1).to(device)


def draw_samples(
    images: Tensor, points: Tensor, boxes: Tensor, size: int, augment: Augment | None, mirrored: list[int],
    generator: Generator,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(B, C, S, S) uint8 crops, with points and boxes as `draw_points` has them -> (B, C, size, size) float network
    inputs, 0..255, and (B, K, 2) points in network pixels. `augment=None` is the unjittered crop of evaluation."""
    points, to_source = draw_points(points, boxes, size, augment, mirrored, generator)
    pixels, n, device = warp(images, to_source, size), len(images), images.device
    if augment is None:
        return pixels, points

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
    return pixels, points


def blurred(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, one sigma in pixels for each image; 0 leaves it."""
    n, c, h, w = pixels.shape
    x = torch.arange(-4, 5, device=pixels.device)
    taps = torch.exp(-(x**2) / (2 * sigma[:, None].clamp_min(0.05) ** 2))
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None, None]
    flat = F.pad(pixels.reshape(1, n * c, h, w), (4, 4, 4, 4), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, taps, groups=n * c), taps.transpose(2, 3), groups=n * c)
    return flat.reshape(n, c, h, w)


def occluded(pixels: Tensor, sides: tuple[int, int], generator: Generator) -> Tensor:
    """One black rectangle an image: height and width independent uniform whole numbers in `sides` (of an 80-pixel
    input; scaled with the size), position uniform such that it lies inside (paper, footnote 9)."""
    n, _, size, _ = pixels.shape
    extent = torch.randint(sides[0], sides[1] + 1, (n, 2), generator=generator) * size // 80
    start = (torch.rand(n, 2, generator=generator) * (size - extent + 1)).floor()
    start, end = start.to(pixels.device), (start + extent).to(pixels.device)
    cell = torch.arange(size, device=pixels.device)
    inside = (cell >= start[..., None]) & (cell < end[..., None])  # (n, 2, size)
    return pixels.masked_fill((inside[:, 1, :, None] & inside[:, 0, None, :])[:, None], 0.0)
