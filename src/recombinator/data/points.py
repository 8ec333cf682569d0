"""Anybody's keypoints without images: CSV, JSON and .pts in, CSV and JSON out."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.crops import RULES
from recombinator.keypoints import FACE_68, KeypointSet
from recombinator.utils.errors import InputError

ABOUT = ("file", "image", "frame", "seconds", "face", "id", "confidence")  # columns that are no points


@dataclass(frozen=True)
class PointSet:
    """One face: `where` is "file:line" for messages, `file` and `face` what the input calls it, points (K, 2), NaN
    where the input has none."""

    where: str
    file: str
    face: str
    points: np.ndarray


def read_pts(path: Path) -> np.ndarray:
    """(68, 2) points, a pixel's center at its integer + 0.5, from a file with or without the header lines.

    As 300-W has them: half a pixel right and below of what counting the first pixel's center as 1 would give (the crop
    rule's `origin`; docs/log.md). Raises InputError naming the file and line.
    """
    points = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not text.strip() or text.strip() in "{}" or re.match(r"\s*(version|n_points)\s*:", text):
            continue
        try:
            x, y = (float(v) for v in text.split())
        except ValueError:
            raise InputError(f"{path}:{number}: wants two numbers, x y, got {text.strip()!r}") from None
        points.append((x, y))
    found = np.array(points) - RULES["300w"].origin
    if len(found) != len(FACE_68):
        raise InputError(f"{path}: has {len(found)} points, wants {len(FACE_68)}")
    if not np.isfinite(found).all():
        raise InputError(f"{path}: a coordinate is not a finite number")
    if FACE_68.scale(found) < 1:
        raise InputError(f"{path}: the eyes are less than a pixel apart")
    return found


def read_points(path: Path, keypoints: KeypointSet, drop: Callable[[InputError], None]) -> list[PointSet]:
    """The sets of a .csv (a row a keypoint as `predict` writes it, or a row a face with columns x1.. and y1..), .json
    or .jsonl (a `predict` report, or objects with `points` or COCO's `keypoints`) or .pts file.

    `drop` gets the error of each set that cannot be used. Raises InputError for a file that cannot be read at all.
    """
    readers = {".csv": _from_csv, ".json": _from_json, ".jsonl": _from_json, ".pts": _from_pts}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: wants a name that ends in {', '.join(readers)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    return readers[path.suffix.lower()](path, text, keypoints, drop)


def _checked(where: str, file: str, face: str, points: Any, keypoints: KeypointSet) -> PointSet:
    try:
        found = np.array([[np.nan if v is None else float(v) for v in p] for p in points], np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{where}: a coordinate is not a number") from None
    if found.shape != (len(keypoints), 2):
        raise InputError(f"{where}: has {len(found)} points, wants {len(keypoints)} ({keypoints.name})")
    found[~np.isfinite(found).all(axis=1)] = np.nan
    return PointSet(where, file, face, found)


def _from_pts(path: Path, text: str, keypoints: KeypointSet, drop: Callable[[InputError], None]) -> list[PointSet]:
    return [_checked(str(path), path.name, "1", read_pts(path), keypoints)]


def _number(text: str, where: str) -> float:
    if not text.strip():
        return float("nan")
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{where}: {text!r} is not a number") from None


def _from_csv(path: Path, text: str, keypoints: KeypointSet, drop: Callable[[InputError], None]) -> list[PointSet]:
    rows = csv.DictReader(io.StringIO(text))
    columns = [c.strip() for c in rows.fieldnames or ()]
    rows.fieldnames = columns
    if {"keypoint", "x", "y"} <= set(columns):
        return _long(path, rows, keypoints, drop)
    axes: dict[str, list[str]] = {"x": [], "y": []}
    for c in columns:
        match = re.fullmatch(r"([xy])_?(\d+)", c, re.IGNORECASE)
        if match:
            axes[match[1].lower()].append(c)
    unknown = [c for c in columns if c not in axes["x"] + axes["y"] and c not in ABOUT]
    if unknown or not len(axes["x"]) == len(axes["y"]) == len(keypoints):
        raise InputError(
            f"{path}:1: wants the columns keypoint, x, y, or x1 to x{len(keypoints)} and y1 to y{len(keypoints)}, "
            f"beside {', '.join(ABOUT)}; has {len(axes['x'])} x, {len(axes['y'])} y"
            + (f" and {', '.join(unknown[:5])}" if unknown else "")
        )
    for names in axes.values():
        names.sort(key=lambda c: int(re.sub(r"\D", "", c)))
    sets: list[PointSet] = []
    for row in rows:
        where = f"{path}:{rows.line_num}"
        try:
            points = [[_number(row[a] or "", where) for a in pair] for pair in zip(axes["x"], axes["y"], strict=True)]
            file = row.get("file") or row.get("image") or ""
            face = row.get("face") or row.get("id") or str(len(sets) + 1)
            sets.append(_checked(where, file, face, points, keypoints))
        except InputError as error:
            drop(error)
    return sets


def _long(path: Path, rows: Any, keypoints: KeypointSet, drop: Callable[[InputError], None]) -> list[PointSet]:
    order = {name: i for i, name in enumerate(keypoints.names)}
    groups: dict[tuple[str, str], tuple[str, dict[int, list[float]]]] = {}
    bad: dict[tuple[str, str], InputError] = {}
    for row in rows:
        where = f"{path}:{rows.line_num}"
        file = row.get("file") or row.get("image") or (f"frame {row['frame']}" if row.get("frame") else "")
        key = (file, row.get("face") or row.get("id") or "1")
        _, found = groups.setdefault(key, (where, {}))
        name = (row["keypoint"] or "").strip()
        index = order.get(name, int(name) - 1 if name.isdecimal() else -1)
        try:
            if not 0 <= index < len(order):
                known = f"{keypoints.names[0]} to {keypoints.names[-1]}, or 1 to {len(order)}"
                raise InputError(f"{where}: no keypoint is called {name!r} ({known})")
            if index in found:
                raise InputError(f"{where}: the keypoint {name} comes twice for face {key[1]}")
            found[index] = [_number(row[a] or "", where) for a in "xy"]
        except InputError as error:
            bad.setdefault(key, error)
    sets = []
    for key, (where, found) in groups.items():
        wrong = bad.get(key)
        if not wrong and len(found) != len(order):
            wrong = InputError(f"{where}: this face has {len(found)} keypoints, wants {len(order)} ({keypoints.name})")
        if wrong:
            drop(wrong)
        else:
            sets.append(_checked(where, *key, [found[i] for i in range(len(order))], keypoints))
    return sets


def _from_json(path: Path, text: str, keypoints: KeypointSet, drop: Callable[[InputError], None]) -> list[PointSet]:
    entries: list[tuple[str, Any]] = []
    names: dict[Any, str] = {}  # COCO's images by their number
    line = 1
    try:
        if path.suffix.lower() == ".jsonl":
            for line, row in enumerate(text.splitlines(), 1):
                if row.strip():
                    entries.append((f"{path}:{line}", json.loads(row)))
        else:
            whole = json.loads(text)
            if isinstance(whole, dict):
                names = {i.get("id"): str(i.get("file_name", "")) for i in whole.get("images", [])}
                whole = whole.get("photographs", whole.get("annotations", whole))
            whole = whole if isinstance(whole, list) else [whole]
            entries = [(f"{path}: entry {i}", e) for i, e in enumerate(whole, 1)]
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{line + error.lineno - 1}: not JSON ({error.msg})") from None
    sets = []
    for where, entry in entries:
        faces = entry.get("faces", [entry]) if isinstance(entry, dict) else [{"points": entry}]
        for number, face in enumerate(faces, 1):
            try:
                found = _face(where, entry, str(number), face, keypoints)
                named = names.get(entry.get("image_id")) if isinstance(entry, dict) else None
                sets.append(replace(found, file=named) if named and not found.file else found)
            except InputError as error:
                drop(error)
    return sets


def _face(where: str, entry: Any, number: str, face: Any, keypoints: KeypointSet) -> PointSet:
    points = face.get("points", face.get("keypoints")) if isinstance(face, dict) else None
    if not isinstance(points, list):
        raise InputError(f"{where}: wants `points` ([[x, y], ...]) or `keypoints`")
    if points and all(isinstance(p, dict) for p in points):
        points = [[p.get("x"), p.get("y")] for p in points]
    elif len(points) == 3 * len(keypoints) and not isinstance(points[0], list):  # COCO: x, y, visibility
        flat = [points[i : i + 3] for i in range(0, len(points), 3)]
        points = [[None, None] if not v else [x + 0.5, y + 0.5] for x, y, v in flat]  # its pixels' centers are whole
    file = str(entry.get("file", entry.get("image", ""))) if isinstance(entry, dict) else ""
    return _checked(where, file, number, points, keypoints)
