"""Points in CSV files: one row per keypoint, or one row per object.

The separator (comma, semicolon or tab) is read from the header. With semicolons or tabs, decimal commas are understood.
Column names are compared without case, blanks and underscores; `recombinator.data.annotations.FIELDS` lists them.
"""

from __future__ import annotations

import csv
import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from recombinator.data.annotations import (
    FIELDS,
    LABELED,
    Entry,
    Numbering,
    Point,
    Source,
    coordinate,
    image_name,
    plain_name,
    visibility,
)
from recombinator.data.images import ENDINGS
from recombinator.utils.errors import InputError

logger = logging.getLogger(__name__)

_IGNORED = ("seconds", "confidence")  # columns that `track` and `predict` write next to the points
_FORMS = (
    "file, keypoint, x, y (one row per keypoint), or file, x1, y1, x2, y2, ... or file, NAME_x, NAME_y, ... "
    "(one row per object)"
)


@dataclass(frozen=True)
class _Table:
    """The cells of a CSV file, and the columns by what they hold."""

    path: Path
    columns: list[str]
    rows: list[tuple[str, list[str], str]]  # "FILE:LINE", one cell per column, why the row cannot be used
    decimal_comma: bool
    further: tuple[str, ...]  # columns that the caller needs

    def columns_of(self, kind: str) -> list[int]:
        """Return the columns that hold `kind`, a key of FIELDS, the preferred one first."""
        names = [plain_name(c) for c in self.columns]
        return [names.index(name) for name in FIELDS[kind] if name in names]

    def image_and_object(self, cells: list[str]) -> tuple[str, str]:
        """Return the image of a row, else "frame N", and its object; empty where the row does not say."""
        file, frame, name = (
            next((cells[i].strip() for i in self.columns_of(kind) if cells[i].strip()), "")
            for kind in ("file", "frame", "object")
        )
        return image_name(file) or (f"frame {frame}" if frame else ""), name

    def other(self, cells: list[str], used: set[int]) -> dict[str, str]:
        """Return the texts of the columns that are not in `used`."""
        return {c: cells[i].strip() for i, c in enumerate(self.columns) if c and i not in used}

    def point(self, cells: list[str], x: int, y: int, v: int | None) -> Point:
        """Return the point in columns x, y and, where there is one, v."""
        seen = visibility(cells[v]) if v is not None else LABELED
        return Point(coordinate(cells[x], self.decimal_comma), coordinate(cells[y], self.decimal_comma), seen)


def _read_table(source: Source) -> _Table:
    path, separator = source.path, max(",;\t", key=source.first_line.count)
    stream = csv.reader(io.StringIO(source.text), delimiter=separator)
    columns: list[str] = []
    rows: list[tuple[str, list[str], str]] = []
    try:
        for cells in stream:
            if not any(c.strip() for c in cells):
                continue
            if not columns:
                columns = [c.strip() for c in cells]
                continue
            surplus = any(c.strip() for c in cells[len(columns) :])
            problem = f"expected {len(columns)} fields as in the header, got {len(cells)}" if surplus else ""
            cells = (cells + [""] * len(columns))[: len(columns)]
            rows.append((f"{path}:{stream.line_num}", cells, problem))
    except csv.Error as error:
        raise InputError(f"{path}:{stream.line_num}: not CSV ({error})") from None
    twice = [c for c in columns if c and columns.count(c) > 1]
    if twice:
        raise InputError(f"{path}:1: the column {twice[0]} occurs twice")
    lacking = [c for c in source.columns if c not in columns]
    if lacking:
        raise InputError(f"{path}:1: no column {lacking[0]}; it has {', '.join(columns)}")
    return _Table(path, columns, rows, separator != ",", source.columns)


def read_csv(source: Source) -> list[Entry]:
    """Read a CSV file of points.

    Args:
        source: A file with the columns file, keypoint, x, y (one row per keypoint; also face, where an image has
            several objects), or with one row per object and the columns x1, y1, x2, y2, ... or NAME_x, NAME_y, ...

    Returns:
        One entry per object, in the file's order. Coordinates are the package's.

    Raises:
        InputError: The file cannot be read, or its columns are not those of a points file.
    """
    table = _read_table(source)
    if all(table.columns_of(kind) for kind in ("keypoint", "x", "y")):
        return _one_row_per_keypoint(table)
    return _one_row_per_object(table)


