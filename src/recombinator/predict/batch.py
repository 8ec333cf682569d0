"""Many photographs: found, decoded ahead, predicted, written line by line, resumed."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from recombinator.data.images import decode_image, read_image
from recombinator.predict.output import FORMATS, face_chip, save_picture
from recombinator.predict.predictor import Predictor
from recombinator.predict.result import Face, draw_faces
from recombinator.utils.errors import InputError
from recombinator.utils.files import write_text

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
STDIN = "-"
AHEAD = 8  # photographs decoded before their turn: what memory holds


def find_photographs(inputs: Iterable[str | os.PathLike[str]], out: Path | None = None) -> list[str]:
    """Files as they are named, folders with all that is below them, patterns with * ? [ ] opened; each once, folders
    and patterns sorted. What lies in `out` is found by neither: those are earlier results. Raises InputError for a
    folder or pattern without a photograph, and for a URL."""
    found: dict[str, None] = {}
    for item in (os.fspath(i) for i in inputs):
        if "://" in item:
            raise InputError(f"{item}: a URL; download it first")
        if item == STDIN or os.path.isfile(item):
            found[item] = None
            continue
        if os.path.isdir(item):
            inside = sorted(str(p) for p in Path(item).rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        elif glob.has_magic(item):
            inside = sorted(p for p in glob.glob(item, recursive=True) if p.lower().endswith(ENDINGS))
        else:
            inside = [item]  # missing: a failure of this one, told with the others
        earlier = inside
        if out is not None and inside != [item]:
            inside = [p for p in inside if not Path(p).resolve().is_relative_to(out.resolve())]
        if not inside and earlier:
            raise InputError(f"{item}: all its photographs lie in --out {out}; choose another folder")
        if not inside:
            raise InputError(f"{item}: no photograph in it ({', '.join(ENDINGS)})")
        found |= dict.fromkeys(inside)
    return list(found)


def _decoded(name: str) -> np.ndarray:
    return decode_image(sys.stdin.buffer.read(), "standard input") if name == STDIN else read_image(name)


def decoded_ahead(names: Sequence[str]) -> Iterator[tuple[str, np.ndarray | InputError]]:
    """(name, image or what is wrong with it), in order, decoded by other threads while the caller works."""

    def attempt(name: str) -> np.ndarray | InputError:
        try:
            return _decoded(name)
        except InputError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        waiting: deque[tuple[str, Future[np.ndarray | InputError]]] = deque()
        for name in names:
            waiting.append((name, pool.submit(attempt, name)))
            if len(waiting) > AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


@dataclass
class Outcome:
    """What a run over photographs came to; `last`: the faces of the last one."""

    photographs: int = 0
    faces: int = 0
    skipped: int = 0
    empty: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    last: list[Face] = field(default_factory=list)


class Lines:
    """points.jsonl: one object a photograph. Written as points.jsonl.part and renamed when the run is over, so that a
    killed run leaves its finished lines, and an earlier result stands until the new one is whole."""

    def __init__(self, folder: Path, resume: bool, weights: str) -> None:
        self.path, self.part = folder / "points.jsonl", folder / "points.jsonl.part"
        self.done: set[str] = set()
        self.stems: set[str] = set()  # of pictures and chips
        self.stream: TextIO | None = None  # opened with the first line: a run that finds nothing leaves nothing
        kept: list[str] = []
        if resume:
            source = self.part if self.part.is_file() else self.path
            for text in source.read_text(encoding="utf-8").splitlines() if source.is_file() else []:
                try:
                    record = json.loads(text)
                    before, stem = record["weights"], record["stem"]
                    self.done.add(record["file"])
                    self.stems.add(stem)
                    kept.append(text + "\n")
                except (json.JSONDecodeError, KeyError, TypeError):
                    break  # half a line, where the last run was stopped
                if before != weights:
                    raise InputError(f"{source}: was begun with the weights {before}, not {weights}; use another --out")
        self.kept = "".join(kept)
        if kept:
            self._open()

    def _open(self) -> TextIO:
        write_text(self.part, self.kept)
        self.stream = open(self.part, "a", encoding="utf-8")  # noqa: SIM115
        return self.stream

    def add(self, record: dict[str, Any]) -> None:
        stream = self.stream or self._open()
        stream.write(json.dumps(record) + "\n")
        stream.flush()

    def close(self) -> bool:
        """True where there is a points.jsonl now."""
        if self.stream:
            self.stream.close()
            os.replace(self.part, self.path)
        return self.stream is not None


def predict_all(
    predictor: Predictor, names: Sequence[str], out: Path, *, formats: Sequence[str] = ("json", "csv"),
    boxes: dict[str, list[list[float]]] | None = None, passes: int = 2, min_confidence: float | None = None,
    pictures: bool = True, numbers: bool = False, chips: int = 0, resume: bool = False, weights: str = "",
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:  # fmt: skip
    """Every face of every photograph: points.jsonl in `out` (a line a photograph), other `formats` made from it at the
    end, annotated pictures, and aligned face chips of `chips` pixels where asked for.

    boxes: faces by photograph in place of detection. A photograph that cannot be read is a failure in the result, the
    others are done all the same. resume: leave out what an earlier run into `out` has finished. Memory does not grow
    with the number of photographs.
    """
    unknown = [f for f in formats if f not in FORMATS]
    if unknown:
        raise InputError(f"format {unknown[0]!r} is not known: use {', '.join(FORMATS)}")
    lines, outcome = Lines(out, resume, weights), Outcome()
    todo = [n for n in names if n not in lines.done]
    outcome.skipped = len(names) - len(todo)
    for done, (name, image) in enumerate(decoded_ahead(todo), 1):
        try:
            if isinstance(image, InputError):
                raise image
            given = None if boxes is None else boxes.get(name, [])
            faces = predictor.predict(image, given, passes, min_confidence)
        except InputError as error:
            outcome.failed.append(str(error) if str(error).startswith(name) else f"{name}: {error}")
            continue
        outcome.photographs += 1
        outcome.faces += len(faces)
        outcome.last = faces
        if not faces:
            outcome.empty.append(name)
        stem = _free_stem("stdin" if name == STDIN else Path(name).stem, lines.stems)
        if faces:
            if pictures:
                save_picture(out / f"{stem}.keypoints.png", draw_faces(image, faces, numbers=numbers))
            for i, face in enumerate(faces, 1) if chips else ():
                chip = face_chip(image, face, np.array(predictor.about.template), chips)
                save_picture(out / "chips" / f"{stem}.face{i}.png", chip)
        height, width = image.shape[:2]
        lines.add({
            "file": name, "weights": weights, "stem": stem, "width": width, "height": height,
            "faces": [f.to_dict() for f in faces],
        })  # fmt: skip
        advance(done, len(todo))
    for kind in formats if lines.close() else ():
        FORMATS[kind](lines.path, out, weights, predictor.keypoints)
    return outcome


def _free_stem(stem: str, taken: set[str]) -> str:
    """Two folders may hold the same file name: the second one's pictures are NAME-2."""
    chosen = next(s for s in chain([stem], (f"{stem}-{n}" for n in count(2))) if s not in taken)
    taken.add(chosen)
    return chosen


def read_boxes(path: Path) -> dict[str, list[list[float]]]:
    """A CSV with the columns file, x, y, width, height -> boxes by photograph. Raises InputError with file and line."""
    import csv

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    rows = csv.DictReader(text.splitlines())
    wanted = ("file", "x", "y", "width", "height")
    if not set(wanted) <= set(rows.fieldnames or ()):
        raise InputError(f"{path}:1: wants the columns {', '.join(wanted)}; has {', '.join(rows.fieldnames or ())}")
    found: dict[str, list[list[float]]] = {}
    for row in rows:
        try:
            box = [float(row[c]) for c in wanted[1:]]
        except (TypeError, ValueError):
            box = []
        if not box or not np.isfinite(box).all() or min(box[2:]) <= 0:
            raise InputError(f"{path}:{rows.line_num}: x, y, width and height must be numbers, the last two positive")
        found.setdefault(row["file"], []).append(box)
    return found
