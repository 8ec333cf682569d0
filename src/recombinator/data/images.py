"""Read, convert and encode images of every supported format, bit depth and orientation."""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from recombinator.utils.errors import InputError, import_optional


class Readable(Protocol):
    """A file object opened in binary mode."""

    def read(self) -> bytes:
        """Return all bytes."""
        ...


if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from torch import Tensor

    Image: TypeAlias = np.ndarray | str | os.PathLike[str] | bytes | Readable | PillowImage | Tensor
else:
    Image = Any  # Pillow and torch are optional

logger = logging.getLogger(__name__)

SAMPLE_PHOTOGRAPH = Path(str(resources.files("recombinator") / "assets" / "grace_hopper.jpg"))
MAX_PIXELS = 200_000_000  # more than any camera has; decoded, these are 600 MB

# what the names of image files end in; the content of a file decides how it is decoded
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".gif", ".jp2",
    ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".psd", ".qoi", ".heic", ".heif",
)  # fmt: skip
# Pillow also has formats that start other programs, such as EPS. AVIF is last: early versions of Pillow lack it.
_PILLOW_FORMATS = (
    "JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM", "TGA", "PSD", "QOI", "AVIF",
)  # fmt: skip
_REDUCED = {8: "IMREAD_REDUCED_COLOR_8", 4: "IMREAD_REDUCED_COLOR_4", 2: "IMREAD_REDUCED_COLOR_2"}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MISSING_ROWS = 0.25  # largest share of an incomplete JPEG's rows that may be missing
_HALFTONE_SIGMA = 1.3  # pixels; the smoothing that turns the dots of a black-and-white picture into gray


def decode_image(
    data: bytes | np.ndarray, name: str, gray: bool = False, max_pixels: int | None = None
) -> np.ndarray:  # fmt: skip
    """Decode an image file that is in memory.

    The EXIF orientation is applied and an alpha channel is dropped. Images of more than 8 bits are scaled by the range
    in use: 12-bit values in a 16-bit file lose 4 bits.

    Args:
        data: The bytes of an image file.
        name: What error messages call the image.
        gray: Return a gray image in place of RGB.
        max_pixels: Refuse larger images, which the header tells before decoding. None: no limit.

    Returns:
        (H, W, 3) RGB or (H, W) gray, uint8.

    Raises:
        InputError: If the data cannot be decoded or has too many pixels.
    """
    import cv2

    buffer = np.frombuffer(data, np.uint8)
    if bytes(buffer[4:8]) == b"ftyp" and bytes(buffer[8:12]) in _HEIF_BRANDS:
        return _layout(_decode_heif(bytes(buffer), name, max_pixels), gray)
    header = _header(buffer, name, max_pixels) if max_pixels is not None else None
    if header is not None and header.mode == "F":  # OpenCV reads no gray image of floats
        return _layout(to_8_bit(np.asarray(header), name), gray)
    flags = (cv2.IMREAD_GRAYSCALE if gray else cv2.IMREAD_COLOR) | cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(buffer, flags) if len(buffer) else None
        if image is None and bytes(buffer[:2]) == b"\xff\xd8":
            image = _decode_incomplete_jpeg(buffer, name, flags)
    except cv2.error as error:
        raise InputError(f"{name}: cannot be decoded ({error.err or 'OpenCV gave no reason'})") from None
    if image is not None:
        image = to_8_bit(image if gray else image[..., ::-1], name)
        return _layout(_without_halftone(image) if header is not None and header.mode == "1" else image, gray)
    if header is None:
        header = _header(buffer, name, max_pixels)
    if header is None or header.format == "JPEG":
        raise InputError(
            f"{name}: not an image that can be decoded (supported: JPEG, PNG, BMP, TIFF, WebP, AVIF, GIF, JPEG 2000, "
            "PPM, TGA, PSD, QOI and HEIC)"
        )
    return _layout(to_8_bit(_from_pillow(header, name), name), gray)


