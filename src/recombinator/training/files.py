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
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from recombinator.training.recipe import Recipe
from recombinator.utils.errors import InputError
from recombinator.utils.files import write_json, write_text
from recombinator.utils.text import plural
from recombinator.weights.files import read_tensors

logger = logging.getLogger(__name__)

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


# settings of a run besides network and recipe, by the names that messages use
_COMPARED = {
    "seed": "seed", "errors_of": "errors_of", "teacher": "teacher", "data": "fingerprint of the training table",
    "validation_data": "fingerprint of the validation table",
}  # fmt: skip


def check_same_settings(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Check that a run is resumed with the settings it was started with.

    Args:
        out: Folder of the run, for the message.
        before: Settings of the run, from run.json or the metadata of a state. Fields of the recipe that were added
            since have their defaults.
        now: Settings of the `Trainer` that resumes it; only `epochs` and `patience` may differ.

    Raises:
        InputError: Settings differ; the message has both values of each.
    """

    def flat(settings: dict[str, Any]) -> dict[str, Any]:
        recipe = asdict(Recipe.from_dict(settings["recipe"]))
        augment = recipe.pop("augment")
        values = {text: settings.get(key) for key, text in _COMPARED.items()} | settings["model"] | recipe | augment
        values = {k: v for k, v in values.items() if k not in ("epochs", "patience")}
        return {**json.loads(json.dumps(values)), "model": settings["model"]["name"], "recipe": recipe["name"]}

    old, new = flat(before), flat(now)
    names = [k for k in dict.fromkeys((*new, *old)) if k != "name" and old.get(k) != new.get(k)]
    if names:
        changes = "; ".join(f"{k} was {_as_text(old.get(k))} and is now {_as_text(new.get(k))}" for k in names)
        raise InputError(
            f"{out}: cannot be resumed with other settings: {changes}. Leave them out, or choose another --out"
        )


def _as_text(value: Any) -> str:
    """Write a setting as `--set` reads it, and one that is not given as "the default"."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "the default" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def begin_session(out: Path, settings: dict[str, Any], session: dict[str, Any], epoch: int) -> None:
    """Write run.json with one more session, and report a change of the number of processes.

    Args:
        out: Folder of the run, which is created.
        settings: Settings of the run.
        session: Commit, versions and machine; `processes` where there are several.
        epoch: Finished epochs; 0 discards earlier sessions.
    """
    out.mkdir(parents=True, exist_ok=True)
    earlier = read_run(out).get("sittings", []) if epoch else []
    before, now = (s.get("processes", 1) for s in (earlier[-1] if earlier else session, session))
    if before != now:
        logger.warning(
            f"{out}: continues with {plural(now, 'process')} in place of {before}; the batches are the same, "
            "their random changes are others"
        )
    write_json(out / "run.json", {**settings, "sittings": [*earlier, {"from_epoch": epoch, **session}]})


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
