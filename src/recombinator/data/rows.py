"""From an annotated face in an image to a row of a table, the same for every dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recombinator.data.crops import CropRule
from recombinator.data.images import ENDINGS, encode_image, read_image, to_gray
from recombinator.data.table import SPLIT_SEED, Row
from recombinator.utils.errors import InputError
from recombinator.utils.files import is_inside

FAR_OUTSIDE = 0.5  # of the image's longer side


def crop_row(
    image: np.ndarray, points: np.ndarray, file: str, rule: CropRule, *, size: int, gray: bool, quality: int,
    subset: str = "", attributes: dict[str, int] | None = None, mask: np.ndarray | None = None,
) -> Row:  # fmt: skip
    """Cut one annotated object out of an image.

    Args:
        image: (H, W) gray or (H, W, 3) RGB uint8.
        points: (K, 2) x, y in pixels of the image, all finite, those that `mask` excludes too.
        file: Name of the image file.
        rule: The crop rule.
        size: Side of the stage-1 crop in pixels.
        gray: Store a gray crop.
        quality: JPEG quality; 0 stores PNG, without loss.
        subset: The part of the dataset that the row belongs to.
        attributes: Classes by name.
        mask: (K,) False where a point must not be used; None: all can be used.

    Returns:
        The row, with points and box in pixels of the crop.

    Raises:
        InputError: A point is outside the image by more than half of its longer side, or the crop is too small.
    """
    height, width = image.shape[:2]
    margin = FAR_OUTSIDE * max(height, width)
    if (points < -margin).any() or (points > np.array([width, height]) + margin).any():
        raise InputError(f"a point is far outside the {width}x{height} image")
    crop, to_file, box = rule.crop(to_gray(image) if gray else image, points, size)
    inside = (points - to_file[:, 2]) / to_file[0, 0]
    return Row(encode_image(crop, quality), inside, box, to_file, file, (width, height), subset, mask, attributes or {})


def read_listed(folder: Path, path: Path) -> np.ndarray:
    """Read an image that a dataset's list names.

    Args:
        folder: Folder of the dataset.
        path: The image.

    Raises:
        InputError: The image is outside the folder, or cannot be read.
    """
    if not is_inside(path, folder):
        raise InputError(f"{path}: outside {folder}; its pixels do not belong to this dataset")
    return read_image(path)


def background_jobs(folder: Path) -> dict[str, list[Path]]:
    """Return the images of a folder by split: a seeded tenth for validation, the others for training.

    Raises:
        InputError: The folder has no images.
    """
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
    if not images:
        raise InputError(f"{folder}: no images in this folder")
    order = np.random.RandomState(SPLIT_SEED).permutation(len(images))
    valid = set(order[: max(1, len(images) // 10)].tolist())
    return {
        "train": [p for i, p in enumerate(images) if i not in valid],
        "valid": [p for i, p in enumerate(images) if i in valid],
    }


def background_row(
    path: Path, rule: CropRule, keypoints: int, *, size: int, gray: bool, quality: int,
    attributes: tuple[str, ...] = (),
) -> Row:  # fmt: skip
    """Return the row of a whole image without objects: no point is known.

    Args:
        path: The image.
        rule: A crop rule for whole images.
        keypoints: K of the table.
        size: See `crop_row`.
        gray: See `crop_row`.
        quality: See `crop_row`.
        attributes: The table's attributes; each is 0.

    Raises:
        InputError: It is not an image.
    """
    image = read_image(path)
    center = np.tile(np.array(image.shape[1::-1]) / 2, (keypoints, 1))
    return crop_row(
        image, center, f"{path.parent.name}/{path.name}", rule, size=size, gray=gray, quality=quality,
        mask=np.zeros(keypoints, bool), attributes=dict.fromkeys(attributes, 0),
    )  # fmt: skip
