"""Unlabeled images of a fit: a folder of images and videos becomes rows without known points."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recombinator.data.images import ENDINGS, read_image
from recombinator.data.table import FaceTable
from recombinator.fit.samples import Sample, cut, make_table, table_info
from recombinator.keypoints import KeypointSet
from recombinator.predict.track import VIDEO_ENDINGS, spaced_frames
from recombinator.utils.errors import InputError

logger = logging.getLogger(__name__)

MOST_IMAGES = 5_000  # unlabeled images in memory
FRAMES = 100  # of each video


def frames(path: Path, most: int = FRAMES) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a video's frames, evenly spaced, each with a name.

    Args:
        path: The video.
        most: Largest number of frames.
    """
    for number, image in spaced_frames(str(path), most):
        yield f"{path.name}#{number}", image


def _images(folder: Path, excluded: set[Path]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the images of a folder and the frames of its videos; those that cannot be read are logged."""
    paths = sorted(p for p in folder.rglob("*") if not p.name.startswith(".") and p.resolve() not in excluded)
    images = [p for p in paths if p.suffix.lower() in ENDINGS]
    if len(images) > MOST_IMAGES:
        logger.warning(f"{folder}: {MOST_IMAGES} of its {len(images)} images are used, evenly spaced")
        images = [images[i] for i in np.linspace(0, len(images) - 1, MOST_IMAGES).astype(int)]
    for path in images:
        try:
            yield path.relative_to(folder).as_posix(), read_image(path)
        except InputError as error:
            logger.warning("%s", error)
    for path in paths:
        if path.suffix.lower() in VIDEO_ENDINGS:
            yield from frames(path)


def unlabeled_table(
    folder: Path, keypoints: KeypointSet, rule: str, size: int, channels: int, excluded: set[Path]
) -> FaceTable:
    """Return the table of a folder's images, with no point known.

    Args:
        folder: Images, and videos of which frames are taken.
        keypoints: The keypoint set.
        rule: A crop rule for whole images.
        size: Side of the crops in pixels.
        channels: 1 for gray, 3 for RGB.
        excluded: Resolved paths that must not be used: the annotated images, held-out ones too.

    Raises:
        InputError: The folder has no usable image.
    """
    unknown = np.full((len(keypoints), 2), np.nan)
    rows = []
    for name, image in _images(folder, excluded):
        sample = Sample(unknown, name, folder / name, name, "")
        rows.append((sample, cut(sample, image, rule, size, channels), unknown))
    if not rows:
        raise InputError(f"{folder}: no further images or videos in this folder; expected some that are not annotated")
    return make_table(table_info("train", keypoints, rule, size, channels), rows)
