"""Anybody's own keypoints: photographs and one file of points, of faces or of anything else."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.crops import GRID, RULES
from recombinator.data.images import read_image
from recombinator.data.points import ABOUT, PointSet, read_points
from recombinator.data.rows import crop_row
from recombinator.data.table import SPLIT_SEED, Row, TableInfo, write_splits
from recombinator.keypoints import KEYPOINT_SETS, KeypointSet
from recombinator.utils.errors import InputError

logger = logging.getLogger(__name__)

_SIDES = (("left", "right"), ("Left", "Right"), ("l_", "r_"), ("L_", "R_"), ("_l", "_r"), ("_L", "_R"))


def mirror_pairs(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Index pairs of names that differ in left and right only: those change places in a mirrored image."""
    pairs = []
    for i, name in enumerate(names):
        for a, b in _SIDES:
            other = name.replace(a, b)
            if a in name and other in names:
                pairs.append((i, names.index(other)))
                break
    return tuple(pairs)


def infer_keypoints(path: Path, normalizer: str | None = None) -> KeypointSet:
    """The keypoint set of a points file, from its first face: names where it has them, else numbers.

    normalizer: two names, "a,b", whose distance errors are divided by; without it the points' bounding box is. Raises
    InputError for a file without a face, and for names that it does not have.
    """
    names: list[str] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(io.StringIO(text))
            reader.fieldnames = [c.strip() for c in reader.fieldnames or ()]
            rows = list(reader)
            if rows and "keypoint" in rows[0]:
                about = [c for c in ABOUT if c != "confidence"]
                first = [rows[0].get(c) for c in about]
                names = [(r["keypoint"] or "").strip() for r in rows if [r.get(c) for c in about] == first]
                names = list(dict.fromkeys(names))  # one that comes twice is told of with its line
            elif rows:
                names = [str(i + 1) for i in range(sum(bool(re.fullmatch(r"[xX]_?\d+", c or "")) for c in rows[0]))]
            if rows and not names:
                raise InputError(
                    f"{path}:1: wants the columns file, keypoint, x, y (a row a keypoint), or file, x1, y1, x2, y2 "
                    f"and so on (a row a face), separated by commas; has {', '.join(reader.fieldnames)}"
                )
        else:
            found: Any = json.loads(text.splitlines()[0] if path.suffix.lower() == ".jsonl" else text)
            found = found.get("photographs", found.get("annotations", found)) if isinstance(found, dict) else found
            entries = found if isinstance(found, list) else [found]
            entry = next(face for e in entries for face in e.get("faces", [e]))
            points = entry.get("points", entry.get("keypoints"))
            flat = not isinstance(points[0], list | dict)
            names = [
                str(p.get("name", i + 1)) if isinstance(p, dict) else str(i + 1)
                for i, p in enumerate(points[::3] if flat else points)
            ]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except (KeyError, IndexError, TypeError, AttributeError, StopIteration):
        names = []
    if not names:
        raise InputError(f"{path}: no face with points in it (`recombinator prepare points --help` tells the forms)")
    known = next((s for s in KEYPOINT_SETS.values() if list(s.names) == names), None)
    if known:
        return known
    pair: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if normalizer:
        wanted = [n.strip() for n in normalizer.split(",")]
        if len(set(wanted)) != 2 or len(wanted) != 2 or not set(wanted) <= set(names):
            raise InputError(f"--normalizer {normalizer}: wants two different of {', '.join(names[:12])}")
        pair = ((names.index(wanted[0]),), (names.index(wanted[1]),))
    return KeypointSet(f"own-{len(names)}", tuple(names), mirror_pairs(tuple(names)), pair)


def prepare_points(
    source: Path, out: Path, *, images: Path | None = None, normalizer: str | None = None, size: int = GRID,
    gray: bool = False, quality: int = 95, strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:  # fmt: skip
    """Writes out/{train,valid,test}.parquet from a .csv, .json or .jsonl file of points and the images it names (in
    `images`, else beside it): eight, one and one tenth of the photographs. A point left empty is not learnt.

    Crops are the points' bounding box enlarged (300-W's rule). Otherwise as `prepare_mtfl`.
    """
    keypoints, folder, rule = infer_keypoints(source, normalizer), images or source.parent, RULES["300w"]
    dropped: list[str] = []

    def refuse(error: InputError) -> None:
        if strict:
            raise error
        dropped.append(str(error))
        logger.warning("%s", error)

    sets = read_points(source, keypoints, refuse)
    photographs: dict[str, list[PointSet]] = {}
    for face in sets:
        photographs.setdefault(face.file, []).append(face)
    files = sorted(photographs)
    order = [files[i] for i in np.random.RandomState(SPLIT_SEED).permutation(len(files))]
    tenth = max(1, len(files) // 10)
    if len(files) < 3:
        raise InputError(f"{source}: {len(files)} photographs are too few for three splits: 3 or more")
    parts = {"test": order[:tenth], "valid": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    jobs = {split: [f for name in sorted(part) for f in photographs[name]] for split, part in parts.items()}

    def make(face: PointSet) -> Row:
        known = np.isfinite(face.points).all(axis=1)
        try:
            if known.sum() < 2:
                raise InputError(f"{known.sum()} known points; at least 2 are needed")
            lacking = [keypoints.names[i] for group in keypoints.normalizer for i in group if not known[i]]
            if lacking:
                raise InputError(f"without {lacking[0]} its errors have no normalizer")
            points = np.where(known[:, None], face.points, face.points[known].mean(axis=0))
            if keypoints.scale(points) < 1:
                raise InputError("its normalizer is below a pixel; --normalizer a,b names two points that lie apart")
            image = read_image(folder / face.file)
            return crop_row(image, points, face.file, rule, size=size, gray=gray, quality=quality, mask=known)
        except InputError as error:
            raise InputError(f"{face.where}: {error}") from None

    counts = write_splits(
        out, jobs, make, lambda split: TableInfo("own", split, keypoints, rule.name, size, gray),
        strict=strict, progress=progress,
    )  # fmt: skip
    counts["dropped"] += len(dropped)
    for split in (s for s in jobs if not counts[s]):
        raise InputError(f"{source}: every face of the {split} split was dropped, for the reasons above; mend them")
    return counts
