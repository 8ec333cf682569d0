"""300-W: folders of images, each with a .pts file of 68 points of the same name (the paper, section 5.2)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from recombinator.data.crops import GRID, RULES
from recombinator.data.images import read_image
from recombinator.data.readers.pts import read_pts
from recombinator.data.rows import crop_row
from recombinator.data.table import SPLIT_SEED, Row, TableInfo, write_splits
from recombinator.keypoints import FACE_68
from recombinator.utils.errors import InputError

IMAGES = (".jpg", ".png", ".jpeg")
TEST_FOLDERS = {"testset": "common", "ibug": "challenging"}


def split_files(source: Path, files: list[Path]) -> dict[str, list[Path]]:
    """Split the .pts files into train, valid and test.

    The test files are those in the folders of TEST_FOLDERS. A seeded tenth of the others is for validation. Faces of
    one photograph (NAME_1, NAME_2, but not LFPW's running numbers such as image_0001) stay together. The split depends
    on names alone, not on the order of `files` or the file system's.

    Args:
        source: 300-W's folder.
        files: The .pts files in it.
    """
    test = [f for f in files if _subset(source, f)]
    photographs: dict[str, list[Path]] = {}
    for f in files:
        if not _subset(source, f):
            photographs.setdefault(str(f.parent / re.sub(r"_[1-9]\d?$", "", f.stem)), []).append(f)
    keys = sorted(photographs)
    valid: list[Path] = []
    wanted = sum(map(len, photographs.values())) // 10
    for i in np.random.RandomState(SPLIT_SEED).permutation(len(keys)):
        if len(valid) < wanted:
            valid += photographs.pop(keys[i])
    return {"train": sorted(f for group in photographs.values() for f in group), "valid": sorted(valid), "test": test}


def _subset(source: Path, file: Path) -> str:
    """Return "common" or "challenging" for a test image, "" for a training image."""
    return next((TEST_FOLDERS[p.lower()] for p in file.relative_to(source).parts if p.lower() in TEST_FOLDERS), "")


def prepare_300w(
    source: Path, out: Path, *, size: int = GRID, gray: bool = False, quality: int = 95, strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:  # fmt: skip
    """Write OUT/{train,valid,test}.parquet from every .pts file in a folder and its subfolders.

    Args:
        source: The folder that holds AFW, HELEN, LFPW and iBUG, or some of them.
        out: Folder for the tables.
        size: Side of the stored crops in pixels.
        gray: Store gray crops.
        quality: JPEG quality; 0 stores PNG, without loss.
        strict: Raise the first error instead of leaving a face out.
        progress: Called with the numbers of faces done and in all.

    Returns:
        Rows written per split, and "dropped".

    Raises:
        InputError: The folder is not 300-W's, or nothing in it can be used.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give the one that holds 300-W's folders")
    jobs = split_files(source, sorted(source.rglob("*.pts")))
    if not any(jobs.values()):
        raise InputError(f"{source}: expected folders of images, each with a .pts file of the same name; found none")
    rule = RULES["300w"]

    def make(file: Path) -> Row:
        points = read_pts(file)
        images = [p for p in (file.with_suffix(s) for e in IMAGES for s in (e, e.upper())) if p.is_file()]
        if not images:
            raise InputError(f"{file}: no image of that name in its folder ({', '.join(IMAGES)})")
        name, subset = images[0].relative_to(source).as_posix(), _subset(source, file)
        image = read_image(images[0])
        try:
            return crop_row(image, points, name, rule, size=size, gray=gray, quality=quality, subset=subset)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None

    return write_splits(
        out, jobs, make, lambda split: TableInfo("300w", split, FACE_68, rule.name, size, gray),
        strict=strict, progress=progress,
    )  # fmt: skip
