"""Your own keypoints: a file of points and the images it names, of faces or other objects."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from recombinator.data.annotations import Entry, Scheme, coordinate
from recombinator.data.crops import GRID, RULES
from recombinator.data.images import read_image
from recombinator.data.points import PointSet, infer_names, point_sets, read_entries
from recombinator.data.rows import background_jobs, background_row, crop_row
from recombinator.data.splits import shared_groups, split_images, split_of
from recombinator.data.table import Row, TableInfo, write_splits
from recombinator.keypoints import KEYPOINT_SETS, KeypointSet
from recombinator.utils.errors import InputError
from recombinator.utils.text import plural

logger = logging.getLogger(__name__)

_SIDE = re.compile(r"left|Left|LEFT|right|Right|RIGHT|(?<![A-Za-z])[lrLR](?![A-Za-z])|(?<=[a-z])[LR](?![A-Za-z])")
_OTHER = {"left": "right", "Left": "Right", "LEFT": "RIGHT", "l": "r", "L": "R"}
_OTHER |= {right: left for left, right in _OTHER.items()}


def mirror_pairs(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Find left-right pairs by name: the keypoints that swap places when an image is mirrored.

    Args:
        names: Keypoint names. Pairs are, for example, left_eye and right_eye, L_hand and R_hand, "eye l" and "eye r",
            earL and earR.

    Returns:
        Index pairs, the left one first.
    """
    pairs = []
    for i, name in enumerate(names):
        sides = _SIDE.findall(name)
        other = _SIDE.sub(lambda match: _OTHER[match[0]], name)
        if sides and sides[0].lower().startswith("l") and other in names:
            pairs.append((i, names.index(other)))
    return tuple(pairs)


def infer_keypoints(entries: list[Entry], source: Path, normalizer: str | None = None) -> KeypointSet:
    """Infer the keypoint set of a points file. Keypoints without names are numbered from 1.

    Names that match a built-in set, in any order, give that set. Otherwise mirror pairs and lines come from the file
    (YOLO's flip_idx, SLEAP's symmetries and edges, COCO's skeleton). Without mirror pairs in the file, names give them.

    Args:
        entries: The file's entries (`recombinator.data.points.read_entries`).
        source: The file, for messages.
        normalizer: Two keypoint names, "a,b": errors are divided by the distance between them. None: by the square root
            of the area of the points' bounding box.

    Raises:
        InputError: No entry has points, or `normalizer` does not name two of them.
    """
    names = infer_names(entries)
    if not names:
        why = next((f"{e.where}: {e.problem}" for e in entries if e.problem), "")
        if why:
            raise InputError(why)
        raise InputError(f"{source}: no object with points (`recombinator prepare points --help` lists the formats)")
    known = next((s for s in KEYPOINT_SETS.values() if sorted(s.names) == sorted(names)), None)
    if known:
        return known
    pair: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if normalizer:
        wanted = [n.strip() for n in normalizer.split(",")]
        if len(set(wanted)) != 2 or len(wanted) != 2 or not set(wanted) <= set(names):
            raise InputError(f"--normalizer {normalizer}: expected two different keypoints of {', '.join(names[:12])}")
        pair = ((names.index(wanted[0]),), (names.index(wanted[1]),))
    scheme = next((e.scheme for e in entries if e.points), Scheme())
    lines = [(names.index(a), names.index(b)) for a, b in scheme.lines if a in names and b in names]
    given = scheme.mirror
    mirror = (
        mirror_pairs(names) if given is None
        else tuple((names.index(a), names.index(b)) for a, b in given if a in names and b in names)
    )  # fmt: skip
    return KeypointSet(f"own-{len(names)}", names, mirror, pair, tuple(lines))


def _number(text: str, what: str) -> float:
    value = coordinate(text, decimal_comma=True)
    if value <= 0:
        raise InputError(f"{what} must be above 0, got {text}")
    return value


def _column(face: PointSet, name: str) -> str:
    """Return an object's value in a column. "folder" is the folder of its image, unless a column has that name."""
    columns = face.entry.columns
    if name not in columns and name == "folder":
        return PurePosixPath(face.file).parent.as_posix()
    if name not in columns:
        raise InputError(f"no column {name}; it has {', '.join(columns) or 'none'}")
    return columns[name]


def _mm_per_pixel(face: PointSet, given: float | str | None) -> float:
    if isinstance(given, str):
        return _number(_column(face, given), given)
    return face.entry.mm_per_pixel if given is None else given


