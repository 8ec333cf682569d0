"""Predict many photographs: find them, decode ahead, write results line by line, resume."""

from __future__ import annotations

import csv
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
from recombinator.predict.drawing import draw_faces
from recombinator.predict.output import FILES, FORMATS, face_chip, save_picture
from recombinator.predict.predictor import Predictor
from recombinator.predict.result import Face
from recombinator.utils.errors import InputError, check_choice
from recombinator.utils.files import write_text

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
STDIN = "-"
AHEAD = 8  # photographs that are decoded in advance; this bounds the memory


def find_photographs(inputs: Iterable[str | os.PathLike[str]], out: Path | None = None) -> list[str]:
    """Find the photographs that files, folders and patterns name.

    Args:
        inputs: Files, which are taken as they are; folders, which are searched with all subfolders; patterns with
            * ? [ ]; "-" for standard input.
        out: The folder for results. Photographs that folders or patterns find in it are left out, since they are
            results of an earlier run.

    Returns:
        Each photograph once, in the order of `inputs`; those of a folder or pattern are sorted.

    Raises:
        InputError: For a folder or pattern without a photograph, and for a URL.
    """
    names: dict[str, None] = {}
    for item in (os.fspath(i) for i in inputs):
        if "://" in item:
            raise InputError(f"{item}: a URL; download it first")
        if item == STDIN or os.path.isfile(item):
            names[item] = None
            continue
        if os.path.isdir(item):
            inside = sorted(str(p) for p in Path(item).rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        elif glob.has_magic(item):
            inside = sorted(p for p in glob.glob(item, recursive=True) if p.lower().endswith(ENDINGS))
        else:
            inside = [item]  # a missing file: reported later, as one that cannot be read
        earlier = inside
        if out is not None and inside != [item]:
            inside = [p for p in inside if not Path(p).resolve().is_relative_to(out.resolve())]
        if not inside and earlier:
            raise InputError(f"{item}: all its photographs are in --out {out}; choose another folder")
        if not inside:
            raise InputError(f"{item}: no photograph in it ({', '.join(ENDINGS)})")
        names |= dict.fromkeys(inside)
    return list(names)


def _decode(name: str) -> np.ndarray:
    return decode_image(sys.stdin.buffer.read(), "standard input") if name == STDIN else read_image(name)


def decoded_ahead(names: Sequence[str]) -> Iterator[tuple[str, np.ndarray | InputError]]:
    """Decode photographs in other threads while the caller works.

    Args:
        names: Files, or "-" for standard input.

    Yields:
        The name and the (H, W, 3) RGB uint8 image, or the error that decoding gave, in the order of `names`.
    """

    def attempt(name: str) -> np.ndarray | InputError:
        try:
            return _decode(name)
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
    """Summarize a run over photographs.

    Args:
        photographs: Number of photographs predicted in this run.
        faces: Number of faces in them.
        skipped: Number of photographs that an earlier run had finished.
        empty: Names of the photographs without a face.
        failed: One sentence for each photograph that could not be used.
        last: The faces of the last photograph.
    """

    photographs: int = 0
    faces: int = 0
    skipped: int = 0
    empty: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    last: list[Face] = field(default_factory=list)


class Lines:
    """Write points.jsonl, one object per photograph.

    The file is called points.jsonl.part until the run has finished. A killed run leaves its finished lines there, and
    an earlier result stays in place until the new one is complete.

    Args:
        folder: The folder for results.
        resume: Keep the lines of an earlier run; their photographs are in `done`.
        overwrite: Replace the results of an earlier run.
        weights: What the run's weights are called.

    Raises:
        InputError: If the folder holds earlier results and neither option is given, or those of other weights.
    """

    def __init__(self, folder: Path, resume: bool, overwrite: bool, weights: str) -> None:
        self.path, self.part = folder / "points.jsonl", folder / "points.jsonl.part"
        self.done: set[str] = set()
        self.stems: set[str] = set()  # of pictures and chips
        self.stream: TextIO | None = None  # opened with the first line: a run without results writes no file
        if resume and overwrite:
            raise InputError("--resume keeps earlier results and --overwrite replaces them; give one of them")
        source = self.part if self.part.is_file() else self.path
        kept: list[str] = []
        if source.is_file() and not (resume or overwrite):
            raise InputError(
                f"{folder}: already holds results ({source.name}); --overwrite replaces them, --resume continues that "
                "run, or choose another --out"
            )
        if resume:
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
                    raise InputError(
                        f"{source}: written with the weights {before}, not {weights}; choose another --out"
                    )
        self.kept = "".join(kept)
        if kept:
            self._open()

    def _open(self) -> TextIO:
        write_text(self.part, self.kept)
        self.stream = open(self.part, "a", encoding="utf-8")  # noqa: SIM115
        return self.stream

    def add(self, record: dict[str, Any]) -> None:
        """Write one object."""
        stream = self.stream or self._open()
        stream.write(json.dumps(record) + "\n")
        stream.flush()

    def close(self) -> bool:
        """Finish the file. Return whether there is one."""
        if self.stream:
            self.stream.close()
            os.replace(self.part, self.path)
        return self.stream is not None


def predict_all(
    predictor: Predictor, names: Sequence[str], out: Path | None, *, formats: Sequence[str] = ("json", "csv"),
    boxes: dict[str, list[list[float]]] | None = None, passes: int = 2, min_confidence: float | None = None,
    pictures: bool = True, numbers: bool = False, chips: int = 0, resume: bool = False, overwrite: bool = False,
    weights: str = "", progress: Callable[[int, int], None] | None = None,
) -> Outcome:  # fmt: skip
    """Predict every face of every photograph and write the results.

    A photograph that cannot be used is recorded in the result, and the others are done all the same. Memory does not
    grow with the number of photographs.

    Args:
        predictor: The predictor.
        names: Photographs, as `find_photographs` returns them.
        out: The folder for points.jsonl (one line per photograph) and everything else. None writes only these lines,
            to standard output.
        formats: Further files to write from points.jsonl at the end: "json", "csv", "coco", "pts". Those that the
            folder holds already are updated too.
        boxes: Faces by photograph as (x, y, width, height) in pixels, in place of the detector.
        passes: As in `Predictor.predict`.
        min_confidence: As in `Predictor.predict`.
        pictures: Write annotated pictures.
        numbers: Number the points in the pictures.
        chips: Side in pixels of aligned face chips to write; 0 writes none.
        resume: Leave out what an earlier run into `out` has finished.
        overwrite: Replace the results of an earlier run.
        weights: What the weights are called in the results.
        progress: Called with the number of photographs done and in total.

    Returns:
        A summary.

    Raises:
        InputError: If a format is unknown or `out` holds results that must not be replaced.
    """
    for kind in formats:
        check_choice("format", kind, FORMATS)
    lines = Lines(out, resume, overwrite, weights) if out else None
    outcome, stems = Outcome(), lines.stems if lines else set()
    todo = [n for n in names if n not in lines.done] if lines else list(names)
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
        stem = _free_stem("stdin" if name == STDIN else Path(name).stem, stems)
        if out and faces and pictures:
            save_picture(out / f"{stem}.keypoints.png", draw_faces(image, faces, numbers=numbers))
        if out and chips:
            for i, face in enumerate(faces, 1):
                chip = face_chip(image, face, np.array(predictor.about.template), chips)
                save_picture(out / "chips" / f"{stem}.face{i}.png", chip)
        height, width = image.shape[:2]
        record = {
            "file": name, "weights": weights, "stem": stem, "width": width, "height": height,
            "faces": [f.to_dict() for f in faces],
        }  # fmt: skip
        if lines:
            lines.add(record)
        else:
            print(json.dumps(record), flush=True)
        if progress:
            progress(done, len(todo))
    if out and lines and lines.close():
        # a file of an earlier run that this one did not update would contradict points.jsonl
        stale = [kind for kind, file in FILES.items() if kind not in formats and (out / file).is_file()]
        for kind in (*formats, *stale):
            FORMATS[kind](lines.path, out, weights, predictor.keypoints)
    return outcome


def _free_stem(stem: str, taken: set[str]) -> str:
    """Return a stem for output files that no other photograph has: a second NAME in another folder is NAME-2."""
    chosen = next(s for s in chain([stem], (f"{stem}-{n}" for n in count(2))) if s not in taken)
    taken.add(chosen)
    return chosen


def read_boxes(path: Path) -> dict[str, list[list[float]]]:
    """Read face boxes from a CSV file.

    Args:
        path: A file with the columns file, x, y, width, height, in pixels.

    Returns:
        Boxes [x, y, width, height] by photograph.

    Raises:
        InputError: If the file or one of its lines cannot be used.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    rows = csv.DictReader(text.splitlines())
    columns = ("file", "x", "y", "width", "height")
    if not set(columns) <= set(rows.fieldnames or ()):
        present = ", ".join(rows.fieldnames or ()) or "none"
        raise InputError(f"{path}:1: expected the columns {', '.join(columns)}, got {present}")
    boxes: dict[str, list[list[float]]] = {}
    for row in rows:
        try:
            box = [float(row[c]) for c in columns[1:]]
        except (TypeError, ValueError):
            box = []
        if not box or not np.isfinite(box).all() or min(box[2:]) <= 0:
            raise InputError(f"{path}:{rows.line_num}: x, y, width and height must be numbers, the last two positive")
        boxes.setdefault(row["file"], []).append(box)
    return boxes
