"""Memory and speed of a training whose crops stay on disk, next to one whose crops are in memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from recombinator.data.images import encode_image
from recombinator.data.readers.synthetic import prepare_synthetic
from recombinator.data.table import FaceTable, Row, load_table, write_splits

SOURCES = 500  # rows that are repeated
VALID = 64  # rows of the validation table, which is not timed
IN_MEMORY = 20_000  # crops of the training in memory that the one from disk is compared with
WARM_UP = 20  # steps before the clock starts
PLACES = {"on disk": 0.0, "in memory": 1e6}  # the setting `memory`


def jittered_row(table: FaceTable, index: int) -> Row:
    """Return a row of a table, shifted by a few pixels and lighter or darker, as `index` decides.

    Args:
        table: The rows that are repeated.
        index: Number of the new row.
    """
    import cv2

    rng, i = np.random.default_rng(index), index % len(table)
    dx, dy = rng.integers(-4, 5, 2).tolist()
    shift = np.array([dx, dy, 0], np.float32)
    image = table.images[i].transpose(1, 2, 0)
    moved = cv2.warpAffine(
        image * np.float32(rng.uniform(0.8, 1.2)), np.array([[1.0, 0, dx], [0, 1, dy]]), image.shape[:2],
        borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
    to_file = table.to_file[i].copy()
    to_file[:, 2] -= to_file[:, :2] @ shift[:2]
    return Row(
        encode_image(moved.clip(0, 255).astype(np.uint8), 95), table.points[i] + shift[:2],
        table.boxes[i] + shift, to_file, f"jittered/{index:07d}", (1000, 1000), mask=table.mask[i],
    )  # fmt: skip


def write_crops(
    out: Path, crops: int, source: Path | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Write a training table of jittered crops and a small validation table.

    Args:
        out: Folder for the tables.
        crops: Rows of the training table.
        source: A table whose rows are repeated; None: drawn faces.
        progress: Called with the numbers of rows done and in all.
    """
    if source is None:
        prepare_synthetic(out / "source", faces=SOURCES)
        source = out / "source" / "train.parquet"
    table = load_table(source, limit=SOURCES, spread=True)
    info = table.info
    write_splits(
        out, {"train": range(crops), "valid": range(crops, crops + VALID)}, lambda i: jittered_row(table, i),
        lambda split: replace(info, split=split, gray=True),
        strict=True, progress=progress,
    )  # fmt: skip


def measure(
    crops: int, *, source: Path | None = None, folder: Path | None = None, model: str = "rcn-6", steps: int = 300,
    rounds: int = 3, threads: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Train a few hundred steps from disk and in memory, in turn, each time in a process of its own.

    Args:
        crops: Crops of the table on disk; the training in memory takes at most `IN_MEMORY` of them.
        source: A table whose rows are repeated with jitter; None: drawn faces.
        folder: Where the crops are written, 9 kB each, and removed again; None: the system's folder for such files.
        model: Network to train.
        steps: Steps that are timed.
        rounds: Trainings of each kind.
        threads: CPU threads of torch; None: all cores.
        progress: Called with the numbers of crops written and in all.

    Returns:
        A report: for each kind the peak memory of the process in bytes, images per second (median, lowest, highest)
        and the seconds to open the table.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name:
        data = Path(name)
        write_crops(data, crops, source, progress)
        size = (data / "train.parquet").stat().st_size
        rows: dict[str, list[dict[str, Any]]] = {place: [] for place in PLACES}
        for _ in range(rounds):
            for place in PLACES:
                limit = min(crops, IN_MEMORY) if place == "in memory" else None
                call = (str(data), model, steps, PLACES[place], limit, threads)
                code = f"from recombinator.study.memory import train_steps; train_steps(*{call!r})"
                done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
                rows[place].append(json.loads(done.stdout.splitlines()[-1]))
    report: dict[str, Any] = {"crops": crops, "file_bytes": size, "model": model, "steps": steps, "rounds": rounds}
    for place, measured in rows.items():
        rates = [row["images_per_second"] for row in measured]
        report[place] = {
            "crops": measured[0]["crops"], "peak_bytes": max(row["peak_bytes"] for row in measured),
            "images_per_second": median(rates), "low": min(rates), "high": max(rates),
            "open_seconds": median(row["open_seconds"] for row in measured),
        }  # fmt: skip
    return report


class _Enough(Exception):
    pass


def train_steps(data: str, model: str, steps: int, memory: float, limit: int | None, threads: int | None) -> None:
    """Train, and print images per second and the peak memory of this process as JSON."""
    import torch

    from recombinator.training.loop import Trainer
    from recombinator.training.recipe import get_recipe
    from recombinator.utils.allocator import keep_freed_memory

    keep_freed_memory()  # as `recombinator train` does
    if threads:
        torch.set_num_threads(threads)
    began = time.perf_counter()
    train, valid = (
        load_table(Path(data) / f"{name}.parquet", 1, count, spread=True, memory=memory)
        for name, count in (("train", limit), ("valid", None))
    )
    opened = time.perf_counter() - began
    recipe = get_recipe("fast", model, memory=memory)
    trainer = Trainer(model, train, valid, Path(data), recipe)
    times: list[float] = []

    def count(done: int, total: int) -> None:
        times.append(time.perf_counter())
        if len(times) > WARM_UP + steps:
            raise _Enough

    try:
        while True:
            trainer.run_epoch(count)
    except _Enough:
        rate = recipe.batch * steps / (times[-1] - times[WARM_UP])
    report = {"crops": len(train), "images_per_second": rate, "peak_bytes": peak_memory(), "open_seconds": opened}
    print(json.dumps(report))


def peak_memory() -> int:
    """Return the largest resident set size of this process so far, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    import resource

    # Linux may count the process before exec too, so this is for other systems; macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
