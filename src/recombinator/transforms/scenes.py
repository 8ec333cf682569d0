"""Training scenes for a finder: images with objects of any size, position and rotation, alone or as a mosaic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from recombinator.transforms.affine import apply, invert, warp
from recombinator.transforms.augment import Augment, blurred

TILES = ((1, 0.6), (2, 0.25), (4, 0.15))  # tiles along a side of the scene, and the share of such scenes
LARGEST = 1.15  # side of an object, in sides of its tile
SMALLEST = 14.0  # pixels: below, keypoints can hardly be told apart, and a larger image size finds the object
CUT = 0.25  # share of the tiles in which the object may be cut by the border
ANY_ANGLE = 0.4  # share of the tiles that are rotated by any angle
EMPTY = 0.15  # share of the tiles that show an image without objects, where the album has any
TEXTURED = 0.6  # share of the tiles with an image without objects beyond the edges, where the album has any
LEVELS = 3  # resolutions of the images, each half of the one before: shrinking does not alias


@dataclass(frozen=True)
class Album:
    """Whole images with the squares of their objects.

    Attributes:
        levels: (N, C, S, S) uint8 images at falling resolution.
        squares: (N, M, 4) center x, y, side and rotation in degrees of the objects in pixels of the first level, NaN
            where an image has fewer than M.
    """

    levels: list[Tensor]
    squares: Tensor

    @classmethod
    def of(cls, images: Tensor, squares: Tensor) -> Album:
        """Return the album of (N, C, S, S) uint8 images."""
        levels = [images]
        for _ in range(LEVELS - 1):
            levels.append(torch.cat([F.avg_pool2d(part.float(), 2).round().byte() for part in levels[-1].split(256)]))
        return cls(levels, squares)

    def __len__(self) -> int:
        return len(self.squares)

    @cached_property
    def empty(self) -> Tensor:
        """Indices of the images without objects."""
        return (~self.squares.isfinite().all(dim=2).any(dim=1)).nonzero()[:, 0]


@dataclass(frozen=True)
class Scenes:
    """A batch of training scenes.

    Attributes:
        pixels: (B, C, size, size) float images, 0 to 255.
        objects: (B, M, 4) squares as in `Album`, in pixels of the scenes, NaN where there are fewer than M.
        annotated: (B, size, size) bool: the pixel comes from an image with annotated objects.
    """

    pixels: Tensor
    objects: Tensor
    annotated: Tensor


def draw_scenes(album: Album, index: Tensor, size: int, augment: Augment, generator: Generator) -> Scenes:
    """Draw one scene for each of the images `index`; further images of a mosaic are drawn at random.

    Args:
        album: The images.
        index: (B,) indices into the album.
        size: Side of the scenes in pixels.
        augment: Ranges of rotation and photometric changes, and whether images are mirrored. Sizes and positions are
            drawn from all that a finder has to find.
        generator: A generator on the CPU.
    """
    counts = [round(share * len(index)) for _, share in TILES[1:]]
    parts, first = [], 0
    for (tiles, _), count in zip(TILES, [len(index) - sum(counts), *counts], strict=True):
        if count:
            parts.append(_draw(album, index[first : first + count], size, tiles, augment, generator))
            first += count
    most = max(p.objects.shape[1] for p in parts)
    objects = [F.pad(p.objects, (0, 0, 0, most - p.objects.shape[1]), value=math.nan) for p in parts]
    scenes = Scenes(torch.cat([p.pixels for p in parts]), torch.cat(objects), torch.cat([p.annotated for p in parts]))
    return Scenes(_photometric(scenes.pixels, augment, generator), scenes.objects, scenes.annotated)


def _draw(album: Album, index: Tensor, size: int, tiles: int, augment: Augment, generator: Generator) -> Scenes:
    """Draw mosaics of tiles x tiles images."""
    b, side, device = len(index), size // tiles, album.squares.device
    chosen = torch.randint(len(album), (b, tiles**2), generator=generator)
    chosen[:, 0] = index
    shuffled = torch.rand(b, tiles**2, generator=generator).argsort(dim=1)
    chosen = chosen.gather(1, shuffled).flatten().to(device)
    n, empty = len(chosen), album.empty
    if len(empty):
        other = empty[torch.randint(len(empty), (n,), generator=generator).to(device)]
        chosen = torch.where((_random(n, generator=generator) < EMPTY).to(device), other, chosen)
    squares, anchor = _anchors(album, chosen, generator)
    low, high = math.log(SMALLEST), math.log(LARGEST * side)
    drawn = torch.exp(low + (high - low) * _random(n, generator=generator)).to(device)
    degrees = (2 * _random(n, generator=generator) - 1) * augment.degrees
    anywhere = (2 * _random(n, generator=generator) - 1) * 180
    degrees = torch.where(_random(n, generator=generator) < ANY_ANGLE, anywhere, degrees).to(device)
    margin = torch.where(_random(n, generator=generator).to(device) < CUT, 0.0, drawn / 2).clamp(max=side / 2)
    center = margin[:, None] + (side - 2 * margin)[:, None] * _random(n, 2, generator=generator).to(device)
    sign = torch.ones(n, device=device)
    if augment.flip:
        sign = torch.where(_random(n, generator=generator).to(device) < 0.5, -1.0, 1.0)
    # from the tile to the image: undo the drawn rotation, mirror, and apply the object's own rotation
    scale = anchor[:, 2] / drawn
    turn = torch.deg2rad(anchor[:, 3])
    own, back = _rotation(turn), _rotation(-torch.deg2rad(degrees))
    mirror = torch.diag_embed(torch.stack([sign, torch.ones_like(sign)], dim=1))
    linear = scale[:, None, None] * (own @ mirror @ back)
    to_image = torch.cat([linear, (anchor[:, :2] - (linear @ center[..., None])[..., 0])[..., None]], dim=2)
    pixels = torch.empty(n, album.levels[0].shape[1], side, side, device=device)
    cover = warp(torch.ones(n, 1, 64, 64, device=device), to_image * (64 / album.levels[0].shape[-1]), side)
    level = scale.log2().floor().clamp(0, LEVELS - 1).long()
    for k, images in enumerate(album.levels):
        rows = (level == k).nonzero()[:, 0]
        if len(rows):
            pixels[rows] = warp(images[chosen[rows]], to_image[rows] / 2**k, side)
    pixels = pixels + (1 - cover) * _behind(album, n, side, generator)
    objects = _moved(squares, to_image, degrees, anchor, sign, side)
    # put the tiles together
    row = torch.arange(tiles**2, device=device)
    corner = torch.stack([row % tiles, row // tiles], dim=1) * side
    objects[..., :2] += corner.repeat(b, 1)[:, None]
    known = album.squares[chosen].isfinite().all(dim=2).any(dim=1)
    annotated = known[:, None, None].expand(n, side, side)[:, None]
    return Scenes(
        _joined(pixels, tiles), objects.reshape(b, -1, 4), _joined(annotated.float(), tiles)[:, 0] > 0.5
    )  # fmt: skip


def _behind(album: Album, n: int, side: int, generator: Generator) -> Tensor:
    """Draw what is beyond the edges of the images in n tiles: flat gray, or a part of an image without objects."""
    device = album.squares.device
    flat = 255 * _random(n, 1, 1, 1, generator=generator).to(device)
    empty = album.empty
    textured = _random(n, generator=generator) < TEXTURED
    if not len(empty):
        return flat
    chosen = empty[torch.randint(len(empty), (n,), generator=generator).to(device)]
    images = album.levels[1]
    # a square of the image's middle, from a third of its side to two thirds
    share = (1 + _random(n, generator=generator)) / 3 * images.shape[-1]
    corner = (images.shape[-1] - share)[:, None] * (0.25 + 0.5 * _random(n, 2, generator=generator))
    linear = torch.eye(2) * (share / side)[:, None, None]
    to_image = torch.cat([linear, corner[..., None]], dim=2).to(device)
    return torch.where(textured[:, None, None, None].to(device), warp(images[chosen], to_image, side), flat)


def _random(*shape: int, generator: Generator) -> Tensor:
    return torch.rand(*shape, generator=generator)


def _rotation(radians: Tensor) -> Tensor:
    """Return (N, 2, 2) rotations, clockwise on the screen."""
    cos, sin = radians.cos(), radians.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _anchors(album: Album, chosen: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return the (N, M, 4) squares of images and one of them; a random square where an image has no object."""
    squares = album.squares[chosen]
    n, side = len(chosen), album.levels[0].shape[-1]
    there = squares.isfinite().all(dim=2)
    order = torch.rand(there.shape, generator=generator).to(there.device).masked_fill(~there, -1.0)
    picked = squares[torch.arange(n, device=squares.device), order.argmax(dim=1)]
    random = torch.rand(n, 4, generator=generator).to(squares.device)
    anywhere = torch.stack(
        [random[:, 0] * side, random[:, 1] * side, side * 0.1 * 15 ** random[:, 2], 360 * random[:, 3] - 180], dim=1
    )
    return squares, torch.where(there.any(dim=1)[:, None], picked, anywhere)


