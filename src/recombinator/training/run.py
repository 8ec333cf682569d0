"""`train`: from a folder of tables to a folder with a trained network."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recombinator.data.table import load_table
from recombinator.training.loop import Trainer, read_state, record
from recombinator.training.recipe import Recipe, changed, get_recipe
from recombinator.utils.errors import InputError, remedy
from recombinator.utils.files import lock_folder
from recombinator.weights.files import resolve


def _pick_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not device.startswith("cuda"):
        raise InputError(f"device {device!r} is not known: use auto, cpu or cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: this machine has no CUDA GPU that torch can use; use cpu")
    return device


def train(
    model: str, data: str | os.PathLike[str], out: str | os.PathLike[str], *, recipe: str | Recipe | None = None,
    seed: int | None = None, resume: bool = False, device: str = "auto", start: str | os.PathLike[str] | None = None,
    limit: int | None = None, options: dict[str, Any] | None = None, tensorboard: bool = False,
    notice: Callable[[str], None] = print, report: Callable[[dict[str, Any]], None] = print,
    step_done: Callable[[int, int], None] = lambda i, n: None, errors_of: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | None = None, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Trains `model` on DATA/train.parquet, choosing the epoch on DATA/valid.parquet; writes everything to OUT.

    recipe: a name ("fast" if none is given) or a Recipe; `changes` replace its fields (epochs=..., degrees=...).
    options: of `create_model`. start: weights to begin from where shapes agree. limit: so many images
    drawn from the table (a smaller number is a part of a larger).
    errors_of: the network for images whose errors a denoiser learns (recipe corruption "errors" or "mixed").
    teacher: a trained RCN or SumNet, whose score maps are learnt beside the true points (recipe `distil`).
    resume: go on where OUT stopped, with its recipe, seed and options; what is given here must agree, but epochs may
    grow. report: called with each epoch's metrics; notice: with what the user should know. Returns the summary.

    Raises InputError for unusable data or settings, an OUT that holds a run already, a loss that is not finite.
    """
    folder, target = Path(data), Path(out)
    if folder.is_file():
        raise InputError(f"{data}: a file; give the folder with train.parquet and valid.parquet")
    with lock_folder(target):
        states = [p for p in (target / "last.safetensors", target / "stable.safetensors") if p.is_file()]
        if states and not resume:
            raise InputError(f"{out}: already holds a run; continue it with --resume or choose another --out")
        before = read_state(states[0])[1] if states else record(target)
        if resume and not before:
            raise InputError(f"{out}: nothing to resume (no last.safetensors); leave --resume out")
        if resume:
            options = {k: v for k, v in before["model"].items() if k not in ("name", "keypoints")} | (options or {})
            seed = before["seed"] if seed is None else seed
            errors_of = before.get("errors_of") if errors_of is None else errors_of
            teacher = before.get("teacher") if teacher is None else teacher
            if recipe is None:
                recipe = Recipe.from_dict(before["recipe"])
        named = recipe if isinstance(recipe, Recipe) else get_recipe(recipe or "fast", model)
        chosen = changed(named, **changes)
        channels = (options or {}).get("channels", 1)
        faces = load_table(folder / "train.parquet", channels, limit, spread=True)
        valid = load_table(folder / "valid.parquet", channels)
        if faces.info.keypoints != valid.info.keypoints:
            raise InputError(f"{data}: train.parquet and valid.parquet have different keypoints")
        trainer = Trainer(
            model, faces, valid, target, chosen, seed=seed or 0, device=_pick_device(device), options=options,
            start=resolve(start) if start else None, errors_of=resolve(errors_of) if errors_of else None,
            teacher=resolve(teacher) if teacher else None,
        )  # fmt: skip
        if resume and states:
            trainer.restore(notice)
        elif resume:
            notice(f"{out}: no epoch was finished; it starts from the beginning")
        if not tensorboard:
            return trainer.fit(report, step_done)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(f"TensorBoard is not installed; {remedy('tensorboard')}") from None
        with SummaryWriter(str(target / "tensorboard")) as writer:

            def both(line: dict[str, Any]) -> None:
                for key, value in line.items():
                    if key != "epoch":
                        writer.add_scalar(key, value, line["epoch"])
                report(line)

            return trainer.fit(both, step_done)
