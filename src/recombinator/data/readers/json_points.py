"""Points in JSON and JSON lines: lists of objects, the output of `predict`, COCO keypoints."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from recombinator.data.annotations import (
    FIELDS,
    Entry,
    Numbering,
    Point,
    Scheme,
    Source,
    coordinate,
    declared_size,
    image_name,
    plain_name,
    visibility,
)
from recombinator.utils.errors import InputError
from recombinator.utils.schema import parse_json
from recombinator.utils.text import plural

logger = logging.getLogger(__name__)

_COCO_ORIGIN = -0.5  # COCO has pixel centers at integers


def read_json(source: Source) -> list[Entry]:
    """Read a JSON file of points.

    Args:
        source: A file in one of three forms: a list of objects, each with a file name and `points` (`[[x, y], ...]`,
            `[[x, y, visibility], ...]`, `[{"name": ..., "x": ..., "y": ...}, ...]` or `{"NAME": [x, y], ...}`); the
            output of `predict`; or COCO keypoints, named by `categories`.

    Returns:
        One entry per object, in the file's order.

    Raises:
        InputError: The file cannot be read, is not JSON, or has another form.
    """
    path, whole = source.path, source.json
    if isinstance(whole, dict) and "annotations" in whole:
        return _coco(path, whole)
    if isinstance(whole, dict):
        whole = whole.get("photographs", whole)
    number = Numbering()
    items = whole if isinstance(whole, list) else [whole]
    return [e for i, item in enumerate(items, 1) for e in _objects(f"{path}: entry {i}", item, number)]


def read_json_lines(source: Source) -> list[Entry]:
    """Read a file with one JSON object per line, each like an element of the list that `read_json` reads.

    A line that is not JSON becomes an entry with a `problem`. Blank lines are skipped.
    """
    number = Numbering()
    entries: list[Entry] = []
    for line, text in enumerate(source.text.split("\n"), 1):
        if not text.strip():
            continue
        where = f"{source}:{line}"
        try:
            entries += _objects(where, parse_json(text, where), number)
        except InputError as error:
            entries.append(Entry(where, problem=str(error).removeprefix(f"{where}: ")))
    return entries


def _field(item: dict[str, Any], kind: str) -> Any:
    """Return the item's field of the given kind (a key of FIELDS); None if it has none."""
    by_name = {plain_name(str(k)): v for k, v in item.items()}
    return next((by_name[name] for name in FIELDS[kind] if by_name.get(name) is not None), None)


def _file_of(item: Any) -> str:
    found = _field(item, "file") if isinstance(item, dict) else None
    return image_name(found) if isinstance(found, str) else ""


def _objects(where: str, item: Any, number: Numbering) -> list[Entry]:
    """Return the entries of a JSON value: an image in the output of `predict`, one object, or a list of points."""
    objects = item.get("faces", [item]) if isinstance(item, dict) else [{"points": item}]
    if not isinstance(objects, list):
        return [Entry(where, problem="`faces` must be a list")]
    entries = []
    for one in objects:
        file = (_file_of(one) or _file_of(item)) if isinstance(one, dict) else ""
        name = _field(one, "object") if isinstance(one, dict) else None
        object_id = str(name) if isinstance(name, str | int) else number(file)
        entry = _entry(where, file, object_id, one)
        entries.append(replace(entry, columns={**_scalars(item), **entry.columns}) if isinstance(item, dict) else entry)
    return entries


def _entry(
    where: str, file: str, object_id: str, item: Any, names: list[str] | None = None,
    size: tuple[float, float] | None = None, scheme: Scheme | None = None,
) -> Entry:  # fmt: skip
    """Return one object's entry.

    Args:
        where: Place in the file, the prefix of messages.
        file: Name of the image.
        object_id: Identifier of the object in the image.
        item: The JSON value.
        names: Keypoint names of the COCO category, for points without names.
        size: Width and height of the image, as declared in COCO's `images`.
        scheme: Lines of the COCO category.
    """
    points = _field(item, "points") if isinstance(item, dict) else None
    try:
        if not isinstance(points, list | dict):
            raise InputError("expected `points` ([[x, y], ...]) or `keypoints`")
        flat = isinstance(points, list) and bool(points) and not any(isinstance(p, list | dict) for p in points)
        if flat and len(points) % 3:
            raise InputError(f"expected x, y, visibility for each keypoint (COCO), got {len(points)} numbers")
        if flat:
            points = [points[i : i + 3] for i in range(0, len(points), 3)]
        found, positional = _points(points)
        if positional and names:
            if len(names) != len(found):
                raise InputError(f"expected {len(names)} keypoints as in its category, got {len(found)}")
            found, positional = dict(zip(names, found.values(), strict=True)), False
    except InputError as error:
        return Entry(where, file, object_id, problem=str(error))
    other = _scalars(item)
    origin = _COCO_ORIGIN if flat else 0.0
    return Entry(where, file, object_id, found, positional, origin, size=size, columns=other, scheme=scheme or Scheme())