def _moved(
    squares: Tensor, to_image: Tensor, degrees: Tensor, anchor: Tensor, sign: Tensor, side: int
) -> Tensor:  # fmt: skip
    """Return (N, M, 4) squares in pixels of the tiles, NaN where the center is outside the tile."""
    centers = apply(invert(to_image), squares[..., :2])
    scale = torch.linalg.matrix_norm(to_image[:, :, :2], ord=2)
    # a rotation relative to the anchor's, which a mirror image turns the other way, then the drawn one
    turned = sign[:, None] * (squares[..., 3] - anchor[:, None, 3]) + degrees[:, None]
    turned = (turned + 180) % 360 - 180
    out = torch.cat([centers, (squares[..., 2] / scale[:, None])[..., None], turned[..., None]], dim=2)
    inside = ((centers >= 0) & (centers < side)).all(dim=2)
    return torch.where(inside[..., None], out, torch.nan)


def _joined(tiles: Tensor, along: int) -> Tensor:
    """Put (B * along^2, C, s, s) tiles together to (B, C, along * s, along * s), row by row."""
    n, c, s, _ = tiles.shape
    grid = tiles.reshape(n // along**2, along, along, c, s, s).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(n // along**2, c, along * s, along * s)


def _photometric(pixels: Tensor, augment: Augment, generator: Generator) -> Tensor:
    """Change gamma, contrast and brightness, blur, and add noise, within the ranges of `augment`."""
    n, device = len(pixels), pixels.device

    def uniform() -> Tensor:
        return (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1).to(device)

    if augment.gamma:
        pixels = (pixels / 255).clamp(0, 1).pow(torch.exp2(augment.gamma * uniform())) * 255
        pixels = (pixels - 128) * torch.exp2(augment.gamma * uniform()) + 128 + 60 * augment.gamma * uniform()
    if augment.blur:
        pixels = blurred(pixels, (augment.blur * uniform()[:, 0, 0, 0]).clamp_min(0))
    if augment.noise:
        noise = torch.randn(pixels.shape, generator=generator).to(device)
        pixels = pixels + (augment.noise * uniform()).clamp_min(0) * noise
    return pixels.clamp(0, 255)
