"""Read damaged files of every kind, and count how each ends: a sentence (InputError), read fine, or a fault.

Samples are made first: small tables, a small training, its weights, points files, images. Each mutation copies one,
damages it and reads it as the commands do.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import signal
import tempfile
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from recombinator.study.fuzz_kinds import Kind, kinds
from recombinator.study.samples import make_samples
from recombinator.utils.errors import InputError, check_choice

SENTENCE, FINE, TRACEBACK, NOT_FINITE, SLOW = "sentence", "read fine", "traceback", "not finite", "too slow"
FAULTS = (TRACEBACK, NOT_FINITE, SLOW)


class _TimedOut(BaseException):
    """Time is up. A BaseException, so that `except Exception` in the tested code does not catch it."""


@dataclass
class Outcome:
    """How the mutations ended.

    Attributes:
        counts: By kind of file, how often each of SENTENCE, FINE and FAULTS.
        faults: For each fault its kind, its number (`fuzz` with this number as `only` repeats it) and its traceback.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[tuple[str, int, str]] = field(default_factory=list)

    def report(self, seed: int) -> dict[str, Any]:
        """Return the counts as a result file has them, with the seed of the mutations."""
        ends = {"sentence": SENTENCE, "read": FINE, "traceback": TRACEBACK, "not_finite": NOT_FINITE, "slow": SLOW}
        rows = [
            {"kind": kind, **{name: counts[end] for name, end in ends.items()}} for kind, counts in self.counts.items()
        ]
        total = sum(self.counts.values(), start=Counter())
        return {"seed": seed, "mutations": total.total(), "faults": len(self.faults), "rows": rows}


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _TimedOut in the main thread after some time, where the system has timers."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _TimedOut

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _silence() -> Iterator[None]:
    logger = logging.getLogger("recombinator")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _attempt(kind: Kind, samples: Path, sample: str, work: Path, rng: Random, seconds: float) -> tuple[str, str]:
    """Damage a copy of a sample and read it. Return how it ended, and the traceback of a fault."""
    shutil.copytree(samples / Path(sample).parts[0], work)
    path = work / Path(*Path(sample).parts[1:])
    kind.damage(path, rng)
    try:
        with _time_limit(seconds):
            json.dumps(kind.read(path), allow_nan=False)
    except InputError as error:
        one_line = str(error) and "\n" not in str(error)
        return (SENTENCE, "") if one_line else (TRACEBACK, f"not one line: {str(error)!r}")
    except _TimedOut:
        return SLOW, traceback.format_exc()
    except Exception as error:
        not_finite = isinstance(error, ValueError) and "JSON compliant" in str(error)
        return (NOT_FINITE if not_finite else TRACEBACK), traceback.format_exc()
    return FINE, ""


def fuzz(
    number: int, *, seed: int = 0, only: int | None = None, seconds: float = 20.0, keep: Path | None = None,
    chosen: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:  # fmt: skip
    """Read damaged files of all kinds in turn.

    Args:
        number: Number of mutations.
        seed: Seed of the mutations; each depends on the seed and its own number.
        only: Run only the mutation of this number.
        seconds: Time allowed for each.
        keep: Folder for copies of files that led to a fault.
        chosen: Names of the kinds of files; all by default.
        progress: Called with mutations done and in all.

    Returns:
        The counts and the faults.
    """
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name, _silence():
        samples = Path(name) / "samples"
        make_samples(samples)
        found = kinds(samples)
        for kind in chosen:
            check_choice("kind of files", kind, found)
        found = {name: kind for name, kind in found.items() if name in (chosen or found)}
        outcome.counts = {kind: Counter() for kind in found}
        for i in range(number) if only is None else (only,):
            rng, kind = Random(f"{seed} {i}"), list(found)[i % len(found)]
            work = Path(name) / "work"
            ended, detail = _attempt(found[kind], samples, rng.choice(found[kind].samples), work, rng, seconds)
            outcome.counts[kind][ended] += 1
            if ended in FAULTS:
                outcome.faults.append((kind, i, detail))
                if keep:
                    shutil.copytree(work, keep / str(i), dirs_exist_ok=True)
            shutil.rmtree(work)
            progress(i + 1, number)
    return outcome
