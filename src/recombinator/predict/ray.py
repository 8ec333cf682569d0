"""Predict many photographs with Ray: on all cores of one machine, or on a cluster.

The photographs are divided into parts. An actor, which has one engine, predicts a part and writes its file, so that a
stopped run continues with the parts that are missing. Inputs and results may be local or anything that fsspec opens.
"""

from __future__ import annotations

import glob
import hashlib
import io
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recombinator.data.images import ENDINGS, MAX_PIXELS
from recombinator.predict.batch import Done, find_photographs, point_record, predict_file
from recombinator.predict.detect import detector_by_name
from recombinator.predict.predictor import load
from recombinator.utils.errors import InputError, check_choice, import_optional
from recombinator.utils.threads import in_order
from recombinator.utils.urls import file_system, is_url, list_files, read_file, remove_file, write_file

WRITERS = ("jsonl", "parquet")
SMALLEST, LARGEST, PARTS = 25, 1000, 32  # photographs in a part, and how many parts a small input should have
AHEAD = 2  # photographs that an actor reads in advance
MANIFEST = "parts.json"


@dataclass(frozen=True)
class Settings:
    """How each actor predicts; see `recombinator.load` and `Predictor.predict`.

    Args:
        weights: A shipped name, or a path that every machine has.
        detector: A name of `detect.detector_by_name`.
        engine: "onnx", "torch" or None.
        threads: CPU cores of an actor.
        device: "cpu" or "cuda": then each actor has one GPU.
        max_pixels: Largest photograph.
        passes: Passes of crop and network.
        min_confidence: Lowest mean confidence of a face.
    """

    weights: str
    detector: str = "auto"
    engine: str | None = None
    threads: int = 1
    device: str = "cpu"
    max_pixels: int = MAX_PIXELS
    passes: int | None = None
    min_confidence: float | None = None


# ---- inputs -------------------------------------------------------------------------------------------------------


def _find(inputs: Sequence[str], out: str) -> list[str]:
    """Return photographs, or Parquet files, that files, folders, patterns and URLs name."""
    names: dict[str, None] = {}
    for item in inputs:
        if not is_url(item):
            tables = sorted(glob.glob(os.path.join(item, "*.parquet") if os.path.isdir(item) else item))
            tables = [p for p in tables if p.endswith(".parquet")]
            names |= dict.fromkeys(tables or find_photographs([item], None if is_url(out) else Path(out)))
            continue
        files, inside = file_system(item)
        found = files.glob(inside) if glob.has_magic(inside) else files.find(inside)
        found = sorted(files.unstrip_protocol(p) for p in found if p.lower().endswith((*ENDINGS, ".parquet")))
        if not found:
            raise InputError(f"{item}: no photograph or Parquet file there")
        names |= dict.fromkeys(found)
    kinds = {name.endswith(".parquet") for name in names}
    if len(kinds) > 1:
        raise InputError("photographs and Parquet files: predict them one after the other, into two folders")
    if not any(is_url(name) or os.path.exists(name) for name in names):
        raise InputError(f"{next(iter(names))}: no such file")
    return list(names)


def _open_parquet(path: str) -> Any:
    pa, pq = (import_optional(m, "reading Parquet files") for m in ("pyarrow", "pyarrow.parquet"))
    try:
        if not is_url(path):
            return pq.ParquetFile(path)
        files, inside = file_system(path)
        return pq.ParquetFile(files.open(inside, "rb"))
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({error})") from None


