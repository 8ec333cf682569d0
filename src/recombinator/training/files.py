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
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from torch import Tensor

from recombinator.training.recipe import Recipe
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_no_link, read_file, write_json, write_text
from recombinator.utils.schema import Count, decode, parse_json
from recombinator.utils.text import plural
from recombinator.weights.files import read_tensors

logger = logging.getLogger(__name__)

STATE = "recombinator-state-1"
Epoch = Annotated[int, Meta(ge=0, le=10**6)]


class Settings(msgspec.Struct):
    """Settings of a run, as run.json and the saved states have them.

    Attributes:
        model: Configuration of the network: its `name`, `keypoints` and options.
        recipe: The recipe (`Recipe.to_dict`).
        seed: Seed of the run.
        data, validation_data: Fingerprints of the tables.
        dataset: Name of the dataset.
        images, validation_images: Rows of the tables.
        start, errors_of, teacher: Weights that the run uses.
    """

    model: dict[str, Any]
    recipe: dict[str, Any]
    seed: Count
    data: str = ""
    validation_data: str = ""
    dataset: str = ""
    images: Count = 0
    validation_images: Count = 0
    start: str | None = None
    errors_of: str | None = None
    teacher: str | None = None


class Session(msgspec.Struct):
    """One session of a run: the epoch that it continued from, and where it ran."""

    from_epoch: Epoch = 0
    commit: str | None = None


class RunFile(Settings):
    """run.json: the settings, and one entry per session."""

    sittings: list[Session] = []


class Position(msgspec.Struct):
    """Progress of a run (training.loop.Position)."""

    epoch: Epoch
    best: float
    best_epoch: Epoch
    seconds: Annotated[float, Meta(ge=0)]


class State(Settings, kw_only=True):
    """The metadata of last.safetensors and stable.safetensors."""

    format: Literal["recombinator-state-1"]
    position: Position


class Epochs(msgspec.Struct):
    """A line of metrics.jsonl. `valid` and `clean` are validation errors in percent, with and without jitter."""

    epoch: Annotated[int, Meta(ge=1, le=10**6)]
    loss: float
    valid: float
    clean: float
    images_per_second: float
    seconds: float


class Summary(msgspec.Struct):
    """summary.json."""

    epochs: Epoch
    best_epoch: Epoch
    best_valid: float
    seconds: float


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and metadata that `Trainer.save` wrote.

    Raises:
        InputError: The file is damaged or is something else.
    """
    try:
        tensors, meta = read_tensors(path)
        if meta.get("format") != STATE:
            raise InputError(f"{path}: holds no training state of this version")
        _check_settings(decode(State, meta, str(path)), path)
    except InputError as error:
        raise InputError(f"{error}; remove it: --resume then uses an earlier state, if there is one") from None
    return tensors, meta


def read_run(out: Path) -> dict[str, Any]:
    """Read run.json; {} if there is none.

    Raises:
        InputError: The file is damaged.
    """
    found = _read(out / "run.json")
    if found is None:
        return {}
    try:
        _check_settings(decode(RunFile, found, str(out / "run.json")), out / "run.json")
    except InputError as error:
        raise InputError(f"{error}; remove the file to continue the run without it") from None
    return found


def read_summary(out: Path) -> dict[str, Any] | None:
    """Read summary.json; None if there is none. Raises InputError for a damaged one."""
    found = _read(out / "summary.json")
    if found is not None:
        decode(Summary, found, str(out / "summary.json"))
    return found


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl, one object per epoch; [] if there is none. Raises InputError for a damaged one."""
    path, rows = out / "metrics.jsonl", []
    for number, line in enumerate(_lines(path), 1):
        rows.append(parse_json(line, f"{path}:{number}"))
        decode(Epochs, rows[-1], f"{path}:{number}")
    return rows


# settings of a run other than network and recipe, with their names in messages
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
    """Remove the lines of metrics.jsonl after an epoch, and incomplete ones.

    Raises:
        InputError: The file is a symbolic link, through which training would write.
    """
    path = out / "metrics.jsonl"
    check_no_link(path)
    lines = _lines(path)
    kept = [line for line in lines if _epoch_of(line) <= epoch]
    if kept != lines:
        write_text(path, "".join(line + "\n" for line in kept))


def _read(path: Path) -> Any:
    """Return the value of a JSON file; None if there is no such file."""
    if not path.is_file():
        return None
    return parse_json(read_file(path), str(path))


def _lines(path: Path) -> list[str]:
    return path.read_bytes().decode("utf-8", errors="replace").splitlines() if path.is_file() else []


def _check_settings(settings: Settings, path: Path) -> None:
    """Check what another structure describes: the recipe, and the network's name and keypoints."""
    Recipe.from_dict(settings.recipe, f"{path}: recipe")
    if not isinstance(settings.model.get("name"), str):
        raise InputError(f"{path}: model.name: expected str, got {settings.model.get('name')!r:.40}")


def _epoch_of(line: str) -> float:
    try:
        return decode(Epochs, parse_json(line, "line"), "line").epoch
    except InputError:
        return math.inf  # an incomplete line
