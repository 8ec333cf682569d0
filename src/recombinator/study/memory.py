"""Memory and speed of a training from disk, compared with one in memory."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import numpy as np

from recombinator.data.images import encode_image
from recombinator.data.readers.synthetic import prepare_synthetic
from recombinator.data.table import FaceTable, Row, load_table, write_splits
from recombinator.utils.errors import InputError

SOURCES = 500  # rows that are repeated
VALID = 64  # rows of the validation table, which is not timed
IN_MEMORY = 20_000  # crops of the training in memory that the one from disk is compared with
PLACES = ("on disk", "in memory")


def jittered_row(table: FaceTable, index: int) -> Row:
    """Return a row of a table, randomly shifted by a few pixels and made lighter or darker, seeded by `index`.

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
    crops: int, *, source: Path | None = None, folder: Path | None = None, model: str = "rcn-6", steps: int = 10,
    rounds: int = 30, threads: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Train from disk and in memory in turn. Each training has a process of its own, which waits for its turn.

    Only ratios are reported, since other work on the machine slows both.

    Args:
        crops: Crops of the table on disk; the training in memory takes at most `IN_MEMORY` of them.
        source: A table whose rows are repeated with jitter; None: drawn faces.
        folder: Folder for the crops, 9 kB each, which are removed at the end; None: the system's temporary folder.
        model: Network to train.
        steps: Steps of each training per round.
        rounds: Number of timed rounds; one more round warms up.
        threads: CPU threads of torch; None: all cores.
        progress: Called with the numbers of crops written and in all.

    Returns:
        A report: for each training the number of crops and the peak memory of the process in bytes, and the ratios of
        disk to memory (median and quartiles of the rounds): `speed` of images per second, `cpu` of the CPU time per
        image, that of the decoding threads included.
    """
    with tempfile.TemporaryDirectory(dir=folder) as name, ExitStack() as stack:
        data = Path(name)
        write_crops(data, crops, source, progress)
        size = (data / "train.parquet").stat().st_size
        workers = []
        for memory, limit in ((0.0, None), (1e6, min(crops, IN_MEMORY))):
            arguments = (name, model, memory, limit, threads)
            command = [sys.executable, "-c", f"from {__name__} import serve; serve(*{arguments!r})"]
            workers.append(stack.enter_context(Popen(command, stdin=PIPE, stdout=PIPE, text=True, bufsize=1)))
        times = np.array([[json.loads(_ask(worker, steps)) for worker in workers] for _ in range(rounds + 1)][1:])
        reports = [json.loads(_ask(worker, 0)) for worker in workers]
    seconds, cpu = (times[:, 0] / times[:, 1]).T
    return {
        "crops": crops, "file_bytes": size, "network": model, "steps": steps, "rounds": rounds,
        "threads": threads, **dict(zip(PLACES, reports, strict=True)),
        "speed": _quartiles(1 / seconds), "cpu": _quartiles(cpu),
    }  # fmt: skip


def _quartiles(values: np.ndarray) -> dict[str, float]:
    return dict(zip(("low", "median", "high"), np.quantile(values, [0.25, 0.5, 0.75]).tolist(), strict=True))


def _ask(worker: Popen[str], steps: int) -> str:
    """Send a number of steps to a process that runs `serve`, and return its answer."""
    assert worker.stdin and worker.stdout
    print(steps, file=worker.stdin)
    answer = worker.stdout.readline()
    if not answer:
        raise InputError("a training stopped, for the reason above")
    return answer


class _Enough(Exception):
    pass


def serve(data: str, model: str, memory: float, limit: int | None, threads: int | None) -> None:
    """Train the numbers of steps that standard input gives, one per line, and print seconds and CPU seconds of each.

    After a 0, print the number of crops and the peak memory of this process as JSON, and return.
    """
    import torch

    from recombinator.training.loop import Trainer
    from recombinator.training.recipe import get_recipe
    from recombinator.utils.allocator import keep_freed_memory

    keep_freed_memory()  # as `recombinator train` does
    if threads:
        torch.set_num_threads(threads)
    train, valid = (
        load_table(Path(data) / f"{name}.parquet", 1, count, spread=True, memory=memory)
        for name, count in (("train", limit), ("valid", None))
    )
    trainer = Trainer(model, train, valid, Path(data), get_recipe("fast", model, memory=memory))
    left, began, cpu = int(input()), time.perf_counter(), time.process_time()

    def count(done: int, total: int) -> None:
        nonlocal left, began, cpu
        left -= 1
        if left == 0:
            print([time.perf_counter() - began, time.process_time() - cpu], flush=True)
            left = int(input())
            if left == 0:
                raise _Enough
            began, cpu = time.perf_counter(), time.process_time()

    with suppress(_Enough):
        while True:
            trainer.run_epoch(count)
    print(json.dumps({"crops": len(train), "peak_bytes": peak_memory()}))


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
