"""LabelMe: one .json per image, alone or in a folder."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from recombinator.data.annotations import (
    Entry,
    Point,
    Source,
    add_point,
    as_text,
    coordinate,
    declared_size,
    group_by,
    image_name,
)
from recombinator.utils.errors import InputError
from recombinator.utils.text import plural

logger = logging.getLogger(__name__)

# LabelMe keeps mouse positions in the image's pixmap as they are (canvas.py, `transformPos`): 0 is the image's edge.
ORIGIN = 0.0


def is_labelme(value: Any) -> bool:
    """Return whether a JSON value is a file of LabelMe."""
    return isinstance(value, dict) and isinstance(value.get("shapes"), list) and "imagePath" in value


def matches(source: Source) -> bool:
    """Return whether the source is a file of LabelMe or a folder of them."""
    if source.path.is_dir():
        first = next(iter(sorted(source.path.glob("*.json"))), None)
        try:
            return first is not None and is_labelme(Source(first).json)
        except InputError:
            return False
    return source.suffix == ".json" and is_labelme(source.json)


def read(source: Source) -> list[Entry]:
    """Read the points of a file or folder.

    Points of one `group_id` are one object; those without are one object too. Other shapes are left out.

    Returns:
        One entry per object.

    Raises:
        InputError: The only file cannot be read.
    """
    if not source.path.is_dir():
        entries, skipped = _read_file(source)
    else:
        entries, skipped = [], 0
        for path in sorted(source.path.glob("*.json")):
            try:
                found, others = _read_file(Source(path))
                entries, skipped = entries + found, skipped + others
            except InputError as error:
                entries.append(Entry(str(path), problem=str(error).removeprefix(f"{path}: ")))
    if skipped:
        logger.warning("%s: %s left out, not a point", source, plural(skipped, "shape"))
    return entries


def _read_file(source: Source) -> tuple[list[Entry], int]:
    """Return a file's entries, and how many other shapes it has."""
    whole = source.json
    if not is_labelme(whole):
        raise InputError(f"{source}: not a file of LabelMe (no `shapes` and `imagePath`)")
    size = declared_size(whole.get("imageWidth"), whole.get("imageHeight"))
    base = Entry(str(source), image_name(str(whole["imagePath"])), origin=ORIGIN, size=size, folder=source.path.parent)
    shapes = [s for s in whole["shapes"] if isinstance(s, dict)]
    points = [s for s in shapes if s.get("shape_type", "point") == "point"]
    entries = []
    for number, (group, members) in enumerate(group_by(points, lambda s: as_text(s.get("group_id"))).items(), 1):
        found: dict[str, Point] = {}
        try:
            for shape in members:
                values = shape.get("points")
                if not isinstance(values, list) or len(values) != 1 or not _is_pair(values[0]):
                    raise InputError(f"expected one x, y for {as_text(shape.get('label'))}")
                point = Point(coordinate(values[0][0]), coordinate(values[0][1]))
                add_point(found, as_text(shape.get("label")), point, "give each object its own group id")
            entries.append(replace(base, object_id=group or str(number), points=found))
        except InputError as error:
            entries.append(replace(base, object_id=group or str(number), problem=str(error)))
    return entries, len(shapes) - len(points)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
