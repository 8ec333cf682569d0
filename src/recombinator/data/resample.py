"""Resize crops with Pillow's Lanczos filter."""

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