def decode_reduced(data: bytes, name: str, longest: int, max_pixels: int | None) -> tuple[np.ndarray, int]:
    """Decode an image file, a JPEG at 1/2, 1/4 or 1/8 of its size if its longer side stays at least `longest`.

    Only sizes that are a multiple of the factor are reduced, so that pixels of both sizes correspond exactly.

    Returns:
        The (H, W, 3) RGB uint8 image, and the factor.

    Raises:
        InputError: If the data cannot be decoded or has too many pixels.
    """
    import cv2

    header = _header(np.frombuffer(data, np.uint8), name, max_pixels)
    if header is not None and header.format == "JPEG":
        width, height = header.size
        for factor, flag in _REDUCED.items():
            if max(width, height) >= factor * longest and not (width % factor or height % factor):
                image = cv2.imdecode(np.frombuffer(data, np.uint8), getattr(cv2, flag))
                if image is not None:
                    return np.ascontiguousarray(image[..., ::-1]), factor
                break
    return decode_image(data, name, max_pixels=max_pixels), 1


def _header(buffer: np.ndarray, name: str, max_pixels: int | None) -> PillowImage | None:
    """Return the image as Pillow opens it, before decoding; None for what Pillow does not know.

    Raises InputError for an image of more than `max_pixels`.
    """
    from PIL import Image as pillow

    image, pixels = None, 0
    try:
        image = pillow.open(io.BytesIO(buffer.tobytes()), formats=_PILLOW_FORMATS)
        pixels = image.width * image.height
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:  # Pillow's own, lower, limit
        pixels = int((re.search(r"\d+", str(error)) or [0])[0])
    except (OSError, SyntaxError, ValueError, KeyError):  # damaged or unknown; KeyError: a format Pillow lacks
        return None
    _check_pixels(pixels, name, max_pixels)
    return image


def _check_pixels(pixels: int, name: str, max_pixels: int | None) -> None:
    if max_pixels is not None and pixels > max_pixels:
        raise InputError(
            f"{name}: has {pixels / 1e6:.0f} million pixels, more than the limit of {max_pixels / 1e6:g} million "
            "(--max-pixels, or max_pixels in Python)"
        )


def _decode_heif(data: bytes, name: str, max_pixels: int | None) -> np.ndarray:
    heif = import_optional("pillow_heif", f"{name}: HEIC")
    try:
        image = heif.open_heif(data, convert_hdr_to_8bit=True)
        _check_pixels(image.size[0] * image.size[1], name, max_pixels)
        return np.asarray(image.to_pillow().convert("RGB"))
    except (OSError, SyntaxError, EOFError, RuntimeError) as error:
        raise InputError(f"{name}: cannot be decoded ({error})") from None


def _decode_incomplete_jpeg(buffer: np.ndarray, name: str, flags: int) -> np.ndarray | None:
    """Decode a JPEG file that lacks its end, with a warning; None if too much is missing."""
    import cv2

    image = cv2.imdecode(np.append(buffer, np.array([0xFF, 0xD9], np.uint8)), flags)  # the end marker
    if image is None:
        return None
    rows = image.reshape(len(image), -1)
    # the decoder fills the missing rows with one color
    missing = int((rows[::-1] == rows[-1]).all(axis=1).cumprod().sum())
    missing = 0 if missing == 1 else missing
    if missing > _MISSING_ROWS * len(image):
        return None
    logger.warning("%s: incomplete; %s", name, f"the last {missing} of {len(image)} rows may be missing" if missing
                   else "its last bytes are missing")  # fmt: skip
    return image


def _without_halftone(image: np.ndarray) -> np.ndarray:
    """Turn a picture of black and white dots into gray, which detectors and networks know."""
    import cv2

    return cv2.GaussianBlur(image, (0, 0), _HALFTONE_SIGMA)


def _layout(image: np.ndarray, gray: bool) -> np.ndarray:
    """Return a uint8 image as (H, W) gray or (H, W, 3) RGB, contiguous."""
    if gray:
        return np.ascontiguousarray(to_gray(image))
    return np.ascontiguousarray(np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image)


