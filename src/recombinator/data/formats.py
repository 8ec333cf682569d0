"""The formats of points files: which reader a file or folder needs.

`FORMATS` has one entry per format, the most specific first. The first whose `matches` returns True reads the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from recombinator.data.annotations import Reader, Source
from recombinator.data.readers import deeplabcut, labelme, labelstudio, sleap, tps, via, xml_points, yolo
from recombinator.data.readers.csv_points import read_csv
from recombinator.data.readers.json_points import read_json, read_json_lines
from recombinator.data.readers.pts import matches_pts, read_pts_entries
from recombinator.utils.errors import InputError, check_choice


class Format(NamedTuple):
    """A format of points files.

    Attributes:
        files: What its files are, for messages.
        matches: Whether a file or folder is of this format.
        read: Returns its entries.
    """

    files: str
    matches: Callable[[Source], bool]
    read: Reader


def _ends(*endings: str) -> Callable[[Source], bool]:
    return lambda source: source.suffix in endings


def _is_coco(source: Source) -> bool:
    return source.suffix == ".json" and isinstance(source.json, dict) and "annotations" in source.json


FORMATS: dict[str, Format] = {
    "dlc": Format("DeepLabCut: CollectedData_*.csv or a project folder", deeplabcut.matches, deeplabcut.read),
    "yolo": Format("data.yaml with kpt_shape, or its folder", yolo.matches, yolo.read),
    "slp": Format("SLEAP: .slp or .analysis.h5", sleap.matches, sleap.read),
    "labelme": Format(".json with shapes, or a folder of them", labelme.matches, labelme.read),
    "labelstudio": Format(".json or JSON-MIN", labelstudio.matches, labelstudio.read),
    "cvat": Format(".xml", xml_points.matches_cvat, xml_points.read_cvat),
    "dlib": Format(".xml of imglab", xml_points.matches_dlib, xml_points.read_dlib),
    "via": Format(".json or .csv", via.matches, via.read),
    "tps": Format(".tps", _ends(".tps"), tps.read),
    "pts": Format(".pts, or a folder of images and .pts", matches_pts, read_pts_entries),
    "coco": Format(".json with annotations", _is_coco, read_json),
    "json": Format(".json with objects and points", _ends(".json"), read_json),
    "jsonl": Format(".jsonl", _ends(".jsonl"), read_json_lines),
    "csv": Format(".csv or .tsv", _ends(".csv", ".tsv"), read_csv),
}


def describe() -> str:
    """Return the formats' names with their files, for messages."""
    return ", ".join(f"{name} ({f.files})" for name, f in FORMATS.items())


def find_format(source: Source, name: str | None = None) -> Format:
    """Return the format of a points file or folder.

    Args:
        source: The file or folder.
        name: A key of FORMATS, in place of what the content says.

    Raises:
        InputError: Nothing is there, or its format is unknown.
    """
    if name is not None:
        check_choice("points format", name, FORMATS)
        return FORMATS[name]
    if not source.path.exists():
        raise InputError(f"{source}: cannot be read (no such file or folder)")
    for form in FORMATS.values():
        if form.matches(source):
            return form
    raise InputError(f"{source}: unknown points format; expected one of {describe()}")
