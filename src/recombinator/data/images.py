"""Read, convert and encode images of every supported format, bit depth and orientation."""

from __future__ import annotations

import os
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from recombinator.utils.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from torch import Tensor

    Image: TypeAlias = np.ndarray | str | os.PathLike[str] | PillowImage | Tensor
else:
    Image = Any  # Pillow and torch are optional

SAMPLE_PHOTOGRAPH = Path(str(resources.files("recombinator") / "assets" / "grace_hopper.jpg"))


def decode_image(data: bytes | np.ndarray, name: str, gray: bool = False) -> np.ndarray:
    """Decode an image file that is in memory.

    The EXIF orientation is applied, 16-bit images are scaled to 8 bits, and an alpha channel is dropped.

    Args:
        data: The bytes of a JPEG, PNG, BMP, TIFF or WebP file.
        name: What error messages call the image.
        gray: Return a gray image in place of RGB.

    Returns:
        (H, W, 3) RGB or (H, W) gray, uint8.

    Raises:
        InputError: If the data cannot be decoded.
    """
    import cv2

    buffer = np.frombuffer(data, np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR) if len(buffer) else None
    except cv2.error as error:
        raise InputError(f"{name}: cannot be decoded ({error.err or 'OpenCV gave no reason'})") from None
    if image is None:
        raise InputError(f"{name}: not an image that can be decoded (supported: JPEG, PNG, BMP, TIFF and WebP)")
    return np.ascontiguousarray(image if gray else image[..., ::-1])


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file and apply its EXIF orientation.

    Args:
        path: A JPEG, PNG, BMP, TIFF or WebP file.

    Returns:
        (H, W, 3) RGB, uint8.

    Raises:
        InputError: If the file is missing or is not an image.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return decode_image(data, str(path))


def as_image(image: Image) -> np.ndarray:
    """Convert any supported image to an array.

    Args:
        image: One of:
            - the path of an image file;
            - an (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA array, uint8 or uint16;
            - a Pillow image, whose EXIF orientation is applied;
            - an (H, W), (H, W, 3) or (3, H, W) torch tensor on any device, uint8, or float with values from 0 to 1.

    Returns:
        (H, W) gray or (H, W, 3) RGB, uint8, contiguous. An alpha channel is dropped.

    Raises:
        InputError: For any other type, shape, data type or value range, and for a file that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    # an object of an optional library can only exist if the library has been imported
    pillow, torch = sys.modules.get("PIL.Image"), sys.modules.get("torch")
    if pillow is not None and isinstance(image, pillow.Image):
        pixels = _from_pillow(image)
    elif torch is not None and isinstance(image, torch.Tensor):
        pixels = _from_tensor(image)
    elif hasattr(image, "__array__"):
        pixels = np.asarray(image)
    else:
        hint = ""
        if image is None:
            hint = " (cv2.imread returns None for a file that it cannot read)"
        elif isinstance(image, bytes | bytearray | memoryview):
            hint = "; decode it first, for example with PIL.Image.open(io.BytesIO(data))"
        kind = type(image).__name__
        raise InputError(f"an image must be a path, an array, a Pillow image or a torch tensor, got {kind}{hint}")
    return _checked(pixels)


def _from_pillow(image: PillowImage) -> np.ndarray:
    from PIL import ImageOps

    try:
        image = ImageOps.exif_transpose(image)
        if image.mode not in ("L", "RGB", "RGBA", "I", "F") and not image.mode.startswith("I;16"):
            image = image.convert("RGB")
        return np.asarray(image)
    except (OSError, SyntaxError) as error:  # Pillow decodes at first use; it reports damage in either way
        raise InputError(f"the Pillow image cannot be decoded ({error})") from None


def _from_tensor(image: Tensor) -> np.ndarray:
    image = image.detach().cpu()
    if image.is_floating_point():
        image = image.float()
        low, high = (float(v) for v in image.aminmax()) if image.numel() else (0.0, 1.0)
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise InputError(f"a float tensor must hold values from 0 to 1, got {low:g} to {high:g}")
        image = (image * 255).round().byte()
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = image.permute(1, 2, 0)
    return image.numpy()


def _checked(image: np.ndarray) -> np.ndarray:
    """Return the (H, W[, 1, 3 or 4]) array as contiguous gray or RGB uint8. Raises InputError if it is none."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 3 and image.shape[2] == 4:
        image = image[..., :3]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        raise InputError(f"an image must be (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, got shape {image.shape}")
    if image.dtype.kind == "u" and image.dtype.itemsize == 2:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise InputError(f"an image must be uint8 (or uint16) with values from 0, got {image.dtype}")
    return np.ascontiguousarray(image)


def to_gray(image: np.ndarray) -> np.ndarray:
    """Convert an image to gray with the weights of ITU-R BT.601.

    Args:
        image: (H, W, 3) RGB or (H, W) gray, uint8.

    Returns:
        (H, W), uint8. A gray image is returned unchanged.
    """
    import cv2

    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def encode_image(image: np.ndarray, quality: int) -> bytes:
    """Encode an image as JPEG, or without loss as PNG.

    Args:
        image: (H, W, 3) RGB or (H, W) gray, uint8.
        quality: JPEG quality from 1 to 100; 0 selects PNG.

    Returns:
        The bytes of the file.
    """
    import cv2

    bgr = image if image.ndim == 2 else image[..., ::-1]
    if quality == 0:
        ok, data = cv2.imencode(".png", bgr)
    else:
        ok, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return data.tobytes()
