"""DeepLabCut: CollectedData_SCORER.csv, the folder of a project, or its config.yaml.

A file has three header rows (scorer, bodyparts, coords), or four with several animals (individuals). The frame's path
is relative to the project, in one column or, in newer versions, in three.
"""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import replace
from pathlib import Path

from recombinator.data.annotations import Entry, Point, Source, coordinate, image_name, is_number
from recombinator.utils.errors import InputError
from recombinator.utils.text import plural

logger = logging.getLogger(__name__)

# DeepLabCut's networks place cell i of a score map at (i + 0.5) * stride (pose_estimation_tensorflow/core/predict.py:
# `maxloc * stride + 0.5 * stride + offset`), and its augmentation mirrors x to width - x (imgaug): 0 is the image's
# edge, as in this package. Where its labeling tool draws a point can differ from that by half a pixel.
ORIGIN = 0.0
_HEADERS = ("scorer", "individuals", "bodyparts", "coords")


def matches(source: Source) -> bool:
    """Return whether the source is DeepLabCut's."""
    path = source.path
    if path.is_dir():
        return bool(_files(path))
    if source.suffix in (".yaml", ".yml"):
        return "bodyparts:" in source.text or "multianimalbodyparts:" in source.text
    if source.suffix == ".h5":
        return path.name.startswith("CollectedData") or path.with_suffix(".csv").is_file()
    return source.suffix == ".csv" and source.first_line.split(",")[0].strip() == "scorer"


def _files(folder: Path) -> list[Path]:
    """Return the label files of a project, or of one of its folders of frames."""
    return sorted([*folder.glob("CollectedData_*.csv"), *folder.glob("labeled-data/*/CollectedData_*.csv")])


def read(source: Source) -> list[Entry]:
    """Read DeepLabCut's labels.

    Args:
        source: A CollectedData file, .csv or .h5, a folder that has some, a project's folder or its config.yaml.

    Returns:
        One entry per animal and frame that has a labeled point.

    Raises:
        InputError: A file cannot be read, or is not DeepLabCut's.
    """
    path = source.path
    if path.is_dir() or source.suffix in (".yaml", ".yml"):
        folder = path if path.is_dir() else path.parent
        files = _files(folder)
        if not files:
            raise InputError(f"{path}: no labeled-data/*/CollectedData_*.csv in {folder}")
        return [entry for file in files for entry in _read_file(Source(file))]
    if source.suffix == ".h5":
        if not path.with_suffix(".csv").is_file():
            raise InputError(f"{path}: needs {path.stem}.csv, which DeepLabCut saves with it; only that is read")
        return _read_file(Source(path.with_suffix(".csv")))
    return _read_file(source)


def _read_file(source: Source) -> list[Entry]:
    path, headers = source.path, {}
    stream = csv.reader(io.StringIO(source.text))
    rows = [(stream.line_num, [c.strip() for c in row]) for row in stream if any(c.strip() for c in row)]
    while rows and rows[0][1][0] in _HEADERS and "coords" not in headers:
        cells = rows.pop(0)[1]
        headers[cells[0]] = cells
    if not {"scorer", "bodyparts", "coords"} <= set(headers):
        raise InputError(f"{path}:1: expected DeepLabCut's header rows scorer, bodyparts and coords")
    coords = headers["coords"]
    if any(len(cells) < len(coords) for cells in headers.values()):
        raise InputError(f"{path}:1: expected {len(coords)} fields in each header row, as in the row coords")
    first = next((i for i, c in enumerate(coords) if c == "x"), len(coords))  # the columns before it are the index
    columns: dict[str, dict[str, dict[str, int]]] = {}
    for i in range(first, len(coords)):
        animal = headers["individuals"][i] if "individuals" in headers else "1"
        columns.setdefault(animal, {}).setdefault(headers["bodyparts"][i], {})[coords[i]] = i
    folder = path.parent.parent.parent if path.parent.parent.name == "labeled-data" else path.parent
    entries, empty = [], 0
    for line, cells in rows:
        where, file = f"{path}:{line}", image_name("/".join(c for c in cells[:first] if c))
        file = f"frame {file}" if is_number(file) else file  # of a video that DeepLabCut analyzed
        video = file.split("/")[-2] if "/" in file else ""
        for animal, parts in columns.items():
            other = {"video": video, "individual": animal}
            entry = Entry(where, file, animal, origin=ORIGIN, folder=folder, columns=other)
            try:
                if len(cells) > len(coords):
                    raise InputError(f"expected {len(coords)} fields as in the header, got {len(cells)}")
                cells += [""] * (len(coords) - len(cells))
                points = {
                    part: Point(coordinate(cells[axes["x"]]), coordinate(cells[axes["y"]]))
                    for part, axes in parts.items()
                    if {"x", "y"} <= set(axes)
                }
                if any(p.x == p.x and p.y == p.y for p in points.values()):
                    entries.append(replace(entry, points=points))
                else:
                    empty += 1
            except InputError as error:
                entries.append(replace(entry, problem=str(error)))
    if empty:
        logger.warning("%s: %s left out, without a labeled point", path, plural(empty, "object"))
    return entries
