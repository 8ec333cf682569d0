"""Resize crops with Pillow's Lanczos filter, and sample squares bilinearly."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image to a square with Lanczos filtering and antialiasing, as the authors' code does.

    Args:
        image: (H, W) gray or (H, W, 3) RGB, uint8.
        size: Side of the result in pixels.

    Returns:
        (size, size) or (size, size, 3) uint8.
    """
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def square(image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Sample a square of an image bilinearly at the centers of size x size cells, without antialiasing.

    This equals `transforms.affine.warp` for a box without rotation. OpenCV's warpAffine and remap do not: they round
    the weights to 1/32 pixel.

    Args:
        image: (H, W) or (H, W, C). Pixels outside it are black.
        box: (x, y, side) in image pixels; a pixel's center is at its integer + 0.5.
        size: Number of cells per side.

    Returns:
        (C, size, size) float64.
    """

    def weights(start: float, side: float, count: int) -> np.ndarray:
        at = start + (np.arange(size) + 0.5) * side / size - 0.5
        low = np.floor(at).astype(int)
        out = np.zeros((size, count))
        for offset, share in ((0, 1 - (at - low)), (1, at - low)):
            inside = (low + offset >= 0) & (low + offset < count)
            out[np.flatnonzero(inside), (low + offset)[inside]] = share[inside]
        return out

    x, y, side = (float(v) for v in box)
    planes = np.moveaxis(np.atleast_3d(image).astype(np.float64), 2, 0)
    return weights(y, side, image.shape[0]) @ planes @ weights(x, side, image.shape[1]).T
