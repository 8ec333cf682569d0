"""The training loop, from top to bottom.

A run's folder holds `run.json` (what was asked), `metrics.jsonl` (a line an epoch), `last.safetensors` (all
state after the last finished epoch), `best.safetensors` (the weights with the lowest validation error), and
`stable.safetensors` with `stable-best.safetensors` (both as they were when the learning rate began to fall, so
that a run can be lengthened exactly).
Random numbers of epoch e come from (seed, e) alone, so no generator state has to be kept.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from recombinator.data.table import FaceTable
from recombinator.models import create_model
from recombinator.models.base import KeypointNet
from recombinator.training.recipe import Recipe, make_optimizer
from recombinator.training.revive import revive
from recombinator.training.tasks import TASKS, FromPixels
from recombinator.utils.errors import InputError
from recombinator.utils.files import copy_file, write_json, write_text
from recombinator.utils.provenance import provenance
from recombinator.weights.files import (
    Weights,
    load_weights,
    read_tensors,
    save_weights,
    score_map_weights,
    write_tensors,
)

logger = logging.getLogger(__name__)

STATE = "recombinator-state-1"
REVIVE_SAMPLES = 512  # training samples that tell which maps are silent


@dataclass
class Position:
    """Where a run stands: finished epochs and the best validation error so far."""

    epoch: int = 0
    best: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0  # of training and validation, all sittings together


class Trainer:
    """One network, one recipe, one table. `train` below is what most callers want."""

    def __init__(
        self, model: str, train: FaceTable, valid: FaceTable, out: Path, recipe: Recipe, *, seed: int = 0,
        device: str = "cpu", options: dict[str, Any] | None = None, start: Path | None = None,
        errors_of: Path | None = None, teacher: Path | None = None,
    ) -> None:  # fmt: skip
        if recipe.balance and recipe.balance not in train.attributes:
            has = ", ".join(train.attributes) or "none"
            raise InputError(f"balance={recipe.balance!r}: the table has no such attribute (it has: {has})")
        self.train_table, self.valid_table, self.out, self.recipe, self.seed = train, valid, out, recipe, seed
        self.device = torch.device(device)
        torch.manual_seed(seed)
        self.net = create_model(model, len(train.info.keypoints), **(options or {}))
        self.net.initialize(train.points, train.mask)
        if start and not copy_matching(load_weights(start).net.state_dict(), self.net):
            raise InputError(f"{start}: none of its tensors fits {model}; start from a network of its kind")
        self.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(recipe, self.net)
        if self.net.task not in TASKS:
            raise InputError(f"{model}: cannot be trained as a whole; train its parts, then `recombinator join` them")
        if teacher and self.net.task != "score_maps":
            raise InputError(f"{teacher}: a teacher needs a network with score maps of images; {model} has none")
        if recipe.revive and not self.net.rectified():
            raise InputError(f"revive=true: {model} does not list its rectified convolutions")
        if errors_of and self.net.task != "denoising":
            raise InputError(f"{errors_of}: errors_of is for a denoiser; {model} learns from images")
        helper = _score_map_net(errors_of or teacher, train)
        self.task = TASKS[self.net.task](self.net, train, valid, recipe, self.device, helper)
        self.steps = math.ceil(len(train) / recipe.batch)
        self.at = Position()
        self.revived = 0  # maps, before the running epoch
        self.settings = {
            "model": self.net.config, "recipe": recipe.to_dict(), "seed": seed, "data": train.fingerprint,
            "validation_data": valid.fingerprint, "dataset": train.info.dataset, "images": len(train),
            "validation_images": len(valid),
            "start": str(start) if start else None, "errors_of": str(errors_of) if errors_of else None,
            "teacher": str(teacher) if teacher else None,
        }  # fmt: skip

    # ---- one epoch -------------------------------------------------------------------------------------------

    def run_epoch(self, progress: Callable[[int, int], None] = lambda done, total: None) -> float:
        """Trains on every sample once; returns the mean loss. Raises InputError where the loss is not finite.

        progress: called with optimizer steps done and steps of the whole run.
        """
        self.net.train()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.at.epoch)
        n = len(self.train_table)
        order = self._order(generator)
        self.revived = 0
        if self.recipe.revive and self.at.epoch < self.recipe.stable_epochs:
            self.revived = self._revive(order[:REVIVE_SAMPLES], generator)
        total = 0.0
        for i, index in enumerate(order.split(self.recipe.batch)):
            rate = self.recipe.learning_rate_at(self.at.epoch * self.steps + i, self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self.task.loss(index, generator)
            value = loss.item()
            if not math.isfinite(value):
                files = ", ".join(self.train_table.files[j] for j in index[:3].tolist())
                raise self.diverged(
                    f"the loss became {value} in epoch {self.at.epoch + 1}, batch {i + 1} ({files}, ...)"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += value * len(index)
            progress(self.at.epoch * self.steps + i + 1, self.recipe.epochs * self.steps)
        return total / n

    def _revive(self, index: Tensor, generator: torch.Generator) -> int:
        inputs = torch.cat([cast(FromPixels, self.task).samples(part, generator)[0] for part in index.split(64)])
        return revive(self.net, inputs, self.optimizer, generator)

    def _order(self, generator: torch.Generator) -> torch.Tensor:
        """(N,) indices of an epoch's samples."""
        n = len(self.train_table)
        if not self.recipe.shuffle:
            return torch.arange(n)
        if self.recipe.balance:
            return balanced_order(torch.from_numpy(self.train_table.attributes[self.recipe.balance]), generator)
        return torch.randperm(n, generator=generator)

    # ---- state -----------------------------------------------------------------------------------------------

    def weights(self, training: dict[str, Any]) -> Weights:
        table = self.train_table
        inside = (table.points - table.boxes[:, None, :2]) / table.boxes[:, None, 2:]
        template = np.nanmean(np.where(table.mask[..., None], inside, np.nan), axis=0)
        return Weights(self.net, table.info.keypoints, table.info.crop_rule, template.round(4).tolist(), training)

    def diverged(self, what: str) -> InputError:
        good = f"the last good state is {self.out / 'last.safetensors'} (epoch {self.at.epoch})"
        before = good if self.at.epoch else "no epoch was finished before"
        return InputError(f"{self.out}: {what}; {before}; try a lower learning rate")

    @property
    def out_of_patience(self) -> bool:
        return bool(self.recipe.patience) and self.at.epoch - self.at.best_epoch >= self.recipe.patience

    def save(self, name: str) -> None:
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{k}": v for k, v in state.items()}
        write_tensors(self.out / name, tensors, {"format": STATE, **self.settings, "position": self.at.__dict__})

    def restore(self) -> None:
        """Continues the run in `out`, from the latest state that this recipe would also have passed through: the
        last one; for another number of epochs, one before either learning rate fell, or the very start. A warning
        names epochs that are run again. Raises InputError where there is nothing to continue, or other settings."""
        reached = -1
        for name in ("last.safetensors", "stable.safetensors"):
            if not (self.out / name).is_file():
                continue
            tensors, meta = read_state(self.out / name)
            self._check_same(meta)
            reached = max(reached, meta["position"]["epoch"])
            if self.recipe.epochs < reached:
                raise InputError(f"{self.out}: has {reached} epochs already; ask for more, or for a new --out")
            before = replace(self.recipe, epochs=meta["recipe"]["epochs"])
            shared = min(before.stable_epochs, self.recipe.stable_epochs)
            if before.epochs == self.recipe.epochs or meta["position"]["epoch"] <= shared:
                self._load_state(tensors, meta)
                break
        if reached < 0:
            raise InputError(f"{self.out}: nothing to resume (no last.safetensors); leave --resume out")
        if self.at.epoch < reached:
            logger.warning(
                f"{self.out}: with {self.recipe.epochs} epochs the learning rate falls later than it did; "
                f"epochs {self.at.epoch + 1} to {reached} are run again; best-{reached}.safetensors keeps the old best"
            )
            old_best = self.out / f"best-{reached}.safetensors"
            if not old_best.is_file():  # a stop in the first epoch that is run anew comes here again
                copy_file(self.out / "best.safetensors", old_best)
            if self.at.epoch and (self.out / "stable-best.safetensors").is_file():
                copy_file(self.out / "stable-best.safetensors", self.out / "best.safetensors")
            self.save("last.safetensors")
            if not self.at.epoch:
                (self.out / "stable.safetensors").unlink(missing_ok=True)
        metrics = self.out / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        kept = [x for x in lines if _epoch_of(x) <= self.at.epoch]
        if kept != lines:
            write_text(metrics, "".join(x + "\n" for x in kept))

    def _load_state(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
        state = self.optimizer.state_dict()
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, i, field = key.split(".", 2)
                state["state"].setdefault(int(i), {})[field] = value
        self.optimizer.load_state_dict(state)
        for parameter, kept in self.optimizer.state.items():
            for field, value in kept.items():
                if value.shape == parameter.shape:  # in the parameter's memory layout, which fused steps rely on
                    kept[field] = torch.empty_like(parameter).copy_(value)
        self.at = Position(**meta["position"])

    def _check_same(self, meta: dict[str, Any]) -> None:
        now = json.loads(json.dumps(self.settings))
        for what in ("model", "seed", "data", "validation_data", "errors_of", "teacher"):
            if meta.get(what) != now[what]:
                raise InputError(f"{self.out}: was started with {what} {meta.get(what)}, not {now[what]}")
        # by way of Recipe: a field that is newer than the run has its default there
        theirs = json.loads(json.dumps(Recipe.from_dict(meta["recipe"]).to_dict()))
        ours = dict(now["recipe"])
        for free in ("epochs", "patience"):
            theirs.pop(free), ours.pop(free)
        different = [k for k in ours if theirs.get(k) != ours[k]]
        if different:
            raise InputError(f"{self.out}: was started with another recipe (differs in {', '.join(different)})")

    # ---- the run ---------------------------------------------------------------------------------------------

    def fit(
        self, on_epoch: Callable[[dict[str, Any]], None] = lambda metrics: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Any]:  # fmt: skip
        """Trains to the end; returns the summary, also in summary.json.

        on_epoch: called with each epoch's metrics, after its state is written. progress: as in `run_epoch`.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        made_by = provenance() | {"bfloat16": self.task.bfloat16}
        sittings = record(self.out).get("sittings", []) if self.at.epoch else []
        write_json(
            self.out / "run.json", {**self.settings, "sittings": [*sittings, {"from_epoch": self.at.epoch, **made_by}]}
        )
        while self.at.epoch < self.recipe.epochs and not self.out_of_patience:
            began = time.perf_counter()
            loss = self.run_epoch(progress)
            trained = time.perf_counter() - began
            errors = self.task.validate()
            if not all(math.isfinite(v) for v in errors.values()):
                raise self.diverged(f"the network gives no finite answers after epoch {self.at.epoch + 1}")
            self.at.epoch += 1
            self.at.seconds += time.perf_counter() - began
            line = {
                "epoch": self.at.epoch, "loss": loss, **errors, "images_per_second": len(self.train_table) / trained,
                "seconds": self.at.seconds, "learning_rate": self.optimizer.param_groups[0]["lr"],
            }  # fmt: skip
            if self.recipe.revive:
                line["revived"] = self.revived
            if errors["valid"] < self.at.best:
                self.at.best, self.at.best_epoch = errors["valid"], self.at.epoch
                save_weights(self.out / "best.safetensors", self.weights({
                    **self.settings, "epoch": self.at.epoch, "validation_nme_paper": errors["valid"],
                    "seconds": self.at.seconds, **made_by,
                }))  # fmt: skip
            with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            if self.at.epoch == self.recipe.stable_epochs:
                copy_file(self.out / "best.safetensors", self.out / "stable-best.safetensors")
                self.save("stable.safetensors")
            self.save("last.safetensors")
            logger.info(
                f"epoch {line['epoch']:4d}  loss {line['loss']:8.3f}  valid {line['valid']:6.2f} %  "
                f"plain {line['clean']:6.2f} %  {line['images_per_second']:4.0f} img/s {line['seconds']:6.0f} s"
            )
            on_epoch(line)
        summary = {
            "epochs": self.at.epoch, "best_epoch": self.at.best_epoch, "best_valid": self.at.best,
            "seconds": self.at.seconds,
        }  # fmt: skip
        write_json(self.out / "summary.json", summary)
        return summary


def balanced_order(classes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """(N,) classes -> N indices in random order: each class as often as the square root of its size says, each image as
    often as the others of its class, give or take one."""
    n = len(classes)
    order = torch.randperm(n, generator=generator)
    share = classes.bincount()[classes].to(torch.float64).rsqrt()
    upto = (share * (n / share.sum()))[order].cumsum(0)
    turns = torch.arange(n) + torch.rand(1, generator=generator, dtype=torch.float64)  # systematic sampling
    drawn = order[torch.searchsorted(upto, turns).clamp(max=n - 1)]
    return drawn[torch.randperm(n, generator=generator)]


def _score_map_net(weights: Path | None, table: FaceTable) -> KeypointNet | None:
    """The network whose answers on the table another one learns from."""
    if weights is None:
        return None
    loaded = score_map_weights(weights)
    if loaded.keypoints.names != table.info.keypoints.names:
        raise InputError(f"{weights}: its keypoints ({loaded.keypoints.name}) are not the table's")
    return loaded.net


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A state that `Trainer.save` wrote. Raises InputError with the remedy where it is something else."""
    try:
        tensors, meta = read_tensors(path)
    except InputError as error:
        raise InputError(f"{error}; remove it: --resume then goes on from an earlier state, if there is one") from None
    if meta.get("format") != STATE:
        raise InputError(f"{path}: holds no training state of this version; remove it, or choose another --out")
    return tensors, meta


def _epoch_of(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # half a line


def record(out: Path) -> dict[str, Any]:
    """run.json: what was asked, and when, where and by which commit each part was trained; {} where there is none."""
    try:
        return dict(json.loads((out / "run.json").read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError, ValueError):
        return {}


def copy_matching(tensors: dict[str, Tensor], net: nn.Module) -> list[str]:
    """Starts `net` from another network's weights where name and shape agree; returns the names copied."""
    own = net.state_dict()
    if isinstance(net, KeypointNet):
        tensors = net.adapt(tensors)
    same = {k: v for k, v in tensors.items() if k in own and own[k].shape == v.shape}
    net.load_state_dict(same, strict=False)
    return list(same)
