"""Predict many photographs: find them, work on several at once, write results line by line, resume."""

from __future__ import annotations

import csv
import glob
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from recombinator.data.images import ENDINGS
from recombinator.data.writers import WRITERS
from recombinator.predict.drawing import draw_faces
from recombinator.predict.output import FILES, FORMATS, face_chip, read_record, save_picture
from recombinator.predict.predictor import Predictor
from recombinator.predict.result import Face
from recombinator.utils.errors import InputError, check_choice, import_optional
from recombinator.utils.files import lock_folder, read_file, write_text
from recombinator.utils.text import plural
from recombinator.utils.threads import in_order

STDIN = "-"
STEM_BYTES = 180  # of the names of results; a file name may have 255
logger = logging.getLogger(__name__)


def find_photographs(
    inputs: Iterable[str | os.PathLike[str]], out: Path | None = None, endings: Sequence[str] = ENDINGS
) -> list[str]:
    """Find the photographs that files, folders and patterns name.

    Files of other types in a folder are left out, with a warning that counts them. Hidden files, such as the ._ files
    of macOS, are ignored.

    Args:
        inputs: Files, which are taken as they are; folders, which are searched with all subfolders; patterns with
            * ? [ ]; "-" for standard input.
        out: The folder for results. Photographs that folders or patterns find in it are left out, since they are
            results of an earlier run.
        endings: Endings of the files that folders and patterns find.

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
        inside = [item]  # a missing file, or a pipe: reported later, as one that cannot be read
        if os.path.isdir(item):
            inside = _photographs(item, (str(p) for p in Path(item).rglob("*")), endings)
        elif glob.has_magic(item):
            inside = _photographs(item, glob.glob(item, recursive=True), endings)
        earlier = inside
        if out is not None and inside != [item]:
            inside = [p for p in inside if not Path(p).resolve().is_relative_to(out.resolve())]
        if not inside and earlier:
            raise InputError(f"{item}: all its photographs are in --out {out}; choose another folder")
        if not inside:
            what = "no photograph in this folder" if os.path.isdir(item) else "no photograph matches this pattern"
            raise InputError(f"{item}: {what} ({', '.join(endings)})")
        names |= dict.fromkeys(inside)
    return list(names)


def _photographs(where: str, files: Iterable[str], endings: Sequence[str]) -> list[str]:
    """Return those of the files whose names have one of the endings, sorted; warn about the rest."""
    inside: list[str] = []
    left_out: Counter[str] = Counter()
    for file in files:
        if os.path.basename(file).startswith(".") or not os.path.isfile(file):
            continue
        ending = os.path.splitext(file)[1].lower()
        if ending in endings:
            inside.append(file)
        else:
            left_out[ending or "no ending"] += 1
    if inside and left_out:
        kinds = ", ".join(f"{n} {ending}" for ending, n in left_out.most_common(10))
        number = plural(sum(left_out.values()), "file")
        logger.warning("%s: %s left out, not of an image type: %s", where, number, kinds)
    return sorted(inside)


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


def check_no_results(folder: Path) -> None:
    """Raise InputError if a folder holds the results of an earlier run."""
    for name in ("points.jsonl.part", "points.jsonl"):
        if (folder / name).is_file():
            raise InputError(
                f"{folder}: already holds results ({name}); --overwrite replaces them, --resume continues that run, or "
                "choose another --out"
            )


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
        if not (resume or overwrite):
            check_no_results(folder)
        if resume:
            for text in source.read_text(encoding="utf-8", errors="replace").splitlines() if source.is_file() else []:
                try:
                    record = read_record(text, str(source))
                except InputError:
                    break  # half a line, where the last run was stopped
                self.done.add(record["file"])
                self.stems.add(record["stem"])
                kept.append(text + "\n")
                if record["weights"] != weights:
                    raise InputError(
                        f"{source}: written with the weights {record['weights']}, not {weights}; choose another --out"
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


@dataclass(frozen=True)
class Pictures:
    """Say which pictures to write for each photograph.

    Args:
        annotated: The photograph with the points drawn.
        numbers: Number the points in it.
        chips: Side in pixels of aligned face chips; 0 writes none.
    """

    annotated: bool = True
    numbers: bool = False
    chips: int = 0


def predict_all(
    predictor: Predictor, names: Sequence[str], out: Path | None, *, formats: Sequence[str] = ("json", "csv"),
    boxes: dict[str, list[list[float]]] | None = None, passes: int | None = None, min_confidence: float | None = None,
    pictures: bool = True, numbers: bool = False, chips: int = 0, resume: bool = False, overwrite: bool = False,
    weights: str = "", workers: int = 1, progress: Callable[[int, int], None] | None = None,
) -> Outcome:  # fmt: skip
    """Predict every face of every photograph and write the results.

    A photograph that cannot be used is recorded in the result; the others are still processed. Each worker holds one
    photograph, so memory does not grow with their number. Only one process at a time may write into `out`.

    Args:
        predictor: The predictor.
        names: Photographs, as `find_photographs` returns them.
        out: The folder for points.jsonl (one line per photograph) and everything else. None writes only these lines,
            to standard output.
        formats: Further files to write from points.jsonl at the end: keys of `recombinator.predict.output.FORMATS`.
            Those that the folder holds already are updated too.
        boxes: Faces by photograph as (x, y, width, height) in pixels, in place of the detector.
        passes: As in `Predictor.predict`.
        min_confidence: As in `Predictor.predict`.
        pictures: Write annotated pictures.
        numbers: Number the points in the pictures.
        chips: Side in pixels of aligned face chips to write; 0 writes none.
        resume: Leave out what an earlier run into `out` has finished.
        overwrite: Replace the results of an earlier run.
        weights: What the weights are called in the results.
        workers: Photographs to work on at the same time. Each worker decodes, detects and predicts; the engine should
            have one thread (`load(threads=1)`).
        progress: Called with the number of photographs done and in total.

    Returns:
        A summary.

    Raises:
        InputError: If a format is unknown, `out` holds results that must not be replaced, or another process uses it.
    """
    for kind in formats:
        check_choice("format", kind, FORMATS)
        if kind in WRITERS and WRITERS[kind].needs:
            import_optional(WRITERS[kind].needs, f"--format {kind}")  # before the work
    wanted = Pictures(pictures, numbers, chips) if out else Pictures(annotated=False)
    with lock_folder(out) if out else nullcontext():
        lines = Lines(out, resume, overwrite, weights) if out else None
        outcome, stems = Outcome(), lines.stems if lines else set()
        todo = [n for n in names if n not in lines.done] if lines else list(names)
        outcome.skipped = len(names) - len(todo)

        def work(name: str, stem: str) -> Done | InputError:
            given = None if boxes is None else boxes.get(name, [])
            source, called = (sys.stdin.buffer.read(), "standard input") if name == STDIN else (name, name)
            try:
                return predict_file(predictor, source, called, (given, passes, min_confidence), out, stem, wanted)
            except InputError as error:
                return error

        jobs = ((name, free_stem("stdin" if name == STDIN else Path(name).stem, stems)) for name in todo)
        for number, (name, stem, done) in enumerate(in_order(work, jobs, workers), 1):
            if isinstance(done, InputError):
                outcome.failed.append(str(done) if str(done).startswith(name) else f"{name}: {done}")
                continue
            outcome.photographs += 1
            outcome.faces += len(done.faces)
            outcome.last = done.faces
            if not done.faces:
                outcome.empty.append(name)
            record = point_record(name, weights, done, stem)
            if lines:
                lines.add(record)
            else:
                print(json.dumps(record), flush=True)
            if progress:
                progress(number, len(todo))
        if out and lines and lines.close():
            # a file of an earlier run that this one did not update would contradict points.jsonl
            stale = [kind for kind, file in FILES.items() if kind not in formats and (out / file).is_file()]
            for kind in (*formats, *stale):
                FORMATS[kind](lines.path, out, weights, predictor.keypoints)
    return outcome


@dataclass(frozen=True)
class Done:
    """The faces of one photograph, without its pixels."""

    faces: list[Face]
    width: int
    height: int


def predict_file(
    predictor: Predictor, source: str | bytes, name: str, settings: tuple[Any, ...], out: Path | None = None,
    stem: str = "", wanted: Pictures | None = None,
) -> Done:  # fmt: skip
    """Predict one photograph and write its pictures.

    Args:
        predictor: The predictor.
        source: The photograph's file, or its content.
        name: What error messages call a photograph without a file.
        settings: Arguments of `Predictor.predict` after the image.
        out: The folder for pictures; None writes none.
        stem: The beginning of their names.
        wanted: Which pictures to write.

    Raises:
        InputError: If the photograph cannot be used.
    """
    photograph = predictor.open(source, name)
    faces = list(predictor.predict(photograph, *settings))
    if out and wanted and wanted.annotated and faces:
        picture = draw_faces(photograph.full, faces, numbers=wanted.numbers)
        save_picture(out / f"{stem}.keypoints.png", picture)
    if out and wanted and wanted.chips:
        for i, face in enumerate(faces, 1):
            chip = face_chip(photograph.full, face, np.array(predictor.about.template), wanted.chips)
            save_picture(out / "chips" / f"{stem}.face{i}.png", chip)
    return Done(faces, photograph.width, photograph.height)


def point_record(name: str, weights: str, done: Done, stem: str = "") -> dict[str, Any]:
    """Return what points.jsonl holds of a photograph; `stem` is the beginning of the names of its pictures."""
    return {
        "file": name, "weights": weights, **({"stem": stem} if stem else {}), "width": done.width,
        "height": done.height, "faces": [f.to_dict() for f in done.faces],
    }  # fmt: skip


def free_stem(stem: str, taken: set[str]) -> str:
    """Return a stem for output files that no other photograph has: a second NAME in another folder is NAME-2."""
    stem = os.fsdecode(os.fsencode(stem)[:STEM_BYTES]) if len(os.fsencode(stem)) > STEM_BYTES else stem
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
        text = read_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    rows = csv.DictReader(text.splitlines())
    columns = ("file", "x", "y", "width", "height")
    try:
        return _boxes_by_file(path, rows, columns)
    except csv.Error as error:  # a field longer than csv.field_size_limit
        raise InputError(f"{path}:{rows.line_num}: not readable as CSV ({error})") from None


def _boxes_by_file(path: Path, rows: csv.DictReader[str], columns: tuple[str, ...]) -> dict[str, list[list[float]]]:
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
