"""Reading photographs: one door for every format, bit depth and orientation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from recombinator.utils.errors import InputError


def decode_image(data: bytes | np.ndarray, name: str, gray: bool = False) -> np.ndarray:
    """Encoded bytes -> (H, W, 3) RGB or (H, W) gray uint8, upright by its EXIF flag.

    16-bit images are scaled to 8; alpha is dropped. Raises InputError naming `name` if it cannot be decoded.
    """
    import cv2

    buffer = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR) if len(buffer) else None
    except cv2.error as error:
        raise InputError(f"{name}: cannot be decoded ({error.err or 'OpenCV refused it'})") from None
    if image is None:
        raise InputError(f"{name}: not an image that can be decoded (JPEG, PNG, BMP, TIFF and WebP can)")
    return np.ascontiguousarray(image if gray else image[..., ::-1])


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """A file -> (H, W, 3) RGB uint8, upright. Raises InputError if it is missing or not an image."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return decode_image(data, str(path))


def to_gray(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) RGB -> (H, W) uint8, ITU-R 601 weights; a gray image is returned as it is."""
    import cv2

    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def encode_image(image: np.ndarray, quality: int) -> bytes:
    """(H, W, 3) RGB or (H, W) gray uint8 -> JPEG of that quality; quality 0 -> PNG, without loss."""
    import cv2

    bgr = image if image.ndim == 2 else image[..., ::-1]
    if quality == 0:
        ok, data = cv2.imencode(".png", bgr)
    else:
        ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return data.tobytes()
