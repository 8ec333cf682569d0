"""Find the image of every annotated object, and bring its points into the package's coordinates.

Formats differ in the origin of their coordinates, and some need the image's size to convert them. `Entry` holds
what differs; the conversion itself is here. Afterwards x is to the right, y down, and a pixel's center is at its
integer + 0.5, in the image as it is displayed: with its EXIF orientation applied.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recombinator.data.annotations import Entry, Point
from recombinator.data.images import read_image
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_regular, is_inside
from recombinator.utils.text import plural

logger = logging.getLogger(__name__)

# EXIF orientation -> a point of the stored image, as fractions of its width and height, in the displayed one
_DISPLAYED: dict[int, Callable[[float, float], tuple[float, float]]] = {
    1: lambda x, y: (x, y), 2: lambda x, y: (1 - x, y), 3: lambda x, y: (1 - x, 1 - y), 4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x), 6: lambda x, y: (1 - y, x), 7: lambda x, y: (1 - y, 1 - x), 8: lambda x, y: (y, 1 - x),
}  # fmt: skip
_UPLOAD = re.compile(r"[0-9a-f]{4,8}-(?=.)")  # Label Studio puts this before the names of uploaded files


@dataclass(frozen=True)
class Header:
    """Size of an image as it is stored, and its EXIF orientation, 1 to 8."""

    width: int
    height: int
    orientation: int = 1

    @property
    def displayed(self) -> tuple[int, int]:
        """Width and height with the orientation applied."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(path: Path) -> Header:
    """Read an image's size and orientation, without decoding it where Pillow knows the format.

    Raises:
        InputError: The file is missing or is not an image.
    """
    from PIL import Image, UnidentifiedImageError

    check_regular(path)
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            orientation = image.getexif().get(0x0112, 1)
            return Header(*image.size, orientation if orientation in _DISPLAYED else 1)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
        height, width = read_image(path).shape[:2]
        return Header(width, height)


def check_inside(entries: Sequence[Entry], folders: Sequence[Path], allow: bool) -> None:
    """Check that no entry names a file outside the given folders: its pixels would become part of what is written.

    A project's folder that the format prescribes (`Entry.folder`) counts too. Files that do not exist are not checked.

    Args:
        entries: Placed entries.
        folders: The folder of the points file, and that of the images.
        allow: Warn, with the number of such files, in place of the error.

    Raises:
        InputError: An entry names one.
    """
    outside: dict[Path, str] = {}
    inside: set[Path] = set()
    for entry in entries:
        path = entry.video or entry.path
        if path is None or path in inside or path in outside:
            continue
        roots = [*folders, *([entry.folder] if entry.folder else [])]
        if any(is_inside(path, root) for root in roots) or not os.path.isfile(path):
            inside.add(path)
        elif allow:
            outside[path] = entry.where
        else:
            raise InputError(
                f"{entry.where}: {path} is outside the folder of the points file; give the images' folder with "
                "--images, or allow such files with --allow-outside"
            )
    if outside:
        path, where = next(iter(outside.items()))
        logger.warning("%s: %s outside its folder, such as %s", where, plural(len(outside), "image"), path)


def locate(folder: Path, names: list[str]) -> dict[str, Path]:
    """Find images in a folder.

    An image is looked for under its full name, then under ever shorter ends of it. An end that several names share
    is not used.

    Args:
        folder: The folder.
        names: The images' names, with forward slashes.

    Returns:
        Paths by name. An image that is not there has the path of its full name. A name that is absolute or has ".."
        can lead out of the folder (`check_inside`).
    """
    ends = {name: ["/".join(name.split("/")[i:]) for i in range(name.count("/") + 1)] for name in names}
    for name, parts in ends.items():
        if match := _UPLOAD.match(parts[-1]):
            ends[name] = [*parts, parts[-1][match.end() :]]
    shared = Counter(end for parts in ends.values() for end in set(parts))
    paths = {}
    for name, parts in ends.items():
        usable = [end for end in parts if end == name or shared[end] == 1]
        path = next((folder / end for end in usable if end and os.path.isfile(folder / end)), folder / name)
        paths[name] = Path(os.path.normpath(path))
    return paths


def place_all(entries: list[Entry], folder: Path, given: bool = False) -> list[Entry]:
    """Find the images of entries and bring their points into the package's coordinates.

    Args:
        entries: As a reader returns them.
        folder: The images' folder, or that of the points file.
        given: The user named the folder; it is used in place of the entries' own.
    """
    names: dict[Path, dict[str, None]] = {}
    for entry in entries:
        root = folder if given or entry.folder is None else entry.folder
        if entry.file:
            names.setdefault(root, {})[entry.file] = None
    paths = {root: locate(root, list(found)) for root, found in names.items()}
    headers: dict[Path, Header | InputError | None] = {}
    placed = []
    for entry in entries:
        root = folder if given or entry.folder is None else entry.folder
        path = paths[root][entry.file] if entry.file else None
        placed.append(_place(replace(entry, path=path), headers))
    return placed


def _place(entry: Entry, headers: dict[Path, Header | InputError | None]) -> Entry:
    header = None
    needed = entry.relative or entry.y_up
    if entry.path and not entry.image and not entry.problem and (needed or entry.size):
        if entry.path not in headers:
            try:
                headers[entry.path] = read_header(entry.path)
            except InputError as error:
                headers[entry.path] = error
        known = headers[entry.path]
        if isinstance(known, InputError):
            if needed and not entry.size:
                return replace(entry, problem=f"its points need the size of the image: {known}")
        else:
            header = known
    if needed and not header and not entry.size and not entry.problem:
        return replace(entry, problem="its points need the size of the image, and nothing names the image")
    try:
        return replace(entry, points=_converted(entry, header), origin=0.0, size=None, relative=False, y_up=False)
    except InputError as error:
        return replace(entry, problem=entry.problem or str(error))


def _converted(entry: Entry, header: Header | None) -> Mapping[str, Point]:
    stored = header is not None and _is_stored_size(entry, header)
    width, height = entry.size or (header.displayed if header is not None else (1.0, 1.0))
    points = {}
    for name, p in entry.points.items():
        x, y = (p.x * width, p.y * height) if entry.relative else (p.x, p.y)
        x, y = x - entry.origin, (height - y if entry.y_up else y) - entry.origin
        if stored and header is not None:
            x, y = _DISPLAYED[header.orientation](x / width, y / height)
            x, y = x * header.displayed[0], y * header.displayed[1]
        points[name] = Point(x, y, p.visibility)
    return points


def _is_stored_size(entry: Entry, header: Header) -> bool:
    """Return whether the file declares the size that the image has before its EXIF rotation.

    Raises:
        InputError: It declares a size that the image has neither way.
    """
    if entry.size is None or entry.size == header.displayed:
        return False
    if entry.size == (header.width, header.height):
        return True
    declared, found = (f"{w:g}x{h:g}" for w, h in (entry.size, header.displayed))
    raise InputError(f"its points are for an image of {declared} pixels, but {entry.path} has {found}")
