"""Tables in memory for the stages of a fit: whole inputs, coarse inputs, and patches around keypoints."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recombinator.data.crops import RULES
from recombinator.data.images import read_image, to_gray
from recombinator.data.points import point_sets, read_entries
from recombinator.data.readers.own import infer_keypoints
from recombinator.data.resample import resized
from recombinator.data.select import take_rows
from recombinator.data.table import FaceTable, TableInfo, batched, file_limits
from recombinator.keypoints import KeypointSet
from recombinator.utils.errors import InputError

logger = logging.getLogger(__name__)

FEW_ROWS = 512  # rows of a training table: a smaller one is repeated, so that an epoch has enough steps
MOST_PATCHES = 40_000  # patches in memory
IN_MEMORY = 64  # images that are decoded at the same time


@dataclass(frozen=True)
class Sample:
    """One annotated object.

    Attributes:
        points: (K, 2) x, y in pixels of the image; NaN where a point is missing.
        file: Name of the image in the points file.
        path: The image.
        where: The place in the points file, for messages.
        face: Which of the image's objects it is.
        mm_per_pixel: Physical size of a pixel; NaN if unknown.
    """

    points: np.ndarray
    file: str
    path: Path
    where: str
    face: str
    mm_per_pixel: float = float("nan")

    @property
    def known(self) -> np.ndarray:
        """(K,) whether a point has coordinates."""
        return np.isfinite(self.points).all(axis=1)

    @property
    def filled(self) -> np.ndarray:
        """(K, 2) the points, missing ones at the mean of the known ones; all 0 where none is known."""
        if not self.known.any():
            return np.zeros_like(self.points)
        return np.where(self.known[:, None], self.points, self.points[self.known].mean(axis=0))


@dataclass(frozen=True)
class Crop:
    """What the predictor would cut for a sample, at a given resolution.

    Attributes:
        image: (H, H) or (H, H, 3) uint8 stage-1 crop.
        to_file: (2, 3) affine from crop to image.
        box: (3,) the network's square in crop pixels.
        file_size: Width and height of the image.
    """

    image: np.ndarray
    to_file: np.ndarray
    box: np.ndarray
    file_size: tuple[int, int]


def cut(sample: Sample, image: np.ndarray, rule: str, stored: int, channels: int) -> Crop:
    """Cut the stage-1 crop of a sample out of its image, with `stored` pixels to each side."""
    height, width = image.shape[:2]
    pixels = to_gray(image) if channels == 1 else image
    try:
        crop, to_file, box = RULES[rule].crop(pixels, sample.filled, stored)
    except InputError as error:
        raise InputError(f"{sample.where}: {error}") from None
    return Crop(crop, to_file, box, (width, height))


def crops(samples: Sequence[Sample], rule: str, size: int, channels: int) -> Iterator[tuple[Sample, Crop]]:
    """Cut the stage-1 crop of every sample, in order.

    Args:
        samples: The samples.
        rule: The crop rule.
        size: Side of the network's input in pixels.
        channels: 1 for gray, 3 for RGB.
    """

    def job(sample: Sample) -> Crop:
        return cut(sample, read_image(sample.path), rule, RULES[rule].stored_size(size), channels)

    with ThreadPoolExecutor() as pool:
        for group in batched(samples, IN_MEMORY):
            yield from zip(group, pool.map(job, group), strict=True)


def make_table(info: TableInfo, rows: list[tuple[Sample, Crop, np.ndarray]]) -> FaceTable:
    """Return a table of crops with their points, (K, 2) in crop pixels and NaN where unknown."""
    points = np.stack([p for _, _, p in rows]).astype(np.float32)
    mask = np.asarray(np.isfinite(points).all(axis=2))
    center = points.sum(axis=1, keepdims=True, where=mask[..., None])
    center /= np.maximum(mask.sum(axis=1), 1)[:, None, None]
    points = np.where(mask[..., None], points, center)
    images = np.stack([c.image if c.image.ndim == 3 else c.image[..., None] for _, c, _ in rows]).transpose(0, 3, 1, 2)
    to_file = np.stack([c.to_file for _, c, _ in rows])
    sizes = np.array([c.file_size for _, c, _ in rows], np.float64)
    return FaceTable(
        info=info, images=np.ascontiguousarray(images), points=points, mask=mask,
        boxes=np.stack([c.box for _, c, _ in rows]).astype(np.float32), to_file=to_file,
        limits=file_limits(to_file, sizes), files=[s.file for s, _, _ in rows],
        subsets=[""] * len(rows), fingerprint=hashlib.sha256(images.tobytes() + points.tobytes()).hexdigest()[:16],
    )  # fmt: skip


def repeated(table: FaceTable, least: int = FEW_ROWS) -> FaceTable:
    """Repeat the rows of a small table, so that it has at least `least` rows."""
    rows = np.tile(np.arange(len(table)), -(-least // len(table)))
    return replace(take_rows(table, rows), fingerprint=table.fingerprint)


def table_info(split: str, keypoints: KeypointSet, rule: str, size: int, channels: int) -> TableInfo:
    return TableInfo("fit", split, keypoints, rule, size, channels == 1)


def _shrunk(crop: Crop, size: int) -> Crop:
    """Return the crop at another resolution."""
    factor = crop.image.shape[0] / size
    if factor == 1:
        return crop
    scale = np.array([factor, factor, 1.0])
    return Crop(resized(crop.image, size), crop.to_file * scale, crop.box / factor, crop.file_size)


def inside_crop(sample: Sample, crop: Crop) -> np.ndarray:
    """Return the (K, 2) points in crop pixels."""
    return (sample.points - crop.to_file[:, 2]) / crop.to_file[0, 0]


def whole_table(
    samples: Sequence[Sample], keypoints: KeypointSet, rule: str, size: int, channels: int, split: str
) -> FaceTable:
    """Return the table of a network whose input has `size` pixels."""
    rows = [(s, c, inside_crop(s, c)) for s, c in crops(samples, rule, size, channels)]
    return make_table(table_info(split, keypoints, rule, size, channels), rows)


def training_tables(
    samples: Sequence[Sample], keypoints: KeypointSet, rule: str, size: int, factor: int, patch: int, channels: int,
    seed: int = 0, fine: bool = True,
) -> list[FaceTable]:  # fmt: skip
    """Return the training tables of the networks of a cascade.

    Args:
        samples: The training samples.
        keypoints: Their keypoint set.
        rule: The crop rule.
        size: Side of the coarse network's input in pixels.
        factor: Pixels of the cascade's input per pixel of the coarse one.
        patch: Side of the fine network's input in pixels.
        channels: 1 for gray, 3 for RGB.
        seed: Seed of the choice of patches, if there are more than MOST_PATCHES.
        fine: Also make the table of patches.

    Returns:
        The table of coarse inputs at twice their resolution, which jitter needs; and with `fine` the table of patches
        around known points, of twice the patch's side, with every point that is inside.
    """
    coarse: list[tuple[Sample, Crop, np.ndarray]] = []
    patches: list[tuple[Sample, Crop, np.ndarray]] = []
    generator, share = np.random.default_rng(seed), MOST_PATCHES / max(1, sum(int(s.known.sum()) for s in samples))
    stored = RULES[rule].stored_size(size * min(factor, 2))
    for sample, crop in crops(samples, rule, size * factor, channels):
        small = _shrunk(crop, stored)
        coarse.append((sample, small, inside_crop(sample, small)))
        inside = inside_crop(sample, crop)
        kept = sample.known & fine & (generator.random(len(sample.known)) < share)
        patches += [(sample, *_patch(crop, inside, inside[k], patch)) for k in np.flatnonzero(kept)]
    tables = [make_table(table_info("train", keypoints, rule, stored, channels), coarse)]
    if fine:
        tables.append(make_table(table_info("train", keypoints, rule, 2 * patch, channels), patches))
    return tables


def _patch(crop: Crop, points: np.ndarray, center: np.ndarray, side: int) -> tuple[Crop, np.ndarray]:
    """Cut a square of 2 x side pixels around a point; points outside it are unknown."""
    corner = np.round(center - side).astype(int)
    low = np.maximum(corner, 0)
    part = crop.image[low[1] : max(corner[1] + 2 * side, 0), low[0] : max(corner[0] + 2 * side, 0)]
    image = np.zeros((2 * side, 2 * side, *crop.image.shape[2:]), np.uint8)
    x, y = low - corner
    image[y : y + part.shape[0], x : x + part.shape[1]] = part
    moved = points - corner
    moved = np.where(((moved >= 0) & (moved < 2 * side)).all(axis=1, keepdims=True), moved, np.nan)
    to_file = crop.to_file.copy()
    to_file[:, 2] += to_file[0, 0] * corner
    box = np.array([*(center - corner - side / 2), side])
    return Crop(image, to_file, box, crop.file_size), moved


def read_samples(
    source: Path, images: Path | None, allow_outside: bool = False
) -> tuple[list[Sample], KeypointSet]:  # fmt: skip
    """Read a points file with the paths of its images.

    Args:
        source: The points, in any format that `recombinator.data.points.read_entries` reads.
        images: Folder of the images; None: that of `source`.
        allow_outside: Images outside the folder of the points file and `images` are allowed.

    Returns:
        The objects with two or more known points (one, for a single keypoint), and their keypoint set. What cannot be
        used is logged.

    Raises:
        InputError: The file cannot be read, it names no images, or it names one outside.
    """
    entries = read_entries(source, "auto", images=images, allow_outside=allow_outside)
    keypoints = infer_keypoints(entries, source)
    dropped: list[InputError] = []
    sets = [p for p in point_sets(entries, keypoints, dropped.append) if np.isfinite(p.points).any()]
    for error in dropped:
        logger.warning("%s", error)
    if not sets or {p.file for p in sets} == {""}:
        raise InputError(f"{source}: nothing in it names the images; expected a column or field `file`")
    paths = {p.file: p.entry.path or Path(p.file) for p in sets}
    missing = [name for name, path in sorted(paths.items()) if not os.path.isfile(path)]
    for name in missing[:10]:
        logger.warning("%s: no such image (%s)", name, paths[name])
    least = min(2, len(keypoints))
    samples = [
        Sample(p.points, p.file, paths[p.file], p.where, p.face, p.entry.mm_per_pixel)
        for p in sets if p.file not in missing
    ]  # fmt: skip
    samples = [s for s in samples if s.known.sum() >= least]
    if not samples:
        raise InputError(f"{source}: none of its {len(paths)} images was found; give their folder with --images")
    return samples, keypoints
