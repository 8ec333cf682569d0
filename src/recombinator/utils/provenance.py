"""Provenance of a result: command, commit, versions, machine."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any


def _git(*arguments: str) -> str | None:
    """Return git's output in the package's folder, or None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def commit() -> str | None:
    """Return the commit that is checked out, with "+" where tracked files differ from it.

    It is read at the first call: code that is checked out later is not the code that runs.

    Returns:
        12 hexadecimal digits; None outside a checkout of this package.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None  # installed inside somebody else's checkout
    head = _git("rev-parse", "--short=12", "HEAD")
    return head and head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _processor() -> str:
    """Return the processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def provenance() -> dict[str, Any]:
    """Return how and where a report is made: command, date, commit, versions, machine."""
    import numpy
    import torch

    from recombinator.utils.version import __version__

    return {
        "command": " ".join(["recombinator", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "versions": {
            "recombinator": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "machine": {
            "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }  # fmt: skip
