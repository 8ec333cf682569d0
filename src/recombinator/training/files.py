"""The files of a run.

- run.json: settings, and for each session the commit, versions and machine;
- metrics.jsonl: one line per epoch;
- last.safetensors: the complete state after the last finished epoch;
- best.safetensors: the weights of the epoch with the lowest validation error;
- stable.safetensors, stable-best.safetensors: state and best weights as they were when the learning rate began to fall,
  so that a run can be lengthened exactly;
- summary.json: the best epoch, once training has ended.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from recombinator.utils.errors import InputError
from recombinator.utils.files import write_text
from recombinator.weights.files import read_tensors

STATE = "recombinator-state-1"


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and metadata that `Trainer.save` wrote.

    Raises:
        InputError: The file is damaged or is something else.
    """
    try:
        tensors, meta = read_tensors(path)
    except InputError as error:
        raise InputError(f"{error}; remove it: --resume then uses an earlier state, if there is one") from None
    if meta.get("format") != STATE:
        raise InputError(f"{path}: holds no training state of this version; remove it, or choose another --out")
    return tensors, meta


def read_run(out: Path) -> dict[str, Any]:
    """Read run.json; {} if there is none."""
    try:
        return dict(json.loads((out / "run.json").read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError, ValueError):
        return {}


def trim_metrics(out: Path, epoch: int) -> None:
    """Remove the lines of metrics.jsonl after an epoch, and incomplete ones."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in lines if _epoch_of(line) <= epoch]
    if kept != lines:
        write_text(path, "".join(line + "\n" for line in kept))


def _epoch_of(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # an incomplete line
