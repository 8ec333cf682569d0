"""Progress: a bar with time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY = 15.0  # seconds between plain lines


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `advance(done, total)`. Goes to standard error, so that output can be piped."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    began = last = time.monotonic()

    def advance(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY and done:
            last = now
            left = (now - began) / done * (total - done)
            print(f"{label}: {done} of {total}, {left:.0f} s left", file=sys.stderr, flush=True)

    yield advance


def warn(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