def to_8_bit(image: np.ndarray, name: str = "the image") -> np.ndarray:
    """Scale an image to 8 bits by the range in use.

    Cameras with 10, 12 or 14 bits write them into files of 16 bits. The range is that of the smallest number of bits,
    at least 8, that holds the largest value.

    Args:
        image: Array of unsigned integers, or floats of 0 or more; floats up to 1 are scaled by 255.
        name: What the error message calls the image.

    Returns:
        uint8 array of the same shape.

    Raises:
        InputError: If the array holds a negative number, NaN or infinity.
    """
    if image.dtype == np.uint8 or not image.size:
        return image.astype(np.uint8, copy=False)
    low, high = float(image.min()), float(image.max())
    if not (low >= 0 and np.isfinite(high)):
        raise InputError(f"{name}: has values from {low:g} to {high:g}; expected 0 or more")
    bits = max(8, int(high).bit_length())
    if image.dtype.kind == "u":
        return (image >> (bits - 8)).astype(np.uint8)
    full = 1.0 if high <= 1 and image.dtype.kind == "f" else float(2**bits - 1)
    return np.round(image * (255 / full)).astype(np.uint8)


def read_image(path: str | os.PathLike[str], max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """Read an image file and apply its EXIF orientation.

    Args:
        path: An image file; its content decides the format.
        max_pixels: Refuse larger images before decoding. None: no limit.

    Returns:
        (H, W, 3) RGB, uint8.

    Raises:
        InputError: If the file is missing, is not an image, or has too many pixels.
    """
    return decode_image(read_file(path), str(path), max_pixels=max_pixels)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file.

    Raises:
        InputError: If it cannot be read, or is a pipe or a device, which may never end.
    """
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"{path}: not a regular file (a pipe or a device); save the image to a file first")
        return Path(path).read_bytes()
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def as_image(image: Image, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """Convert any supported image to an array.

    Args:
        image: One of:
            - the path of an image file;
            - the bytes of an image file, or a file object opened in binary mode;
            - an (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA array, uint8 or uint16;
            - a Pillow image, whose EXIF orientation is applied;
            - an (H, W), (H, W, 3) or (3, H, W) torch tensor on any device, uint8, or float with values from 0 to 1.
        max_pixels: Refuse larger files before decoding. None: no limit.

    Returns:
        (H, W) gray or (H, W, 3) RGB, uint8, contiguous. An alpha channel is dropped.

    Raises:
        InputError: For any other type, shape, data type or value range, and for a file that cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, max_pixels)
    if isinstance(image, bytes | bytearray | memoryview):
        return decode_image(bytes(image), "the image", max_pixels=max_pixels)
    # an object of an optional library can only exist if the library has been imported
    pillow, torch = sys.modules.get("PIL.Image"), sys.modules.get("torch")
    if pillow is not None and isinstance(image, pillow.Image):
        pixels = _from_pillow(image, "the Pillow image")
    elif torch is not None and isinstance(image, torch.Tensor):
        pixels = _from_tensor(image)
    elif hasattr(image, "__array__"):
        pixels = np.asarray(image)
    elif hasattr(image, "read"):
        data = image.read()
        if not isinstance(data, bytes):
            raise InputError("the file object gives text; open the image in binary mode, with open(path, 'rb')")
        return decode_image(data, str(getattr(image, "name", "the image")), max_pixels=max_pixels)
    else:
        hint = " (cv2.imread returns None for a file that it cannot read)" if image is None else ""
        raise InputError(
            "an image must be a path, bytes, a binary file, an array, a Pillow image or a torch tensor, got "
            f"{type(image).__name__}{hint}"
        )
    return _checked(pixels)


def _from_pillow(image: PillowImage, name: str) -> np.ndarray:
    from PIL import ImageOps

    try:
        image, bilevel = ImageOps.exif_transpose(image), image.mode == "1"
        if image.mode not in ("L", "RGB", "RGBA", "I", "F") and not image.mode.startswith("I;16"):
            image = image.convert("L" if bilevel else "RGB")
        pixels = np.asarray(image)
    except (OSError, SyntaxError) as error:  # Pillow decodes at first use; it reports damage in either way
        raise InputError(f"{name} cannot be decoded ({error})") from None
    return np.repeat(_without_halftone(pixels)[..., None], 3, axis=2) if bilevel else pixels


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
        image = to_8_bit(image)
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
