"""From an annotated face in an image to a row of a table, the same for every dataset."""

from __future__ import annotations

import numpy as np

from recombinator.data.crops import CropRule
from recombinator.data.images import encode_image, to_gray
from recombinator.data.table import Row
from recombinator.utils.errors import InputError

FAR_OUTSIDE = 0.5  # of the image's longer side


def crop_row(
    image: np.ndarray, points: np.ndarray, file: str, rule: CropRule, *, size: int, gray: bool, quality: int,
    subset: str = "", attributes: dict[str, int] | None = None, mask: np.ndarray | None = None,
) -> Row:  # fmt: skip
    """Cut one annotated object out of an image.

    Args:
        image: (H, W) gray or (H, W, 3) RGB uint8.
        points: (K, 2) x, y in pixels of the image, all finite, those that `mask` excludes too.
        file: name of the image file.
        rule: the crop rule.
        size: side of the stage-1 crop in pixels.
        gray: store a gray crop.
        quality: JPEG quality; 0 stores PNG, without loss.
        subset: the part of the dataset that the row belongs to.
        attributes: classes by name.
        mask: (K,) False where a point must not be used; None: all can be used.

    Returns:
        The row, with points and box in pixels of the crop.

    Raises:
        InputError: a point is outside the image by more than half of its longer side, or the crop is too small.
    """
    height, width = image.shape[:2]
    margin = FAR_OUTSIDE * max(height, width)
    if (points < -margin).any() or (points > np.array([width, height]) + margin).any():
        raise InputError(f"a point is far outside the {width}x{height} image")
    crop, to_file, box = rule.crop(to_gray(image) if gray else image, points, size)
    inside = (points - to_file[:, 2]) / to_file[0, 0]
    return Row(encode_image(crop, quality), inside, box, to_file, file, (width, height), subset, mask, attributes or {})
