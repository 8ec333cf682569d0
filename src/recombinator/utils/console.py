"""Progress: a bar with time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY = 60.0  # seconds between plain lines


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yields `advance(done, total)`. Goes to standard error, so that output can be piped."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console, both = Console(stderr=True), sys.stdout.isatty()  # piped output must not go through the bar
        with Progress(*columns, console=console, transient=True, redirect_stdout=both) as bar:
            task = bar.add_task(label, total=None)

            def move(done: int, total: int) -> None:
                if done < bar.tasks[0].completed:  # the next of several runs
                    bar.reset(task, total=total)
                bar.update(task, completed=done, total=total)

            yield move
        return
    began = last = time.monotonic()
    first = before = end = 0  # before, end: where the last call stood, and of how many

    def advance(done: int, total: int) -> None:
        nonlocal began, last, first, before, end
        now = time.monotonic()
        if done <= before or before >= end:  # the first call, or the next run; a resumed one does not start at zero
            began, first = now, done - 1
        before, end = done, total
        if now - last >= LINE_EVERY:
            last = now
            left = (now - began) / (done - first) * (total - done)
            print(f"{label}: {done} of {total}, {left / 60:.1f} min left", file=sys.stderr, flush=True)

    yield advance


def warn(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