def prepare_points(
    source: Path, out: Path, *, images: Path | None = None, normalizer: str | None = None, size: int = GRID,
    gray: bool = False, quality: int = 95, strict: bool = False, missing: str = "auto",
    points_format: str | None = None, y_up: bool | None = None, test: Path | None = None,
    split_column: str | None = None, group: str | None = None, mm_per_pixel: float | str | None = None,
    whole: bool = False, backgrounds: Path | None = None, allow_outside: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:  # fmt: skip
    """Write OUT/{train,valid,test}.parquet from a file of points and the images it names.

    Train, valid and test get 80 %, 10 % and 10 % of the images, unless a column or a second file decides. The crop is
    the enlarged bounding box of the points, by 300-W's rule. Missing points are masked, so they do not enter the loss.

    Args:
        source: The points: a file or folder in one of `recombinator.data.formats.FORMATS`.
        out: Folder for the tables.
        images: Folder of the images; without it, the folder of `source`.
        normalizer: As in `infer_keypoints`.
        size: Side of the stored crops in pixels.
        gray: Store gray crops.
        quality: JPEG quality; 0 stores PNG, without loss.
        strict: Raise the first error instead of dropping the object.
        missing: Coordinates that mean a missing point: "auto" (0,0 and -1,-1 where two or more points have them), a
            pair such as "0,0", or "none".
        points_format: A key of `recombinator.data.formats.FORMATS`; None: detected from the content.
        y_up: Whether y is measured upward from the image's bottom edge; None: the format decides.
        test: Another file of points, for the test table. Images in both files are used for testing only.
        split_column: Column with each image's split: train, valid (or val) or test. A split that it does not name is
            drawn from the training images.
        group: Column that groups images, for example by person or video. The images of a group go to one split.
            "folder" groups by the folder of the image.
        mm_per_pixel: Size of an image pixel in millimeters, or the column that has it; None: the scale of a .tps file.
            It is stored in the tables.
        allow_outside: Allow images outside the folder of the points file and `images`.
        whole: Store whole images instead of crops, for a finder: one row per object.
        backgrounds: Folder of images without objects, stored as rows without points; needs `whole`.
        progress: Called with the number of objects done and the total.

    Returns:
        Rows written per split, and "dropped".

    Raises:
        InputError: The file cannot be read, has too few usable objects, or names an image outside the allowed folders.
    """
    if isinstance(mm_per_pixel, int | float) and not 0 < mm_per_pixel < float("inf"):
        raise InputError(f"--mm-per-pixel must be above 0, got {mm_per_pixel:g}")
    rule = RULES["image" if whole else "300w"]
    empty = background_jobs(backgrounds) if backgrounds else {}
    further = tuple(
        dict.fromkeys(c for c in (split_column, group, mm_per_pixel) if isinstance(c, str) and c != "folder")
    )
    dropped: list[str] = []

    def refuse(error: InputError) -> None:
        if strict:
            raise error
        dropped.append(str(error))
        logger.warning("%s", error)

    options: dict[str, Any] = {
        "form": points_format, "images": images, "y_up": y_up, "columns": further, "allow_outside": allow_outside,
    }  # fmt: skip
    entries = read_entries(source, missing, **options)
    keypoints = infer_keypoints(entries, source, normalizer)
    named: dict[str, str] = {}
    groups: dict[str, set[str]] = {}
    photographs: dict[str, list[PointSet]] = {}
    physical: dict[str, float] = {}

    def add(face: PointSet, split: str, key: str) -> None:
        scale = _mm_per_pixel(face, mm_per_pixel)
        if named.setdefault(key, split) != split:
            raise InputError(f"its image is already in the split {named[key]}")
        if group is not None:
            groups.setdefault(key, set()).add(_column(face, group))
        photographs.setdefault(key, []).append(face)
        physical[face.where] = scale

    def add_all(found: list[PointSet], split: str | None) -> None:
        for face in found:
            key = str(face.entry.path) if split and face.entry.path else face.file
            try:
                add(face, split or (split_of(_column(face, split_column)) if split_column else ""), key)
            except InputError as error:
                refuse(InputError(f"{face.where}: {error}"))

    found = point_sets(entries, keypoints, refuse)
    if {face.file for face in found} == {""}:
        raise InputError(f"{source}: no image names; expected a column or field `file`")
    if test is not None:
        more = read_entries(test, missing, **options)
        tested = point_sets(more, keypoints, refuse)
        paths = {face.entry.path for face in tested if face.entry.path}
        both = {face.file for face in found if face.entry.path in paths}
        if both:
            shared = plural(len(both), "image")
            logger.warning("%s: %s also in %s, used for testing only", source, shared, test)
        found = [face for face in found if face.file not in both]
        add_all(tested, "test")
    add_all(found, None)
    parts = split_images(named, groups, str(source))
    located = [face.entry for faces in photographs.values() for face in faces if not face.entry.image]
    if located and not any(os.path.isfile(entry.path or entry.file) for entry in located):
        raise InputError(
            f"{source}: none of its {plural(len(photographs), 'image')} was found, such as "
            f"{located[0].path or located[0].file}; give their folder with --images"
        )
    for name in shared_groups(parts, groups)[:10]:
        logger.warning("%s: %s %s has images in more than one split", source, group, name)
    jobs: dict[str, list[PointSet | Path]] = {
        split: [*(f for name in parts[split] for f in photographs[name]), *empty.get(split, [])]
        for split in ("test", "valid", "train")
    }

    def make(face: PointSet | Path) -> Row:
        if isinstance(face, Path):
            return background_row(face, rule, len(keypoints), size=size, gray=gray, quality=quality)
        known = np.isfinite(face.points).all(axis=1)
        try:
            if known.sum() < 2:
                raise InputError(f"expected 2 or more known points, got {known.sum()}")
            lacking = [keypoints.names[i] for group in keypoints.normalizer for i in group if not known[i]]
            if lacking and not whole:  # a finder's errors are not normalized, and it must see every object of an image
                raise InputError(f"{lacking[0]} is missing, but errors are normalized by it")
            points = np.where(known[:, None], face.points, face.points[known].mean(axis=0))
            if keypoints.scale(points) < 1 and not whole:
                raise InputError("its normalizer is below one pixel; choose two points with --normalizer a,b")
            image = face.entry.image() if face.entry.image else read_image(face.entry.path or face.file)
            row = crop_row(image, points, face.file, rule, size=size, gray=gray, quality=quality, mask=known)
            return replace(row, mm_per_pixel=physical[face.where])
        except InputError as error:
            raise InputError(f"{face.where}: {error}") from None

    counts = write_splits(
        out, jobs, make, lambda split: TableInfo("own", split, keypoints, rule.name, size, gray), strict=strict,
        physical=bool(np.isfinite(list(physical.values())).any()), progress=progress,
    )  # fmt: skip
    counts["dropped"] += len(dropped)
    for split in (s for s in jobs if not counts[s]):
        raise InputError(f"{source}: every object of the {split} split was dropped, for the reasons above; fix them")
    return counts
