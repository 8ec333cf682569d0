"""Ultralytics YOLO pose: data.yaml, and labels/**/*.txt with one object per line."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from recombinator.data.annotations import (
    LABELED,
    Entry,
    Point,
    Scheme,
    Source,
    coordinate,
    image_of_stem,
    visibility,
)
from recombinator.utils.errors import InputError, import_optional
from recombinator.utils.files import read_file

logger = logging.getLogger(__name__)

# Coordinates are fractions of the image's width and height (docs.ultralytics.com/datasets/pose): 0 is the edge.
ORIGIN = 0.0
_MOST = 10_000  # keypoints
_BOX = 5  # class, and the box's center and size


def _settings(source: Source) -> Path | None:
    """Return the data.yaml of a folder, or the source itself; None if it has no keypoints."""
    candidates = sorted(source.path.glob("*.y*ml")) if source.path.is_dir() else [source.path]
    for path in candidates:
        if path.suffix.lower() in (".yaml", ".yml") and "kpt_shape" in Source(path).text:
            return path
    return None


def matches(source: Source) -> bool:
    """Return whether the source is a data set of YOLO pose."""
    return _settings(source) is not None


def read(source: Source) -> list[Entry]:
    """Read the labels next to a data.yaml.

    The yaml's kpt_shape says how many keypoints there are and whether they have a visibility; flip_idx gives the
    mirror pairs, and kpt_names the names where it has them.

    Args:
        source: The data.yaml, or its folder.

    Returns:
        One entry per line. The column `split` is the part of the data set that the file is in (train, val, test).

    Raises:
        InputError: There is no usable data.yaml, or no labels.
    """
    path = _settings(source)
    if path is None:
        raise InputError(f"{source}: no data.yaml with kpt_shape")
    yaml = import_optional("yaml", f"reading {path.name}")
    try:
        settings = yaml.safe_load(Source(path).text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: such as a date that does not exist
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    shape = settings.get("kpt_shape") if isinstance(settings, dict) else None
    if not isinstance(shape, list) or len(shape) != 2 or not _is_count(shape[0]) or shape[1] not in (2, 3):
        raise InputError(f"{path}: kpt_shape must be [keypoints, 2 or 3], got {shape!s:.100}")
    names, scheme = _names_and_scheme(path, settings, shape[0])
    root = path.parent
    files = sorted(f for f in root.rglob("*.txt") if "labels" in f.relative_to(root).parts)
    if not files:
        raise InputError(f"{path}: no labels/*.txt in {root}")
    entries = []
    for file in files:
        image = _image(root, file)
        split = next((p for p in file.relative_to(root).parts if p in ("train", "val", "valid", "test")), "")
        for line, text in enumerate(read_file(file).decode("utf-8", errors="replace").splitlines(), 1):
            if text.strip():
                columns = {"split": split, "class": text.split()[0]}
                base = Entry(f"{file}:{line}", image, str(line), folder=root, columns=columns, scheme=scheme)
                entries.append(_entry(base, text.split(), names, shape[1]))
    return entries


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MOST


def _are_scalars(values: list[Any]) -> bool:
    """Return whether the values of a list are texts or numbers: text of nested ones could be of any length."""
    return all(isinstance(v, str | int) for v in values)


def _names_and_scheme(path: Path, settings: dict[str, Any], count: int) -> tuple[tuple[str, ...], Scheme]:
    given = settings.get("kpt_names")
    if isinstance(given, dict):  # by class
        given = next(iter(given.values()), None)
    names = (
        tuple(str(n) for n in given)
        if isinstance(given, list) and _are_scalars(given)
        else tuple(str(i + 1) for i in range(count))
    )
    if len(names) != count or len(set(names)) != count:
        raise InputError(f"{path}: kpt_names must be {count} different names, got {len(names)}")
    flip = settings.get("flip_idx")
    if flip is None:
        return names, Scheme()
    if not isinstance(flip, list) or not _are_scalars(flip) or sorted(map(str, flip)) != sorted(map(str, range(count))):
        raise InputError(f"{path}: flip_idx must hold the numbers 0 to {count - 1}, each once")
    if any(flip[j] != i for i, j in enumerate(flip)):
        raise InputError(f"{path}: flip_idx must swap pairs")
    return names, Scheme(mirror=tuple((names[i], names[j]) for i, j in enumerate(flip) if i < j))


def _image(root: Path, file: Path) -> str:
    """Return the image of a label file: in the folder images in place of labels, with the same name."""
    parts = list(file.relative_to(root).parts)
    at = len(parts) - 1 - parts[::-1].index("labels")
    parts[at] = "images"
    return image_of_stem((root / Path(*parts)).with_suffix("")).relative_to(root).as_posix()


def _entry(base: Entry, values: list[str], names: tuple[str, ...], each: int) -> Entry:
    try:
        if len(values) != _BOX + each * len(names):
            raise InputError(f"expected {_BOX + each * len(names)} numbers as kpt_shape says, got {len(values)}")
        points = {}
        for i, name in enumerate(names):
            at = _BOX + i * each
            x, y = (coordinate(v) for v in values[at : at + 2])
            seen = visibility(values[at + 2]) if each == 3 else LABELED if x >= 0 and y >= 0 else 0
            points[name] = Point(x, y, seen)
        return replace(base, points=points, relative=True, origin=ORIGIN)
    except InputError as error:
        return replace(base, problem=str(error))
