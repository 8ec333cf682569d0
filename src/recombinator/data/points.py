"""Files of points without images: from a file's entries to keypoint sets and arrays.

`recombinator.data.formats` has one reader per format. Each returns the entries of a file (`Entry`).
"""

from __future__ import annotations

import csv
import difflib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recombinator.data.annotations import Entry, Source, is_number
from recombinator.data.formats import find_format
from recombinator.data.placing import check_inside, place_all
from recombinator.keypoints import KeypointSet
from recombinator.utils.errors import InputError

logger = logging.getLogger(__name__)

PLACEHOLDERS = ((0.0, 0.0), (-1.0, -1.0))  # coordinates that tools write for a point that is not there
MANY = 10  # number of objects from which a name that only one of them has is taken for a typing error


@dataclass(frozen=True)
class PointSet:
    """The points of one object.

    Attributes:
        where: "FILE:LINE" or "FILE: entry N", for messages.
        file: Name of the image, empty if the points file names none.
        face: Which of the image's objects it is.
        points: (K, 2) x, y in pixels of the image, in the keypoint set's order; NaN where a point is missing.
        entry: What the points file says about the object.
    """

    where: str
    file: str
    face: str
    points: np.ndarray
    entry: Entry


def read_entries(
    path: Path, missing: str = "none", *, form: str | None = None, images: Path | None = None,
    columns: tuple[str, ...] = (), y_up: bool | None = None, allow_outside: bool = True,
) -> list[Entry]:  # fmt: skip
    """Read the entries of a points file or folder of any format.

    Args:
        path: A file or folder in one of `recombinator.data.formats.FORMATS`.
        missing: Coordinates, in the file's own numbers, that stand for a missing point: "none"; a pair such as "0,0";
            or "auto", which takes 0,0 and -1,-1 for that where two or more points have them, with a warning.
        form: The format's name; None: it is found out from the content.
        images: Folder of the images; None: that of the points file, or the one that the format prescribes.
        columns: Further columns that every object must have.
        y_up: y counts from the image's bottom edge upward; None: the format decides.
        allow_outside: Images outside the folder of the points file and `images` are allowed, with a warning.

    Returns:
        One entry per object, with points in the package's coordinates. Those that cannot be used have a `problem`.

    Raises:
        InputError: The file cannot be read at all, `missing` is none of these, or it names an image outside.
    """
    placeholders = _placeholders(missing)
    source = Source(path, columns)
    try:
        entries = find_format(source, form).read(source)
    except csv.Error as error:  # a field longer than csv.field_size_limit
        raise InputError(f"{path}: not readable as CSV ({error})") from None
    if y_up is not None:
        entries = [replace(e, y_up=y_up) for e in entries]
    entries = _without_placeholders(path, entries, missing, placeholders)
    folder = path if path.is_dir() else path.parent
    entries = place_all(entries, images or folder, given=images is not None)
    check_inside(entries, [folder, *([images] if images else [])], allow_outside)
    return entries


def _without_placeholders(
    path: Path, entries: list[Entry], missing: str, placeholders: tuple[tuple[float, float], ...]
) -> list[Entry]:
    """Return the entries without the points at coordinates that stand for a missing one (`read_entries`)."""
    counts = Counter((p.x, p.y) for e in entries if not e.problem for p in e.points.values() if p.visibility)
    found = {p: counts[p] for p in placeholders if counts[p]}
    if missing == "auto":
        for (x, y), n in found.items():
            if n == 1:
                logger.warning("%s: a point at exactly %g,%g is used; --missing %g,%g drops it", path, x, y, x, y)
        found = {p: n for p, n in found.items() if n > 1}
        if found:
            text = " and ".join(f"{n} points at exactly {x:g},{y:g}" for (x, y), n in found.items())
            logger.warning("%s: %s are taken as missing; --missing none uses them", path, text)
    if not found:
        return entries
    return [_without(entry, set(found)) for entry in entries]


def _placeholders(missing: str) -> tuple[tuple[float, float], ...]:
    if missing in ("auto", "none"):
        return PLACEHOLDERS if missing == "auto" else ()
    try:
        x, y = (float(v) for v in missing.split(","))
    except ValueError:
        raise InputError(f"missing={missing!r}: expected auto, none or a pair of numbers such as 0,0") from None
    return ((x, y),)


