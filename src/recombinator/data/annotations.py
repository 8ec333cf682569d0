"""Annotated points as a file has them: one structure, whatever the format.

Every reader of points files in `recombinator.data.readers` takes a `Source` and returns a list of `Entry`. Placing the
points in their images (`recombinator.data.placing`), inferring a keypoint set and making arrays
(`recombinator.data.points`) start from that list, so no file is parsed twice.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from xml.etree import ElementTree

import numpy as np

from recombinator.data.images import ENDINGS
from recombinator.utils.errors import InputError
from recombinator.utils.files import read_file
from recombinator.utils.schema import parse_json

logger = logging.getLogger(__name__)

# Names of columns (CSV) and fields (JSON) by what they hold, the preferred one first; compared by `plain_name`.
FIELDS: dict[str, tuple[str, ...]] = {
    "file": (
        "file", "filename", "filepath", "image", "imagefile", "imagename", "imagepath", "img", "path", "photograph",
    ),
    "object": ("face", "object", "instance", "id"),
    "keypoint": ("keypoint", "keypointname", "landmark", "bodypart", "point"),
    "frame": ("frame",),
    "x": ("x",),
    "y": ("y",),
    "visibility": ("visibility", "v"),
    "points": ("points", "keypoints", "landmarks"),
}  # fmt: skip

MISSING = {"", "-", "na", "n/a", "#n/a", "nan", "null", "none"}  # texts of a coordinate that is not known
LABELED = 2  # COCO's visibility of a point that can be seen; 1: labeled but occluded, 0: not labeled


class Point(NamedTuple):
    """One point in the file's own coordinates.

    Attributes:
        x, y: Pixels; NaN where the file has no coordinate.
        visibility: COCO's value. 0 means that the point is not labeled, whatever its coordinates are.
    """

    x: float
    y: float
    visibility: int = LABELED


@dataclass(frozen=True)
class Scheme:
    """What a file says about its keypoints as a whole.

    Attributes:
        mirror: Pairs of names that change places in a mirrored image, the left one first; None: the names decide.
        lines: Pairs of names to connect in drawings.
    """

    mirror: tuple[tuple[str, str], ...] | None = None
    lines: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Entry:
    """One annotated object.

    Attributes:
        where: "FILE:LINE" or "FILE: entry N", the start of every message about it.
        file: Name of its image, with forward slashes; empty if the file names none.
        object_id: Which of the image's objects it is.
        points: The points by name. A numbered point has its number, from 1, as its name.
        positional: The points had no names: a number is the place in a list, and no point of the list can be left out.
        origin: A coordinate in the file minus the package's, in pixels (the package's convention:
            `recombinator.transforms.affine`). COCO has a pixel's center at its integer: -0.5.
        problem: Why the entry cannot be used, as one sentence; empty if it can.
        size: Width and height in pixels of the image, as the file declares them.
        relative: Coordinates are fractions of the image's width and height, not pixels.
        y_up: The y coordinate counts from the image's bottom edge upward.
        folder: The folder that `file` is relative to; None: that of the points file.
        path: Where the image is; None until it has been looked for.
        video: The video that `image` reads from; None where it is part of the points file.
        image: Returns the pixels, (H, W[, 3]) uint8 RGB, where they are not an image file of their own (video frames).
        mm_per_pixel: Physical size of a pixel in millimeters; NaN if unknown.
        columns: The file's other columns or fields, as texts.
        scheme: What the file says about its keypoints as a whole.
    """

    where: str
    file: str = ""
    object_id: str = "1"
    points: Mapping[str, Point] = field(default_factory=dict)
    positional: bool = False
    origin: float = 0.0
    problem: str = ""
    size: tuple[float, float] | None = None
    relative: bool = False
    y_up: bool = False
    folder: Path | None = None
    path: Path | None = None
    video: Path | None = None
    image: Callable[[], np.ndarray] | None = field(default=None, compare=False)
    mm_per_pixel: float = float("nan")
    columns: Mapping[str, str] = field(default_factory=dict)
    scheme: Scheme = Scheme()


class Source:
    """A points file or folder. What detection and reader both need of it is parsed once.

    Args:
        path: The file or folder.
        columns: Further columns that the caller needs; a CSV file with one row per object may have no others.
    """

    def __init__(self, path: Path, columns: tuple[str, ...] = ()) -> None:
        self.path, self.columns = path, columns
        self.suffix = "" if path.is_dir() else path.suffix.lower()

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def text(self) -> str:
        """The file's text (`read_text`)."""
        return read_text(self.path)

    @cached_property
    def json(self) -> Any:
        """The file's JSON value. Raises InputError if it is not JSON."""
        return parse_json(self.text, str(self))

    @cached_property
    def xml(self) -> ElementTree.Element:
        """The root of the file's XML. Raises InputError if it is not XML."""
        try:
            return ElementTree.fromstring(self.text)
        except (ElementTree.ParseError, ValueError) as error:  # ValueError: a declared encoding is not the file's
            raise InputError(f"{self}: not XML ({error})") from None

    @cached_property
    def first_line(self) -> str:
        """The first line that is not blank."""
        return next((line for line in self.text.splitlines() if line.strip()), "")


