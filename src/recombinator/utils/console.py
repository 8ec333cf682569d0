"""Terminal output of the command line: progress, warnings, log messages."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from recombinator.utils.errors import one_line

LINE_EVERY = 60.0  # seconds between plain lines


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show progress on standard error: a bar with time left in a terminal, a line per minute elsewhere.

    Args:
        label: What is counted.

    Yields:
        `advance(done, total)`, to be passed as the `progress` argument of a library function.
    """
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
    first = before = end = 0  # before, end: done and total of the last call

    def advance(done: int, total: int) -> None:
        nonlocal began, last, first, before, end
        now = time.monotonic()
        if done < before or before >= end:  # the first call, or the next run; a resumed one does not start at zero
            began, first = now, done - 1
        before, end = done, total
        if now - last >= LINE_EVERY:
            last = now
            left = (now - began) / (done - first) * (total - done)
            print(f"{label}: {done} of {total}, {left / 60:.1f} min left", file=sys.stderr, flush=True)

    yield advance


def report_part(progress: Callable[[int, int], None], before: int, parts: int, share: float) -> None:
    """Report the progress of one part of a task in percent of the whole task.

    Args:
        progress: Called with (percent done, 100).
        before: Number of finished parts.
        parts: Number of parts.
        share: Share of the current part that is done, from 0 to 1.
    """
    progress(round(100 * (before + share) / parts), 100)


def warn(sentence: str) -> None:
    """Print a line on standard error."""
    print(one_line(sentence), file=sys.stderr, flush=True)


class _ConsoleHandler(logging.Handler):
    """Plain lines: warnings to standard error, the rest to standard output."""

    def emit(self, record: logging.LogRecord) -> None:
        # the streams are looked up for each record: a progress bar replaces them while it is shown
        if record.levelno >= logging.WARNING:
            warn(self.format(record))
        else:
            print(self.format(record), flush=True)


@contextmanager
def log_to_console() -> Iterator[None]:
    """Print the package's log messages from INFO on, until the context ends. Only the command line does this."""
    logger, handler = logging.getLogger("recombinator"), _ConsoleHandler()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