def _without(entry: Entry, placeholders: set[tuple[float, float]]) -> Entry:
    """Return the entry with visibility 0 for points at one of the placeholders."""
    points = {n: p._replace(visibility=0) if (p.x, p.y) in placeholders else p for n, p in entry.points.items()}
    return replace(entry, points=points)


def infer_names(entries: list[Entry]) -> tuple[str, ...]:
    """Return the keypoint names that the entries have, in the order of the entry with the most.

    Names are used wherever an entry has them. With ten or more objects, a name that only one of them has is taken for a
    typing error and left out. Points without names are numbered from 1, up to the most frequent number of points.
    """
    usable = [e for e in entries if not e.problem and e.points] or [e for e in entries if e.points]
    named = [e for e in usable if not e.positional]
    if not named:
        sizes = Counter(len(e.points) for e in usable)
        return tuple(str(i + 1) for i in range(sizes.most_common(1)[0][0])) if sizes else ()
    counts = Counter(name for e in named for name in e.points)
    kept = [name for name, n in counts.items() if n > 1 or len(named) < MANY] or list(counts)
    fullest = max(named, key=lambda e: sum(name in e.points for name in kept))
    first = [name for name in fullest.points if name in kept]
    return tuple(first + [name for name in kept if name not in fullest.points])


def point_sets(entries: list[Entry], keypoints: KeypointSet, drop: Callable[[InputError], None]) -> list[PointSet]:
    """Bring the entries' points into the order of a keypoint set, by name where they have names.

    A point that an entry lacks, or that has no coordinates there, is missing (NaN). Numbers refer to the keypoint set's
    order; a list of points without names must have one for each keypoint.

    Args:
        entries: As a reader returns them.
        keypoints: The set to bring them into.
        drop: Called with the error of each entry that cannot be used.
    """
    names_exist = any(not e.positional and not all(is_number(n) for n in e.points) for e in entries if not e.problem)
    sets = []
    for entry in entries:
        try:
            if entry.problem:
                raise InputError(f"{entry.where}: {entry.problem}")
            if entry.positional and names_exist:
                raise InputError(f"{entry.where}: its points have no names, but those of other objects have")
            sets.append(PointSet(entry.where, entry.file, entry.object_id, _in_order(entry, keypoints), entry))
        except InputError as error:
            drop(error)
    return sets


def _in_order(entry: Entry, keypoints: KeypointSet) -> np.ndarray:
    """Return the entry's points as (K, 2), in the package's coordinates, NaN where missing."""
    k, index = len(keypoints), {name: i for i, name in enumerate(keypoints.names)}
    if entry.positional and len(entry.points) != k:
        raise InputError(f"{entry.where}: expected {k} keypoints ({keypoints.name}), got {len(entry.points)}")
    out, seen = np.full((k, 2), np.nan), set()
    for name, point in entry.points.items():
        number = int(name) - 1 if is_number(name) and 1 <= int(name) <= k else None
        at = number if entry.positional else index.get(name, number)
        if at is None:
            near = difflib.get_close_matches(name, keypoints.names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {_range(keypoints)}"
            raise InputError(f"{entry.where}: unknown keypoint {name!r}; {hint}")
        if at in seen:
            raise InputError(f"{entry.where}: keypoint {keypoints.names[at]} occurs twice")
        seen.add(at)
        if point.visibility and np.isfinite([point.x, point.y]).all():
            out[at] = point.x, point.y
    return out


def _range(keypoints: KeypointSet) -> str:
    return ", ".join(keypoints.names) if len(keypoints) <= 8 else f"{keypoints.names[0]} to {keypoints.names[-1]}"


def read_points(
    path: Path, keypoints: KeypointSet, drop: Callable[[InputError], None], missing: str = "none",
    images: Path | None = None,
) -> list[PointSet]:  # fmt: skip
    """Read a points file into arrays in the order of a keypoint set.

    Args:
        path: A file or folder in one of `recombinator.data.formats.FORMATS`.
        keypoints: The set to bring the points into.
        drop: Called with the error of each object that cannot be used.
        missing: See `read_entries`.
        images: See `read_entries`.

    Raises:
        InputError: The file cannot be read at all.
    """
    return point_sets(read_entries(path, missing, images=images), keypoints, drop)
