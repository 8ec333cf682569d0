"""XML files of points: CVAT ("for images" and "for video") and dlib's imglab."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from xml.etree.ElementTree import Element

from recombinator.data.annotations import (
    LABELED,
    Entry,
    Numbering,
    Point,
    Source,
    add_point,
    coordinate,
    declared_size,
    group_by,
    image_name,
    is_number,
)
from recombinator.utils.errors import InputError
from recombinator.utils.text import plural

logger = logging.getLogger(__name__)

# CVAT's coordinates are in image pixels with 0,0 at the upper left corner; its canvas draws them as SVG on the image.
CVAT_ORIGIN = 0.0
# imglab stores the clicked pixel as an integer. dlib has pixel centers at integers
# (dlib/image_transforms/interpolation.h).
DLIB_ORIGIN = -0.5


def _is_root(source: Source, tag: str, child: str) -> bool:
    if source.suffix != ".xml":
        return False
    return source.xml.tag == tag and source.xml.find(child) is not None


def matches_cvat(source: Source) -> bool:
    """Return whether the source is an XML file of CVAT."""
    return _is_root(source, "annotations", "image") or _is_root(source, "annotations", "track")


def matches_dlib(source: Source) -> bool:
    """Return whether the source is an XML file of imglab."""
    return _is_root(source, "dataset", "images")


def read_dlib(source: Source) -> list[Entry]:
    """Read imglab's boxes with parts.

    Numbered parts start at 0 in the file and at 1 here. Ignored boxes and boxes without parts are left out.

    Returns:
        One entry per box.
    """
    images = source.xml.findall("images/image")
    names = {p.get("name", "") for p in source.xml.iter("part")}
    numbers = bool(names) and all(is_number(n) for n in names)
    number, entries, empty = Numbering(), [], 0
    for i, image in enumerate(images, 1):
        size = declared_size(image.get("width"), image.get("height"))
        for box in image.findall("box"):
            if box.find("part") is None or box.get("ignore") == "1":
                empty += 1
                continue
            file = image_name(image.get("file", ""))
            entry = Entry(f"{source}: image {i}", file, number(file), origin=DLIB_ORIGIN, size=size)
            points: dict[str, Point] = {}
            try:
                for part in sorted(box.findall("part"), key=lambda p: int(p.get("name", 0)) if numbers else 0):
                    name = part.get("name", "")
                    point = Point(coordinate(part.get("x")), coordinate(part.get("y")))
                    add_point(points, str(int(name) + 1) if numbers else name, point)
                entries.append(replace(entry, points=points))
            except InputError as error:
                entries.append(replace(entry, problem=str(error)))
    if empty:
        logger.warning("%s: %s left out, without parts or ignored", source, plural(empty, "box"))
    return entries


def read_cvat(source: Source) -> list[Entry]:
    """Read CVAT's skeletons and points.

    A skeleton is one object. A points shape with several coordinates is one object with numbered keypoints. Points
    shapes with a single coordinate form one object per group. `outside` means not labeled; `occluded` is kept. Video
    frames are called frame_000000.PNG and so on, as CVAT exports them.

    Returns:
        One entry per object.
    """
    number = Numbering()
    entries = [e for group in _cvat_images(source) for e in _cvat_objects(*group, number)]
    shapes = sum(1 for tag in ("box", "polygon", "polyline", "mask", "ellipse") for _ in source.xml.iter(tag))
    if shapes:
        logger.warning("%s: %s left out, because only points are read", source, plural(shapes, "shape"))
    return entries


def _cvat_images(source: Source) -> Iterator[tuple[Entry, list[Element]]]:
    """Yield an entry without points, with its skeleton and points shapes, for each image or frame."""
    for image in source.xml.findall("image"):
        name = image.get("name", "")
        size = declared_size(image.get("width"), image.get("height"))
        base = Entry(f"{source}: image {name}", image_name(name), origin=CVAT_ORIGIN, size=size)
        yield base, [s for s in image if s.tag in ("skeleton", "points")]
    original = source.xml.find("meta//original_size")
    size = None if original is None else declared_size(original.findtext("width"), original.findtext("height"))
    for track in source.xml.findall("track"):
        for frame, shapes in group_by(list(track), lambda s: s.get("frame")).items():
            name = f"frame_{int(frame):06d}.PNG" if is_number(str(frame)) else ""
            usable = [s for s in shapes if s.tag in ("skeleton", "points") and s.get("outside") != "1"]
            for shape in usable:
                shape.attrib.setdefault("label", track.get("label", ""))
            where = f"{source}: track {track.get('id')}, frame {frame}"
            columns = {"track": track.get("id", "")}
            yield Entry(where, name, origin=CVAT_ORIGIN, size=size, columns=columns), usable


def _cvat_objects(base: Entry, shapes: list[Element], number: Numbering) -> Iterator[Entry]:
    loose = []
    for shape in shapes:
        if shape.tag == "skeleton":
            yield _cvat_entry(base, shape.findall("points"), number, shape)
        elif ";" in shape.get("points", ""):
            yield _cvat_entry(base, _split(shape), number, shape, positional=True)
        else:
            loose.append(shape)
    for members in group_by(loose, lambda s: s.get("group_id")).values():
        yield _cvat_entry(base, members, number, members[0])


def _split(shape: Element) -> list[Element]:
    """Split a shape with several coordinates into shapes of one coordinate each, labeled from 1."""
    pairs = enumerate(shape.get("points", "").split(";"), 1)
    return [Element("points", {**shape.attrib, "label": str(i), "points": pair}) for i, pair in pairs]


def _cvat_entry(
    base: Entry, shapes: list[Element], number: Numbering, owner: Element, positional: bool = False
) -> Entry:
    other = {a.get("name", ""): a.text or "" for a in owner.findall("attribute")}
    entry = replace(base, object_id=number(base.file), columns={**base.columns, **other}, positional=positional)
    points: dict[str, Point] = {}
    try:
        for shape in shapes:
            label, values = shape.get("label", ""), shape.get("points", "").split(",")
            if len(values) != 2:
                raise InputError(f"expected x,y for {label}, got {shape.get('points')!r}")
            seen = 0 if shape.get("outside") == "1" else 1 if shape.get("occluded") == "1" else LABELED
            point = Point(coordinate(values[0]), coordinate(values[1]), seen)
            add_point(points, label, point, "use a skeleton, or a group, for each object")
        return replace(entry, points=points)
    except InputError as error:
        return replace(entry, problem=str(error))
