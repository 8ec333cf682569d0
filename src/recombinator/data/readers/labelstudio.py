"""Label Studio: exports in JSON and JSON-MIN, with keypoint labels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

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
from recombinator.data.images import ENDINGS
from recombinator.utils.errors import InputError
from recombinator.utils.text import plural

logger = logging.getLogger(__name__)

# Coordinates are percentages "of overall image dimension" (labelstud.io, "Units of image annotations"): 0 is the edge.
ORIGIN = 0.0


_ANNOTATIONS = ("annotations", "completions", "predictions")


def matches(source: Source) -> bool:
    """Return whether the source is an export of Label Studio."""
    if source.suffix != ".json":
        return False
    whole = source.json
    first = next((t for t in whole if isinstance(t, dict)), None) if isinstance(whole, list) else None
    if first is None:
        return False
    return ("data" in first and any(k in first for k in _ANNOTATIONS)) or any(_is_minimal(first))


def _is_minimal(task: dict[str, Any]) -> Iterator[bool]:
    """Yield for each field whether it is a list of keypoints, as JSON-MIN has them."""
    for value in task.values():
        yield isinstance(value, list) and any(isinstance(v, dict) and "keypointlabels" in v for v in value)


def read(source: Source) -> list[Entry]:
    """Read the keypoints of an export.

    Of several annotations of an image the one marked as ground truth is used, else the first that was not skipped.
    Predictions are used if no task of the file has an annotation.
    Keypoints inside a region (`parentID`) are that object's; the others are one object.

    Returns:
        One entry per object.

    Raises:
        InputError: The file is not such an export.
    """
    if not isinstance(source.json, list):
        raise InputError(f"{source}: expected a list of tasks")
    entries: list[Entry] = []
    several = 0
    tasks = [t for t in source.json if isinstance(t, dict)]
    predictions = not any(t.get("annotations") or t.get("completions") for t in tasks)
    if predictions and any(t.get("predictions") for t in tasks):
        logger.warning("%s: has no annotations; its predictions are read", source)
    for number, task in enumerate(source.json, 1):
        if not isinstance(task, dict):
            entries.append(Entry(f"{source}: task {number}", problem="expected an object"))
            continue
        where = f"{source}: task {as_text(task.get('id')) or number}"
        data, results, extra = _parts(task, predictions)
        several += extra
        name = next((v for v in data.values() if _is_image(v)), "")
        other = {k: str(v) for k, v in data.items() if isinstance(v, str | int | float)}
        base = Entry(where, _file(name), columns=other, origin=ORIGIN)
        keypoints = [r for r in results if isinstance(r["labels"], list) and r["labels"]]
        for i, (parent, members) in enumerate(group_by(keypoints, lambda r: as_text(r["parent"])).items(), 1):
            entries.append(_entry(replace(base, object_id=parent or str(i)), members))
    if several:
        logger.warning("%s: %s of the same images left out", source, plural(several, "further annotation"))
    return entries


def _parts(task: dict[str, Any], predictions: bool) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Return a task's data, its keypoints in one form, and how many further annotations it has."""
    annotations = task.get("predictions") if predictions else task.get("annotations", task.get("completions"))
    if isinstance(task.get("data"), dict) and isinstance(annotations, list):
        usable = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled") and _results(a)]
        chosen = next((a for a in usable if a.get("ground_truth")), usable[0] if usable else {})
        results = [
            {**r, **r["value"], "labels": r["value"].get("keypointlabels"), "parent": r.get("parentID")}
            for r in _results(chosen)
            if isinstance(r, dict) and isinstance(r.get("value"), dict)
        ]
        return task["data"], results, max(0, len(usable) - 1)
    lists = [v for v in task.values() if isinstance(v, list)]
    results = [
        {**r, "labels": r["keypointlabels"], "parent": r.get("parentID")}
        for values in lists for r in values if isinstance(r, dict) and r.get("keypointlabels")
    ]  # fmt: skip
    return task, results, 0


def _results(annotation: dict[str, Any]) -> list[Any]:
    results = annotation.get("result")
    return results if isinstance(results, list) else []


def _is_image(value: Any) -> bool:
    return isinstance(value, str) and PurePosixPath(_file(value)).suffix.lower() in ENDINGS


def _file(url: str) -> str:
    """Return the file's name in a task's URL: an upload, a local file (?d=PATH), or an address in a store."""
    try:
        parts = urlsplit(image_name(url))
        local = parse_qs(parts.query).get("d")
    except ValueError:  # no URL
        return ""
    path = local[0] if local else unquote(parts.path)
    return image_name(path).removeprefix("/data/").lstrip("/")


def _entry(base: Entry, members: list[dict[str, Any]]) -> Entry:
    points: dict[str, Point] = {}
    try:
        size = declared_size(members[0].get("original_width"), members[0].get("original_height"))
        if size is None:
            raise InputError("no original_width and original_height")
        for member in members:
            if member.get("image_rotation"):
                raise InputError(f"the image was turned by {member['image_rotation']} degrees while it was labeled")
            x, y = (coordinate(member.get(a)) / 100 * side for a, side in zip("xy", size, strict=True))
            remedy = "put the keypoints of each object into a region"
            add_point(points, as_text(member["labels"][0]), Point(x, y), remedy)
        return replace(base, points=points, size=size)
    except InputError as error:
        return replace(base, problem=str(error))
