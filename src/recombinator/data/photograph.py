"""A photograph whose file is decoded at reduced size where that is enough."""

from __future__ import annotations

import os
import sys
from functools import cached_property

import numpy as np

from recombinator.data.images import MAX_PIXELS, Image, as_image, decode_image, decode_reduced, read_file


class Photograph:
    """Hold an image, or a large JPEG file at 1/2, 1/4 or 1/8 of its size.

    A JPEG decoder computes a reduced image directly, in a fraction of the time.

    Args:
        image: Anything that `data.images.as_image` takes.
        longest: Longest side that a detector sees. The reduced image is not smaller. None: always decode the full size.
        max_pixels: Refuse larger files before decoding. None: no limit.
        name: What error messages call an image without a file name.

    Attributes:
        pixels: (H / factor, W / factor[, 3]) uint8.
        factor: Reduction of `pixels`: 1, 2, 4 or 8.
        width, height: Size of the full image in pixels.

    Raises:
        InputError: If the image cannot be used.
    """

    def __init__(
        self, image: Image, longest: int | None = None, max_pixels: int | None = MAX_PIXELS,
        name: str = "the image",
    ) -> None:  # fmt: skip
        self._data: tuple[bytes, str] | None = None
        self.factor = 1
        if isinstance(image, bytes | str | os.PathLike):
            data, name = (image, name) if isinstance(image, bytes) else (read_file(image), str(image))
            self.pixels, self.factor = decode_reduced(data, name, longest or sys.maxsize, max_pixels)
            self._data = (data, name) if self.factor > 1 else None
        else:
            self.pixels = as_image(image, max_pixels)
        self.height, self.width = (side * self.factor for side in self.pixels.shape[:2])

    @cached_property
    def full(self) -> np.ndarray:
        """The image at its full size, decoded at the first use."""
        return decode_image(*self._data) if self._data else self.pixels
