""".pts files: the points of one object per file, as in 300-W and as written by iBUG's tools."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from recombinator.data.annotations import Entry, Numbering, Point, Source, image_of_stem
from recombinator.data.crops import FILE_ORIGIN, RULES
from recombinator.keypoints import FACE_68
from recombinator.utils.errors import InputError
from recombinator.utils.files import read_file


def pts_origin(keypoints: int) -> float:
    """Return the offset of .pts coordinates: a file's coordinate minus this package's, in pixels.

    The center of the first pixel is 1 in the files (Menpo's `PTSImporter` subtracts 1, with pixel centers at integers).
    300-W's 68 points are offset by another half pixel (`recombinator.data.crops.CropRule`, docs/log.md).
    """
    return RULES["300w"].origin if keypoints == len(FACE_68) else FILE_ORIGIN


def _read_numbers(path: Path) -> np.ndarray:
    """Return the file's (K, 2) numbers as they are. Raises InputError naming file and line."""
    points = []
    for number, text in enumerate(read_file(path).decode("utf-8", errors="replace").splitlines(), 1):
        if not text.strip() or text.strip() in "{}" or re.match(r"\s*(version|n_points)\s*:", text):
            continue
        try:
            x, y = (float(v) for v in text.split())
        except ValueError:
            raise InputError(f"{path}:{number}: expected two numbers, x and y, got {text.strip()!r}") from None
        points.append((x, y))
    return np.array(points).reshape(-1, 2)


def read_pts(path: Path) -> np.ndarray:
    """Read the 68 points of a 300-W .pts file, with or without its header lines.

    Args:
        path: One point per line, x and y.

    Returns:
        (68, 2) x, y in pixels; the center of a pixel is at its integer + 0.5.

    Raises:
        InputError: A line is malformed, the number of points is not 68, or the eyes are less than a pixel apart.
    """
    points = _read_numbers(path) - pts_origin(len(FACE_68))
    if len(points) != len(FACE_68):
        raise InputError(f"{path}: expected {len(FACE_68)} points, got {len(points)}")
    if not np.isfinite(points).all():
        raise InputError(f"{path}: a coordinate is not a finite number")
    if FACE_68.scale(points) < 1:
        raise InputError(f"{path}: the eyes are less than a pixel apart")
    return points


def matches_pts(source: Source) -> bool:
    """Return whether the source is a .pts file, or a folder that contains any."""
    if source.path.is_dir():
        return next(source.path.rglob("*.pts"), None) is not None
    return source.suffix == ".pts"


def read_pts_entries(source: Source) -> list[Entry]:
    """Read .pts files with any number of points.

    Args:
        source: A file, or a folder with images. NAME.pts and NAME_1.pts are objects of the image NAME.

    Returns:
        One entry per file.

    Raises:
        InputError: `source` is a single file and cannot be read.
    """
    if not source.path.is_dir():
        return [_entry(source.path, source.path.name)]
    entries, number = [], Numbering()
    for path in sorted(source.path.rglob("*.pts")):
        image = _image_of(path).relative_to(source.path).as_posix()
        try:
            entries.append(replace(_entry(path, image), object_id=number(image)))
        except InputError as error:
            entries.append(Entry(str(path), image, problem=str(error).removeprefix(str(path)).lstrip(":")))
    return entries


def _entry(path: Path, file: str) -> Entry:
    try:
        numbers = _read_numbers(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    points = {str(i): Point(x, y) for i, (x, y) in enumerate(numbers.tolist(), 1)}
    return Entry(str(path), file, points=points, positional=True, origin=pts_origin(len(points)))


def _image_of(path: Path) -> Path:
    """Return the image of a .pts file: the one with its name, or with its name without a final _NUMBER."""
    own, shared = (image_of_stem(path.with_name(stem)) for stem in (path.stem, re.sub(r"_\d+$", "", path.stem)))
    return own if own.is_file() or not shared.is_file() else shared
