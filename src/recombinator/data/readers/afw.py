"""AFW, the paper's second test set for five keypoints (section 5): photographs and anno.mat in MATLAB 7.3 format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.crops import FILE_ORIGIN, GRID, RULES
from recombinator.data.rows import crop_row, read_listed
from recombinator.data.table import Row, TableInfo, write_splits
from recombinator.keypoints import FACE_5
from recombinator.utils.errors import InputError, remedy

_KEPT = [0, 1, 2, 3, 5]  # of eyes, nose, left, middle and right of the mouth


def read_annotations(path: Path) -> list[tuple[str, int, np.ndarray]]:
    """Read the faces of anno.mat.

    A MATLAB 7.3 file is HDF5. `anno` is a cell array of references with one row per photograph: name, boxes, poses,
    points.

    Args:
        path: anno.mat.

    Returns:
        For every face: file name, number of the face in it from 1, and (6, 2) x, y as in the file, which counts the
        first pixel's center as 1.

    Raises:
        InputError: h5py is not installed, or the file has another form.
    """
    try:
        import h5py
    except ImportError:
        raise InputError(f"reading anno.mat needs h5py; {remedy('afw')}") from None
    faces: list[tuple[str, int, np.ndarray]] = []
    try:
        with h5py.File(path, "r") as file:
            cells: Any = np.array(file["anno"])
            if cells.ndim != 2 or 4 not in cells.shape:
                shape = f"`anno` has the shape {cells.shape}"
                raise InputError(f"{path}: {shape}, expected 4 columns: name, boxes, poses, points")
            cells = cells if cells.shape[0] == 4 else cells.T
            for name_at, points_at in zip(cells[0], cells[3], strict=True):
                name = "".join(chr(int(c)) for c in np.array(file[name_at]).flatten())
                inner = np.array(file[points_at])
                found = [np.array(file[at]) for at in inner.flatten()] if inner.dtype == object else [inner]
                for number, points in enumerate(found, 1):
                    points = points if points.shape == (6, 2) else points.T
                    if points.shape != (6, 2):
                        where = f"{path}: face {number} of {name}"
                        raise InputError(f"{where}: expected points of shape (6, 2), got {points.shape}")
                    faces.append((name, number, points.astype(np.float64)))
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, AttributeError, OverflowError, RuntimeError) as error:
        raise InputError(f"{path}: not AFW's anno.mat in MATLAB 7.3 format ({error})") from None
    return faces


def prepare_afw(
    source: Path, out: Path, *, size: int = GRID, gray: bool = False, quality: int = 95, strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:  # fmt: skip
    """Write OUT/test.parquet from AFW.

    Faces with a point that is not a number are left out, as in the authors' code.

    Args:
        source: The folder that holds anno.mat, or holds testimages/anno.mat.
        out: Folder for the table.
        size: Side of the stored crops in pixels.
        gray: Store gray crops.
        quality: JPEG quality; 0 stores PNG, without loss.
        strict: Raise the first error instead of leaving a face out.
        progress: Called with the numbers of faces done and in all.

    Returns:
        Rows written ("test"), and "dropped".

    Raises:
        InputError: The folder or file is not AFW's, or nothing in it can be used.
    """
    path = next((p for p in (source / "anno.mat", source / "testimages" / "anno.mat") if p.is_file()), None)
    if path is None:
        raise InputError(f"{source}: expected anno.mat and the photographs, here or in the folder testimages")
    rule = RULES["mtfl"]

    def make(face: tuple[str, int, np.ndarray]) -> Row:
        name, number, points = face
        where = f"{path}: face {number} of {name}"
        if not np.isfinite(points).all():
            raise InputError(f"{where}: a point is not a number")
        photo = next((p for p in (source / name, source / "testimages" / name) if p.is_file()), source / name)
        try:
            points = points[_KEPT] - FILE_ORIGIN
            return crop_row(read_listed(source, photo), points, name, rule, size=size, gray=gray, quality=quality)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    info = TableInfo("afw", "test", FACE_5, rule.name, size, gray)
    jobs = {"test": read_annotations(path)}
    return write_splits(out, jobs, make, lambda split: info, strict=strict, progress=progress)