def _scalars(item: dict[str, Any]) -> dict[str, str]:
    """Return the fields of an object that are strings or numbers."""
    return {str(k): str(v) for k, v in item.items() if isinstance(v, str | int | float)}


def _points(points: list[Any] | dict[str, Any]) -> tuple[dict[str, Point], bool]:
    """Return the points by name or number, and True if they are numbered."""
    if isinstance(points, dict):
        return {str(name): _point(p) for name, p in points.items()}, False
    names = [p.get("name") if isinstance(p, dict) else None for p in points]
    if all(name is None for name in names):
        return {str(i): _point(p) for i, p in enumerate(points, 1)}, True
    if any(name is None for name in names):
        raise InputError(f"point {names.index(None) + 1} has no name, but others have")
    found: dict[str, Point] = {}
    for name, p in zip(names, points, strict=True):
        if str(name) in found:
            raise InputError(f"keypoint {name} occurs twice")
        found[str(name)] = _point(p)
    return found, False


def _point(value: Any) -> Point:
    if value is None:
        return Point(float("nan"), float("nan"))
    if isinstance(value, dict):
        return Point(coordinate(value.get("x")), coordinate(value.get("y")), visibility(_field(value, "visibility")))
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise InputError(f"expected x, y for each point, got {json.dumps(value)[:60]}")
    return Point(coordinate(value[0]), coordinate(value[1]), visibility(value[2] if len(value) == 3 else None))


def _coco(path: Path, whole: dict[str, Any]) -> list[Entry]:
    """Return the entries of COCO's `annotations`, without those that have no keypoints."""
    annotations, images = whole["annotations"], _image_names(path, whole.get("images"))
    listed = whole.get("images")
    further = {str(i.get("id")): _scalars(i) for i in (listed if isinstance(listed, list) else [])}
    sizes = {
        str(i.get("id")): declared_size(i.get("width"), i.get("height"))
        for i in (listed if isinstance(listed, list) else [])
    }
    if not isinstance(annotations, list):
        raise InputError(f"{path}: `annotations` must be a list")
    names = _category_names(whole.get("categories"))
    number, entries, skipped = Numbering(), [], 0
    for i, item in enumerate(annotations, 1):
        where = f"{path}: annotation {i}"
        if not isinstance(item, dict):
            entries.append(Entry(where, problem="expected an object"))
            continue
        if not _field(item, "points"):
            skipped += 1
            continue
        image_id = item.get("image_id")
        file = images.get(str(image_id)) if image_id is not None else None
        file = file or _file_of(item)
        category = names.get(str(item.get("category_id")), next(iter(names.values())) if len(names) == 1 else None)
        object_id = str(item.get("id") or number(file))
        size, scheme = sizes.get(str(image_id)), _scheme(whole.get("categories"), item.get("category_id"), category)
        entry = _entry(where, file, object_id, item, category, size, scheme)
        entry = replace(entry, columns={**further.get(str(image_id), {}), **entry.columns})
        if images and not file and not entry.problem:
            entry = Entry(where, problem=f"image_id {image_id} is not in `images`")
        entries.append(entry)
    if skipped:
        logger.warning("%s: %s left out, without keypoints", path, plural(skipped, "annotation"))
    return entries


def _image_names(path: Path, images: Any) -> dict[str, str]:
    """Return file names by image id, from COCO's list of images or from a dict by id."""
    if isinstance(images, dict):
        images = [{"id": i, **(v if isinstance(v, dict) else {"file_name": v})} for i, v in images.items()]
    if images is None:
        return {}
    if not isinstance(images, list) or not all(isinstance(i, dict) for i in images):
        raise InputError(f"{path}: `images` must be a list of objects with id and file_name")
    return {str(i.get("id")): _file_of(i) for i in images}


def _scheme(categories: Any, category_id: Any, names: list[str] | None) -> Scheme:
    """Return the lines of a COCO category's `skeleton`, whose keypoint numbers start at 1."""
    for category in categories if isinstance(categories, list) and names else []:
        skeleton = category.get("skeleton") if isinstance(category, dict) else None
        if isinstance(skeleton, list) and str(category.get("id")) == str(category_id):
            pairs = [p for p in skeleton if isinstance(p, list) and len(p) == 2]
            numbers = [p for p in pairs if all(isinstance(n, int) and 1 <= n <= len(names or ()) for n in p)]
            return Scheme(lines=tuple((names[a - 1], names[b - 1]) for a, b in numbers) if names else ())
    return Scheme()


def _category_names(categories: Any) -> dict[str, list[str]]:
    """Return the keypoint names of each COCO category that has some, by the category's id."""
    return {
        str(c.get("id")): [str(name) for name in c["keypoints"]]
        for c in (categories if isinstance(categories, list) else [])
        if isinstance(c, dict)
        and isinstance(c.get("keypoints"), list)
        and 0 < len(c["keypoints"]) == len({str(name) for name in c["keypoints"]})
    }
