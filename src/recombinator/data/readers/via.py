"""VGG Image Annotator (VIA) 1 and 2: projects and exports in JSON and CSV."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec

from recombinator.data.annotations import (
    FIELDS,
    Entry,
    Point,
    Source,
    add_point,
    as_text,
    coordinate,
    group_by,
    image_name,
    plain_name,
)
from recombinator.utils.errors import InputError
from recombinator.utils.schema import decode, parse_json
from recombinator.utils.text import plural

logger = logging.getLogger(__name__)

# VIA rounds positions to whole pixels of its canvas (via.js, `Math.round(x * canvas_scale)`) and draws circles around
# them there. 0 is the edge of the image.
ORIGIN = 0.0
_NAMES = (*FIELDS["keypoint"], "name", "label", "type", "part")  # region attributes that name a keypoint
_CSV = {"filename", "region_shape_attributes", "region_attributes"}


class _Region(msgspec.Struct):
    shape_attributes: dict[str, Any] | None = None
    region_attributes: dict[str, Any] | None = None


class _Image(msgspec.Struct):
    regions: list[_Region] | dict[str, _Region] | None
    filename: str = ""
    file_attributes: dict[str, Any] | None = None


def _images(value: Any) -> dict[str, Any] | None:
    """Return the images of a project or an export; None if the value is neither."""
    value = value.get("_via_img_metadata", value) if isinstance(value, dict) else None
    if isinstance(value, dict) and value and all(isinstance(v, dict) and "regions" in v for v in value.values()):
        return value
    return None


def matches(source: Source) -> bool:
    """Return whether the source is a VIA file."""
    if source.suffix == ".json":
        return _images(source.json) is not None
    try:
        return source.suffix == ".csv" and set(next(csv.reader([source.first_line.lstrip("#")]))) >= _CSV
    except csv.Error:
        return False


def read(source: Source) -> list[Entry]:
    """Read VIA's point regions.

    A keypoint's name is the region attribute called name, label or keypoint, or else the only attribute. An attribute
    called object or id separates the objects of an image. Points without names are numbered in the file's order.

    Returns:
        One entry per object.

    Raises:
        InputError: The file is not from VIA.
    """
    entries: list[Entry] = []
    skipped = 0
    for where, file, attributes, regions in _regions(source):
        points = [r for r in regions if r[0].get("name") == "point"]
        skipped += len(regions) - len(points)
        base = Entry(where, image_name(file), origin=ORIGIN, columns=attributes)
        for number, (name, members) in enumerate(group_by(points, lambda r: _attribute(r[1], "object")).items(), 1):
            entries.append(_entry(replace(base, object_id=name or str(number)), members))
    if skipped:
        logger.warning("%s: %s left out, because only points are read", source, plural(skipped, "region"))
    return entries


Region = tuple[dict[str, Any], dict[str, Any]]  # shape attributes, region attributes


def _regions(source: Source) -> Iterator[tuple[str, str, dict[str, str], list[Region]]]:
    """Yield where, image, file attributes and regions for each image."""
    if source.suffix == ".json":
        images = _images(source.json)
        if images is None:
            raise InputError(f"{source}: not a VIA project or export")
        for image in decode(dict[str, _Image], images, str(source)).values():
            listed = list(image.regions.values()) if isinstance(image.regions, dict) else image.regions or []
            other = {k: as_text(v) for k, v in (image.file_attributes or {}).items()}
            pairs = [(r.shape_attributes or {}, r.region_attributes or {}) for r in listed]
            yield f"{source}: {image.filename}", image.filename, other, pairs
        return
    rows: dict[str, tuple[str, dict[str, str], list[Region]]] = {}
    reader = csv.DictReader(io.StringIO(source.text.lstrip("#")))
    for row in reader:
        where, file = f"{source}:{reader.line_num}", row["filename"] or ""
        try:
            shape, region, other = (
                decode(dict[str, Any], parse_json(row.get(c) or "{}", c), c)
                for c in ("region_shape_attributes", "region_attributes", "file_attributes")
            )
        except InputError as error:
            logger.warning("%s: a region is left out, because its attributes cannot be read (%s)", where, error)
            continue
        kept = rows.setdefault(file, (where, {k: as_text(v) for k, v in other.items()}, []))
        if shape:
            kept[2].append((shape, region))
    for file, (where, other, pairs) in rows.items():
        yield where, file, other, pairs


def _attribute(attributes: dict[str, Any], kind: str) -> str:
    """Return the value of the attribute that names a keypoint or an object; empty if there is none."""
    by_name = {plain_name(str(k)): v for k, v in attributes.items() if v not in ("", None, {})}
    value = next((by_name[n] for n in (_NAMES if kind == "keypoint" else FIELDS["object"]) if n in by_name), None)
    if value is None and kind == "keypoint" and len(by_name) == 1:
        value = next(iter(by_name.values()))
    if isinstance(value, dict):  # a checkbox: the one that is ticked
        value = next((k for k, ticked in value.items() if ticked), "")
    return as_text(value)


def _entry(base: Entry, regions: list[Region]) -> Entry:
    names = [_attribute(r, "keypoint") for _, r in regions]
    points: dict[str, Point] = {}
    try:
        if any(names) and not all(names):
            raise InputError(f"point {names.index('') + 1} has no name, but others have")
        for i, ((shape, _), name) in enumerate(zip(regions, names, strict=True), 1):
            point = Point(coordinate(shape.get("cx")), coordinate(shape.get("cy")))
            add_point(points, name or str(i), point, "give each object's points an attribute `object`")
        return replace(base, points=points, positional=not any(names))
    except InputError as error:
        return replace(base, problem=str(error))