def _one_row_per_keypoint(table: _Table) -> list[Entry]:
    (name_at, *_), (x, *_), (y, *_) = (table.columns_of(kind) for kind in ("keypoint", "x", "y"))
    v = next(iter(table.columns_of("visibility")), None)
    used = {name_at, x, y} | ({v} if v is not None else set())
    found: dict[tuple[str, str], tuple[str, dict[str, Point], dict[str, str]]] = {}
    problems: dict[tuple[str, str], tuple[str, str]] = {}
    for where, cells, problem in table.rows:
        file, object_id = table.image_and_object(cells)
        key = (file, object_id or "1")
        _, points, _ = found.setdefault(key, (where, {}, table.other(cells, used)))
        name = cells[name_at].strip()
        try:
            if problem:
                raise InputError(problem)
            if not name:
                raise InputError("the keypoint has no name")
            if name in points:
                raise InputError(f"keypoint {name} occurs twice for object {key[1]}")
            points[name] = table.point(cells, x, y, v)
        except InputError as error:
            problems.setdefault(key, (where, str(error)))
    entries = []
    for key, (first, points, other) in found.items():
        where, problem = problems.get(key, (first, ""))
        entries.append(Entry(where, *key, points, problem=problem, columns=other))
    return entries


def _axes(columns: list[str]) -> tuple[dict[str, dict[str, int]], bool]:
    """Return the columns of every point by axis ("x", "y", "v"), and whether the points have numbers only."""
    numbered: dict[str, dict[str, int]] = {}
    named: dict[str, dict[str, int]] = {}
    for i, column in enumerate(columns):
        if match := re.fullmatch(r"([xyv])[_ ]?(\d+)", column, re.IGNORECASE):
            numbered.setdefault(match[2], {})[match[1].lower()] = i
        elif match := re.fullmatch(r"(.+)[_. -]([xyv])", column, re.IGNORECASE):
            named.setdefault(match[1], {})[match[2].lower()] = i
    if named:
        return named, False
    order = sorted(numbered, key=int)
    return {str(i): numbered[number] for i, number in enumerate(order, 1)}, True


def _is_ml_morph(table: _Table) -> bool:
    """Return whether the file is one of ml-morph: images in the column `id`, and y from the bottom as tpsDig has it.

    Its `read_csv` says so ("following the tpsDig coordinate system", utils.py), and subtracts y from the height.
    """
    (at, *_) = table.columns_of("object") or [-1]
    if table.columns_of("file") or at < 0 or not table.rows:
        return False
    morph = all(PurePosixPath(image_name(cells[at])).suffix.lower() in ENDINGS for _, cells, _ in table.rows)
    if morph:
        logger.warning("%s: images are in the column `id`, as in ml-morph; y is counted from the bottom", table.path)
    return morph


def _one_row_per_object(table: _Table) -> list[Entry]:
    points, positional = _axes(table.columns)
    used = {i for axes in points.values() for i in axes.values()}
    used |= {i for kind in ("file", "object", "frame") for i in table.columns_of(kind)}
    ignored = {*_IGNORED, *map(plain_name, table.further)}
    unknown = [c for i, c in enumerate(table.columns) if i not in used and c and plain_name(c) not in ignored]
    halves = [name for name, axes in points.items() if not {"x", "y"} <= set(axes)]
    if halves or unknown or not points:
        got = ", ".join(unknown[:5] or table.columns[:5]) or "none"
        got = f"only x or only y of {', '.join(halves[:5])}" if halves else got
        raise InputError(f"{table.path}:1: expected the columns {_FORMS}; got {got}")
    number, morph = Numbering(), _is_ml_morph(table)
    in_points = {i for axes in points.values() for i in axes.values()}
    entries = []
    for where, cells, problem in table.rows:
        file, object_id = table.image_and_object(cells)
        if morph:
            file, object_id = image_name(object_id), ""
        object_id = object_id or number(file)
        try:
            if problem:
                raise InputError(problem)
            found = {name: table.point(cells, a["x"], a["y"], a.get("v")) for name, a in points.items()}
            other = table.other(cells, in_points)
            entries.append(Entry(where, file, object_id, found, positional, y_up=morph, columns=other))
        except InputError as error:
            entries.append(Entry(where, file, object_id, problem=str(error)))
    return entries
