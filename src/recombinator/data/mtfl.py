"""MTFL and its AFLW test set: the original layout (SPEC 2.2, 2.4).

A line is `path x1..x5 y1..y5 gender smile glasses pose`, the path with / or \\, attributes 1-based.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from recombinator.data.crops import GRID, RULES
from recombinator.data.images import encode_image, read_image, to_grey
from recombinator.data.table import ROWS_AT_ONCE, Row, TableInfo, batched, write_table
from recombinator.errors import InputError
from recombinator.keypoints import FACE_5

ATTRIBUTES = ("gender", "smile", "glasses", "pose")
SPLIT_SEED = 7345
FAR_OUTSIDE = 0.5  # of the image's longer side


@dataclass(frozen=True)
class Line:
    """One annotated face: `where` is "file:line" for messages."""

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
    """Raises InputError naming `where` for a wrong number of fields, text or NaN among the numbers."""
    fields = text.split()
    if len(fields) > 15 and not _is_number(fields[1]):  # blanks in the path
        fields = text.strip().rsplit(None, 14)
    if len(fields) != 15:
        raise InputError(f"{where}: has {len(fields)} fields, wants 15 (path, 5 x, 5 y, 4 attributes)")
    try:
        numbers = np.array([float(f) for f in fields[1:]])
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None
    if not np.isfinite(numbers).all():
        raise InputError(f"{where}: a coordinate or attribute is not a finite number")
    points = np.stack([numbers[:5], numbers[5:10]], axis=1)
    if FACE_5.scale(points) < 1:
        raise InputError(f"{where}: the eyes are less than a pixel apart")
    attributes = dict(zip(ATTRIBUTES, (int(v) - 1 for v in numbers[10:]), strict=True))
    return Line(where, fields[0].replace("\\", "/"), points, attributes)


def split_indices(n: int) -> tuple[np.ndarray, np.ndarray]:
    """The authors' split of n training lines: a seeded permutation whose last tenth is validation."""
    order = np.random.RandomState(SPLIT_SEED).permutation(n)
    return order[: n - n // 10], order[n - n // 10 :]


def _lines(path: Path) -> list[tuple[int, str]]:
    """(line number, text) of the lines that are not blank."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [(i, t) for i, t in enumerate(text.splitlines(), 1) if t.strip()]


def prepare_mtfl(
    source: Path, out: Path, *, size: int = GRID, grey: bool = False, quality: int = 95, strict: bool = False,
    drop: Callable[[str], None] = print, advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:  # fmt: skip
    """Writes out/{train,valid,test}.parquet; returns rows written a split and "dropped".

    size: crop side in pixels; quality: JPEG quality, 0 for PNG. `drop` is called with a sentence for each line
    left out (`strict`: the first raises InputError instead), `advance` with lines done and lines in all.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give the one that holds training.txt and testing.txt")
    jobs: list[tuple[str, str, list[tuple[int, str]]]] = []
    if (source / "training.txt").is_file():
        lines = _lines(source / "training.txt")
        train, valid = split_indices(len(lines))
        jobs += [("train", "training.txt", [lines[i] for i in train])]
        jobs += [("valid", "training.txt", [lines[i] for i in valid])]
    if (source / "testing.txt").is_file():
        jobs += [("test", "testing.txt", _lines(source / "testing.txt"))]
    total = sum(len(lines) for _, _, lines in jobs)
    if not total:
        raise InputError(f"{source}: neither training.txt nor testing.txt with any line in it; is this MTFL?")
    rule, counts, done = RULES["mtfl"], {"dropped": 0}, 0

    def make(job: tuple[str, int, str]) -> Row | InputError:
        listing, number, text = job
        try:
            line = parse_line(text, f"{source / listing}:{number}")
            try:
                image = read_image(source / line.file)
            except InputError as error:
                raise InputError(f"{line.where}: {error}") from None
            height, width = image.shape[:2]
            margin = FAR_OUTSIDE * max(height, width)
            if (line.points < -margin).any() or (line.points > np.array([width, height]) + margin).any():
                raise InputError(f"{line.where}: a point lies far outside the {width}x{height} image")
            crop, to_file = rule.crop(to_grey(image) if grey else image, line.points, size)
            points = (line.points - to_file[:, 2]) / to_file[0, 0]
            return Row(encode_image(crop, quality), points, to_file, line.file, attributes=line.attributes)
        except InputError as error:
            return error if str(error).startswith(str(source)) else InputError(f"{source / listing}:{number}: {error}")

    def rows(listing: str, lines: list[tuple[int, str]]) -> Iterator[Row]:
        nonlocal done
        for group in batched(((listing, n, t) for n, t in lines), ROWS_AT_ONCE):
            for made in pool.map(make, group):
                if isinstance(made, Row):
                    yield made
                elif strict:
                    raise made
                else:
                    counts["dropped"] += 1
                    drop(str(made))
            done += len(group)
            advance(done, total)

    with ThreadPoolExecutor() as pool:
        for split, listing, lines in jobs:
            made = rows(listing, lines)
            first = next(made, None)
            if first is None:  # nothing usable (or nothing at all): an empty table would only fail later
                counts[split] = 0
                continue
            info = TableInfo("mtfl", split, FACE_5, rule.name, size, grey)
            counts[split] = write_table(out / f"{split}.parquet", info, chain([first], made), ATTRIBUTES)
    if not sum(counts[s] for s, _, _ in jobs):
        raise InputError(f"{source}: no line could be used; {counts['dropped']} dropped, see above")
    return counts
