"""`train`: from a folder of tables to a folder with a trained network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from recombinator.data.table import load_table, read_info
from recombinator.keypoints import check_same_keypoints
from recombinator.models import create_model
from recombinator.training import parallel
from recombinator.training.files import read_run, read_state, trim_metrics
from recombinator.training.loop import Trainer
from recombinator.training.recipe import Recipe, changed, get_recipe
from recombinator.utils.errors import InputError, first_line, remedy, unknown
from recombinator.utils.files import check_no_link, check_output_folder, lock_folder
from recombinator.weights.files import resolve

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]


def _pick_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not device.startswith("cuda"):
        raise unknown("device", device, ("auto", "cpu", "cuda"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: this machine has no CUDA GPU that torch can use; use cpu")
    return device


def _restore(trainer: Trainer, out: Path) -> None:
    """Continue from the run's state. Raises InputError for a state that does not fit the network or its optimizer."""
    try:
        trainer.restore()
    except InputError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:  # of torch
        raise InputError(
            f"{out}: the tensors of its state do not fit the network or the optimizer ({first_line(error)}); remove "
            "last.safetensors: --resume then uses an earlier state, if there is one"
        ) from None


def train(
    model: str, data: PathLike, out: PathLike, *, recipe: str | Recipe | None = None, seed: int | None = None,
    resume: bool = False, device: str = "auto", start: PathLike | None = None, limit: int | None = None,
    options: dict[str, Any] | None = None, tensorboard: bool = False, errors_of: PathLike | None = None,
    teacher: PathLike | None = None, progress: Callable[[int, int], None] = lambda done, total: None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda metrics: None, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train a network and keep the epoch with the lowest validation error.

    Each epoch logs one INFO line and appends its metrics to OUT/metrics.jsonl. Under torchrun every process calls this
    with the same arguments and takes a part of each batch; process 0 validates, writes and logs.

    Args:
        model: One of `model_names()`.
        data: Folder with train.parquet and valid.parquet; the second one chooses the epoch. Files of the folders train
            and valid in it are parts of these tables.
        out: Folder of the run, which is created.
        recipe: "fast" (the default), "paper", or a Recipe.
        seed: Seed of the initial weights, the order of the images and the augmentation; 0 by default.
        resume: Continue the run in OUT with its recipe, seed and options. What is passed here must agree with them, but
            the number of epochs may grow.
        device: "auto", "cpu", "cuda" or "cuda:N".
        start: Weights to start from; tensors whose name and shape agree are copied.
        limit: Use only this many training images, drawn from the whole table; a smaller number gives a subset of a
            larger one.
        options: Network options, as of `create_model`.
        tensorboard: Also write the metrics to OUT/tensorboard.
        errors_of: For a denoiser with corruption "mixed": weights of the RCN or SumNet whose errors it
            learns to repair.
        teacher: Weights of an RCN or SumNet whose score maps are learned together with the true points; the recipe's
            `distil` is their share of the loss.
        progress: Called after each optimizer step with steps done and steps in all.
        on_epoch: Called after each epoch with its metrics; the state of that epoch is on disk by then.
        **changes: Replace fields of the recipe or of its Augment, such as epochs=20 or degrees=15.

    Returns:
        The summary that is also in OUT/summary.json: epochs, best_epoch, best_valid (validation error in percent of the
        normalizer, the paper's protocol) and seconds.

    Raises:
        InputError: The data or a setting cannot be used, OUT holds a run already, or the loss is not finite.
    """
    folder, target, device = Path(data), Path(out), _pick_device(device)
    if folder.is_file():
        raise InputError(f"{data}: a file; give the folder with train.parquet and valid.parquet")
    check_output_folder(target)
    keypoints = read_info(folder / "train.parquet").keypoints
    for weights in (w for w in (start, errors_of, teacher) if w):
        resolve(weights)
    with (
        parallel.joined(device) as device,
        nullcontext() if parallel.rank() else lock_folder(target),
    ):
        check_no_link(target / "metrics.jsonl")
        states = [p for p in (target / "last.safetensors", target / "stable.safetensors") if p.is_file()]
        if resume:
            before = read_state(states[0])[1] if states else read_run(target)
            if not before:
                raise InputError(f"{out}: nothing to resume (no last.safetensors); leave --resume out")
            options = {k: v for k, v in before["model"].items() if k not in ("name", "keypoints")} | (options or {})
            seed = before["seed"] if seed is None else seed
            errors_of = before.get("errors_of") if errors_of is None else errors_of
            teacher = before.get("teacher") if teacher is None else teacher
            if recipe is None:
                recipe = Recipe.from_dict(before["recipe"])
        named = recipe if isinstance(recipe, Recipe) else get_recipe(recipe or "fast", model)
        chosen = changed(named, **changes)
        with torch.device("meta"):  # checks the name and the options; builds nothing
            create_model(model, len(keypoints), **(options or {}))
        if states and not resume:
            raise InputError(f"{out}: already holds a run; continue it with --resume or choose another --out")
        channels = (options or {}).get("channels", 1)
        faces = load_table(folder / "train.parquet", channels, limit, spread=True, memory=chosen.memory)
        valid = load_table(folder / "valid.parquet", channels, memory=chosen.memory)
        check_same_keypoints(faces.info.keypoints, valid.info.keypoints, f"{folder / 'valid.parquet'}")
        trainer = Trainer(
            model, faces, valid, target, chosen, seed=seed or 0, device=device, options=options,
            start=start, errors_of=errors_of, teacher=teacher,
        )  # fmt: skip
        if not states and not parallel.rank():
            trim_metrics(target, 0)  # a process that was killed before it saved a state can have left a line
        if resume and states:
            _restore(trainer, target)
        elif resume and not parallel.rank():
            logger.warning(f"{out}: no epoch was finished; it starts from the beginning")
        if not tensorboard or parallel.rank():
            return trainer.fit(on_epoch, progress)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(f"TensorBoard is not installed; {remedy('tensorboard')}") from None
        with SummaryWriter(str(target / "tensorboard")) as writer:

            def write_metrics(metrics: dict[str, Any]) -> None:
                for key, value in metrics.items():
                    if key != "epoch":
                        writer.add_scalar(key, value, metrics["epoch"])
                on_epoch(metrics)

            return trainer.fit(write_metrics, progress)