T = TypeVar("T")
Reader = Callable[[Source], list[Entry]]


class Numbering:
    """Number the objects of each image from 1, for entries that have no identifier of their own."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    def __call__(self, file: str) -> str:
        self._count[file] += 1
        return str(self._count[file])


def group_by(items: list[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Return lists of the items with the same key, in the order of first appearance."""
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def add_point(points: dict[str, Point], name: str, point: Point, remedy: str = "") -> None:
    """Add a named point. Raises InputError, with the remedy, if it has no name or the name is there already."""
    if not name:
        raise InputError("a point has no name")
    if name in points:
        raise InputError(f"keypoint {name} occurs twice" + (f"; {remedy}" if remedy else ""))
    points[name] = point


def is_number(text: str) -> bool:
    """Return whether a text is a number of points or frames: decimal digits, and not thousands of them."""
    return text.isdecimal() and len(text) < 10


def as_text(value: Any) -> str:
    """Return a value as a text, empty for None."""
    return "" if value is None else str(value).strip()


def declared_size(width: Any, height: Any) -> tuple[float, float] | None:
    """Return an image's size as a file declares it, None if it does not."""
    try:
        size = (float(width), float(height))
    except (TypeError, ValueError):
        return None
    return size if min(size) > 0 else None


def plain_name(text: str) -> str:
    """Return a column's or field's name without case, blanks, underscores and hyphens."""
    return re.sub(r"[\s_-]", "", text).casefold()


def image_of_stem(stem: Path) -> Path:
    """Return the image file with this path without ending; STEM.jpg if there is none."""
    candidates = [stem.with_name(stem.name + e) for lower in ENDINGS for e in (lower, lower.upper())]
    return next((path for path in candidates if path.is_file()), candidates[0])


def image_name(text: str) -> str:
    """Return an image's name with forward slashes: files written on Windows have backslashes."""
    text = text.strip()
    if text[:1] == "'" and text[1:2] in tuple("=+-@"):  # as `plain_cell` wrote it
        text = text[1:]
    return text.replace("\\", "/")


def coordinate(value: Any, decimal_comma: bool = False) -> float:
    """Return a coordinate as a float, NaN if the value stands for a missing one.

    Args:
        value: A number, a text or None.
        decimal_comma: Read "53,5" as 53.5.

    Raises:
        InputError: The value is not a number. The message lacks the place; the caller adds it.
    """
    text = "" if value is None else str(value).strip()
    if text.casefold() in MISSING:
        return float("nan")
    try:
        return float(text.replace(",", ".") if decimal_comma else text)
    except ValueError:
        raise InputError(f"{value!r} is not a number") from None


def visibility(value: Any) -> int:
    """Return COCO's visibility as an integer; a point without one is labeled.

    Raises:
        InputError: The value is not 0, 1 or 2. The message lacks the place; the caller adds it.
    """
    text = "" if value is None else str(value).strip()
    if text.casefold() in MISSING:
        return LABELED
    number = coordinate(text)
    if number not in (0, 1, LABELED):
        raise InputError(f"visibility must be 0, 1 or 2, got {value!r}")
    return int(number)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, UTF-16 (with its mark) or, with a warning, Windows-1252.

    Raises:
        InputError: The file cannot be read, or is binary.
    """
    data = read_file(path)
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return data.decode("utf-16")
        if b"\0" in data:
            raise InputError(f"{path}: a binary file, not text")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text ({error}); save it as UTF-8") from None
    logger.warning("%s: not UTF-8; read as Windows-1252. Save it as UTF-8 if names come out wrong", path)
    return text
