"""MTFL and its AFLW test set in their original layout (the paper, section 5).

A line is `path x1..x5 y1..y5 gender smile glasses pose`. The path has / or \\, and attributes count from 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recombinator.data.crops import FILE_ORIGIN, GRID, RULES
from recombinator.data.rows import background_jobs, background_row, crop_row, read_listed
from recombinator.data.table import SPLIT_SEED, Row, TableInfo, write_splits
from recombinator.keypoints import FACE_5
from recombinator.utils.errors import InputError
from recombinator.utils.files import read_file

ATTRIBUTES = ("gender", "smile", "glasses", "pose")


@dataclass(frozen=True)
class Line:
    """One annotated face.

    Attributes:
        where: "FILE:LINE", for messages.
        file: Name of the image, with forward slashes.
        points: (5, 2) x, y in pixels; a pixel's center lies at its integer + 0.5.
        attributes: Classes from 0 by the attribute's name.
    """

    where: str
    file: str
    points: np.ndarray
    attributes: dict[str, int]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parse_line(text: str, where: str) -> Line:
    """Parse one line of training.txt or testing.txt.

    Args:
        text: The line.
        where: "FILE:LINE", for messages.

    Raises:
        InputError: Naming `where`, for a wrong number of fields, or text or NaN among the numbers.
    """
    fields = text.split()
    if len(fields) > 15 and not _is_number(fields[1]):  # blanks in the path
        fields = text.strip().rsplit(None, 14)
    if len(fields) != 15:
        raise InputError(f"{where}: expected 15 fields (path, 5 x, 5 y, 4 attributes), got {len(fields)}")
    try:
        numbers = np.array([float(f) for f in fields[1:]])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: a coordinate or attribute is not a finite number")
    points = np.stack([numbers[:5], numbers[5:10]], axis=1) - FILE_ORIGIN
    if FACE_5.scale(points) < 1:
        raise InputError(f"{where}: the eyes are less than a pixel apart")
    if any(v != int(v) or not 1 <= v <= 9 for v in numbers[10:]):
        raise InputError(f"{where}: attributes must be whole numbers from 1, got {' '.join(fields[11:])}")
    attributes = dict(zip(ATTRIBUTES, (int(v) - 1 for v in numbers[10:]), strict=True))
    return Line(where, fields[0].replace("\\", "/"), points, attributes)


def split_indices(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Split n training lines as the authors do: a seeded permutation whose last tenth is validation.

    Returns:
        The indices of the training lines, and those of the validation lines.
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(n)
    valid = max(n // 10, int(n > 1))
    return order[: n - valid], order[n - valid :]


def _lines(path: Path) -> list[tuple[str, int, str]]:
    """Return the list's name, the line number and the text of every line that is not blank."""
    text = read_file(path).decode("utf-8-sig", errors="replace")
    return [(path.name, i, t) for i, t in enumerate(text.splitlines(), 1) if t.strip()]


def prepare_mtfl(
    source: Path, out: Path, *, size: int = GRID, gray: bool = False, quality: int = 95, strict: bool = False,
    whole: bool = False, backgrounds: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:  # fmt: skip
    """Write OUT/{train,valid,test}.parquet from MTFL.

    Args:
        source: The folder that holds training.txt, testing.txt, or both, and the images that they name.
        out: Folder for the tables.
        size: Side of the stored crops in pixels.
        gray: Store gray crops.
        quality: JPEG quality; 0 stores PNG, without loss.
        strict: Raise the first error instead of leaving a face out with a logged warning.
        whole: Store whole photographs, for a finder, in place of crops.
        backgrounds: Folder of images without faces, which become rows without points; with `whole`.
        progress: Called with the numbers of faces done and in all.

    Returns:
        Rows written per split, and "dropped".

    Raises:
        InputError: The folder is not MTFL's, or nothing in it can be used.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give the one that holds training.txt and testing.txt")
    jobs: dict[str, list[tuple[str, int, str]]] = {}
    if (source / "training.txt").is_file():
        lines = _lines(source / "training.txt")
        train, valid = split_indices(len(lines))
        jobs |= {"train": [lines[i] for i in train], "valid": [lines[i] for i in valid]}
    if (source / "testing.txt").is_file():
        jobs["test"] = _lines(source / "testing.txt")
    if not any(jobs.values()):
        raise InputError(
            f"{source}: expected training.txt and testing.txt (one line per face: image, 5 x, 5 y, 4 attributes) and "
            "the images that they name"
        )
    rule = RULES["image" if whole else "mtfl"]
    empty = background_jobs(backgrounds) if backgrounds else {}
    items: dict[str, list[tuple[str, int, str] | Path]] = {s: [*jobs[s], *empty.get(s, [])] for s in jobs}

    def make(job: tuple[str, int, str] | Path) -> Row:
        if isinstance(job, Path):
            return background_row(job, rule, len(FACE_5), size=size, gray=gray, quality=quality, attributes=ATTRIBUTES)
        listing, number, text = job
        where = f"{source / listing}:{number}"
        line = parse_line(text, where)
        try:
            return crop_row(
                read_listed(source, source / line.file), line.points, line.file, rule, size=size, gray=gray,
                quality=quality, attributes=line.attributes,
            )  # fmt: skip
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    return write_splits(
        out, items, make, lambda split: TableInfo("mtfl", split, FACE_5, rule.name, size, gray),
        attributes=ATTRIBUTES, strict=strict, progress=progress,
    )  # fmt: skip
