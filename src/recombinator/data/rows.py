"""From an annotated face in a photograph to a row of the table: the same for every dataset."""

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
    """(H, W[, 3]) image, (K, 2) points in it, a pixel's center at + 0.5 -> the row with the stage-1 crop. `mask`: (K,)
    False where a point must not be used; it must be finite all the same. Raises InputError for points far outside."""
    height, width = image.shape[:2]
    margin = FAR_OUTSIDE * max(height, width)
    if (points < -margin).any() or (points > np.array([width, height]) + margin).any():
        raise InputError(f"a point lies far outside the {width}x{height} image")
    crop, to_file, box = rule.crop(to_gray(image) if gray else image, points, size)
    inside = (points - to_file[:, 2]) / to_file[0, 0]
    return Row(encode_image(crop, quality), inside, box, to_file, file, (width, height), subset, mask, attributes or {})