def make_parts(names: Sequence[str]) -> list[dict[str, Any]]:
    """Divide photographs, or the row groups of Parquet files, into parts.

    Args:
        names: Photographs, or Parquet files with a column "image".

    Returns:
        For each part its `number`, its `size` in photographs, and the `photographs`, or `file` and `row_groups`.

    Raises:
        InputError: A Parquet file has no column "image".
    """
    if not names[0].endswith(".parquet"):
        size = min(max(len(names) // PARTS, SMALLEST), LARGEST)
        groups = [list(names[i : i + size]) for i in range(0, len(names), size)]
        return [{"number": n, "size": len(group), "photographs": group} for n, group in enumerate(groups)]
    rows: list[tuple[str, int, int]] = []  # file, row group, rows
    for name in names:
        opened = _open_parquet(name)
        if "image" not in opened.schema_arrow.names:
            raise InputError(f"{name}: expected a column 'image' with encoded photographs")
        rows += [(name, g, opened.metadata.row_group(g).num_rows) for g in range(opened.metadata.num_row_groups)]
    size = min(max(sum(n for _, _, n in rows) // PARTS, SMALLEST), LARGEST)
    parts: list[dict[str, Any]] = []
    for name, group, count in rows:
        last = parts[-1] if parts else None
        if last is None or last["file"] != name or last["size"] >= size:
            last = {"number": len(parts), "size": 0, "file": name, "row_groups": []}
            parts.append(last)
        last["row_groups"].append(group)
        last["size"] += count
    return parts


def _photographs(part: dict[str, Any]) -> Iterator[tuple[str, bytes | InputError]]:
    """Yield the photographs of a part: name and encoded image."""
    if "photographs" in part:

        def read(name: str, _: str) -> bytes | InputError:
            try:
                return read_file(name)
            except InputError as error:
                return error

        for name, _, content in in_order(read, ((name, "") for name in part["photographs"]), AHEAD):
            yield name, content
        return
    opened, row = _open_parquet(part["file"]), 0
    names = [c for c in ("file", "path") if c in opened.schema_arrow.names][:1]
    start = sum(opened.metadata.row_group(g).num_rows for g in range(part["row_groups"][0]))
    for rows in opened.iter_batches(16, part["row_groups"], columns=["image", *names]):
        for record in rows.to_pylist():
            image = record["image"]
            data, inside = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, None)
            name = next((record[c] for c in names if record[c]), inside) or f"{part['file']} row {start + row}"
            yield name, data if data else InputError(f"{name}: the column 'image' holds no bytes")
            row += 1


# ---- results ------------------------------------------------------------------------------------------------------


def _encode(records: list[dict[str, Any]], kind: str) -> bytes:
    """Return the records of a part as JSON lines or as a Parquet file with one row per photograph."""
    if kind == "jsonl":
        return "".join(json.dumps(record) + "\n" for record in records).encode()
    pa, pq = (import_optional(m, "writing Parquet files") for m in ("pyarrow", "pyarrow.parquet"))
    number, numbers = pa.float64(), pa.list_(pa.float64())
    keypoint = pa.struct([("name", pa.string()), ("x", number), ("y", number), ("confidence", number),
                          ("covered", pa.bool_()), ("covariance", numbers), ("inside", pa.bool_())])  # fmt: skip
    face = pa.struct([("box", numbers), ("angle", number), ("confidence", number), ("keypoints", pa.list_(keypoint))])
    schema = pa.schema([("file", pa.string()), ("weights", pa.string()), ("width", pa.int32()),
                        ("height", pa.int32()), ("faces", pa.list_(face))])  # fmt: skip
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=schema), stream, compression="zstd")
    return stream.getvalue()


class PartPredictor:
    """A Ray actor: one engine, which predicts one part after another.

    Args:
        settings: Fields of `Settings`.
        out: Folder or URL for the results.
        kind: "jsonl" or "parquet".
        base: Folder that relative paths refer to.
    """

    def __init__(self, settings: dict[str, Any], out: str, kind: str, base: str) -> None:
        import cv2

        if os.path.isdir(base):  # URLs need no such folder on the actor's machine
            os.chdir(base)
        self.settings, self.out, self.kind = Settings(**settings), out, kind
        s = self.settings
        cv2.setNumThreads(s.threads)
        self.predictor = load(
            s.weights, detector_by_name(s.detector), engine=s.engine, threads=s.threads, device=s.device,
            max_pixels=s.max_pixels,
        )  # fmt: skip

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict a part, write its failures (if any), then its results, and return the counts."""
        part, began = json.loads(row["part"]), time.process_time()
        records, failures = [], []
        for name, data in _photographs(part):
            done = self._predict(name, data)
            if isinstance(done, Done):
                records.append(point_record(name, self.settings.weights, done))
            else:
                failures.append({"file": name, "error": str(done)})
        if failures:
            write_file(f"{self.out}/failed-{part['number']:05}.jsonl", _encode(failures, "jsonl"))
        write_file(f"{self.out}/{_part_name(part, self.kind)}", _encode(records, self.kind))
        faces = sum(len(record["faces"]) for record in records)
        return {
            "size": part["size"], "photographs": len(records), "faces": faces, "failed": len(failures),
            "cpu_seconds": time.process_time() - began,
        }  # fmt: skip

    def _predict(self, name: str, data: bytes | InputError) -> Done | InputError:
        if isinstance(data, InputError):
            return data
        try:
            return predict_file(self.predictor, data, name, (None, self.settings.passes, self.settings.min_confidence))
        except InputError as error:
            return error


def _part_name(part: dict[str, Any], kind: str) -> str:
    return f"part-{part['number']:05}.{kind}"


# ---- the run ------------------------------------------------------------------------------------------------------


def predict_with_ray(
    inputs: Sequence[str], out: str, settings: Settings, *, address: str = "local", kind: str = "jsonl",
    resume: bool = False, overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Predict photographs with Ray, and write the results in parts.

    `out` gets three kinds of files. part-NNNNN.jsonl or .parquet has one record per photograph, as in points.jsonl.
    failed-NNNNN.jsonl lists photographs that could not be used. parts.json has the settings of the run.

    Args:
        inputs: Files, folders, patterns and URLs of photographs, or of Parquet files with a column "image" of encoded
            photographs.
        out: Folder or URL for the results.
        settings: How to predict.
        address: As in `start_ray`.
        kind: "jsonl" or "parquet".
        resume: Skip the parts that an earlier run finished.
        overwrite: Replace the results of an earlier run.
        progress: Called with the number of photographs done and the total.

    Returns:
        `photographs`, `faces` and `failed`: counts of this run. `skipped`: photographs of parts finished before.
        `cpu_seconds`: CPU time of the actors.

    Raises:
        InputError: The inputs cannot be used, or `out` holds results that may be neither continued nor replaced.
    """
    check_choice("format", kind, WRITERS)
    out = out.rstrip("/")
    parts = make_parts(_find(inputs, out))
    content = hashlib.sha256()
    for part in parts:
        content.update(json.dumps(part).encode())
    asked = {**asdict(settings), "format": kind, "parts": len(parts), "inputs": content.hexdigest()[:16]}
    present = _check_results(out, asked, resume, overwrite)
    todo = [part for part in parts if _part_name(part, kind) not in present]
    skipped = sum(part["size"] for part in parts) - sum(part["size"] for part in todo)
    outcome = {"photographs": 0, "faces": 0, "failed": 0, "skipped": skipped, "cpu_seconds": 0.0}
    if not todo:
        return outcome
    load(settings.weights, engine=settings.engine, device=settings.device)  # fails here rather than in an actor
    ray, data = (import_optional(m, "predict --ray") for m in ("ray", "ray.data"))
    own = not ray.is_initialized()
    if own:
        start_ray(address)
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs several lines per run
    try:
        data.DataContext.get_current().enable_progress_bars = False
        write_file(f"{out}/{MANIFEST}", (json.dumps(asked, indent=2) + "\n").encode())
        gpus = 1 if settings.device != "cpu" else 0
        room = ray.cluster_resources().get("GPU" if gpus else "CPU", 1) // (gpus or settings.threads)
        actors = max(1, min(int(room), len(todo)))
        results = data.from_items([{"part": json.dumps(part)} for part in todo], override_num_blocks=len(todo)).map(
            PartPredictor, fn_constructor_args=(asdict(settings), out, kind, os.getcwd()), num_gpus=gpus,
            num_cpus=settings.threads, compute=data.ActorPoolStrategy(size=actors),
        )  # fmt: skip
        done = 0
        for row in results.iter_rows():
            done += row["size"]
            for key in ("photographs", "faces", "failed", "cpu_seconds"):
                outcome[key] += row[key]
            progress(done, sum(part["size"] for part in todo))
    finally:
        if own:
            ray.shutdown()
    return outcome


def start_ray(address: str) -> None:
    """Start Ray, or connect to it.

    Args:
        address: "local" starts Ray on this machine. "auto" connects to the cluster running on this machine, HOST:PORT
            to another running one.

    Raises:
        InputError: There is no cluster at the address.
    """
    ray = import_optional("ray", "predict --ray")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray warns about things that Ray Data does on purpose
    try:
        if ":" in address:  # Ray itself would retry for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), 10).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        # Ray uses the token of a cluster found by "auto", but not of one at a given address
        token = ":" in address and "Failed to connect" in str(error) and "RAY_AUTH_MODE" not in os.environ
        remedy = "; if the cluster is protected by a token, set RAY_AUTH_MODE=token" if token else ""
        raise InputError(f"--ray {address}: {error}{remedy}") from None


def _check_results(out: str, asked: dict[str, Any], resume: bool, overwrite: bool) -> set[str]:
    """Return the names of the files in `out` that may be kept, after removing those to replace."""
    if resume and overwrite:
        raise InputError("--resume keeps earlier results and --overwrite replaces them; give one of them")
    present = set(list_files(out))
    if MANIFEST not in present:
        return set()
    if not (resume or overwrite):
        raise InputError(
            f"{out}: already holds results ({MANIFEST}); --overwrite replaces them, --resume continues that run, or "
            "choose another --out"
        )
    if overwrite:
        for name in present:
            if name.startswith(("part-", "failed-")):
                remove_file(f"{out}/{name}")
        return set()
    before = json.loads(read_file(f"{out}/{MANIFEST}"))
    changed = [key for key, value in asked.items() if before.get(key) != value and key != "threads"]
    if changed:
        raise InputError(
            f"{out}: cannot be resumed, because it was written with other {', '.join(changed)}; give another --out"
        )
    return present
