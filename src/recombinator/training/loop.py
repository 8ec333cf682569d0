"""The training loop. `training.files` lists the files that it writes.

The random numbers of an epoch depend on the seed and the epoch only, so no generator state is saved.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from recombinator.data.stream import StreamedImages
from recombinator.data.table import PSEUDO_LABELS, FaceTable
from recombinator.models import create_model
from recombinator.training import parallel
from recombinator.training.average import MovingAverage
from recombinator.training.files import STATE, begin_session, check_same_settings, read_state, trim_metrics
from recombinator.training.order import batches, epoch_order, epoch_rows
from recombinator.training.recipe import Recipe, make_optimizer
from recombinator.training.revive import count_dead_channels, revive
from recombinator.training.start import copy_matching, load_teacher
from recombinator.training.tasks import TASKS
from recombinator.utils.errors import InputError
from recombinator.utils.files import copy_file, write_json
from recombinator.utils.provenance import provenance
from recombinator.weights.files import Weights, load_weights, resolve, save_weights, write_tensors

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

REVIVE_SAMPLES = 512  # training samples that decide which channels are dead before they are re-initialized
COUNT_SAMPLES = 64  # the same for the count of dead channels in the metrics


@dataclass
class Position:
    """Progress of a run.

    Attributes:
        epoch: Finished epochs.
        best: Lowest validation error so far, in percent.
        best_epoch: Epoch with that error.
        seconds: Time of training and validation, over all sessions.
    """

    epoch: int = 0
    best: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0


class Trainer:
    """Train one network with one recipe; most callers use `recombinator.train` instead.

    Args:
        model: One of `model_names()`.
        train: Training table.
        valid: Validation table; it chooses the epoch that is kept.
        out: Folder of the run.
        recipe: Settings of the training.
        seed: Seed of the initial weights, the order of the images and the augmentation.
        device: Device of the network, such as "cpu" or "cuda".
        options: Options of `create_model`.
        start: Weights to start from, where names and shapes agree.
        errors_of: Weights of the network for images whose errors a denoiser learns to correct.
        teacher: Weights of a network whose score maps are learned along with the true points.

    Raises:
        InputError: The network, the recipe and the tables cannot be used together.
    """

    def __init__(
        self, model: str, train: FaceTable, valid: FaceTable, out: Path, recipe: Recipe, *, seed: int = 0,
        device: str = "cpu", options: dict[str, Any] | None = None, start: PathLike | None = None,
        errors_of: PathLike | None = None, teacher: PathLike | None = None,
    ) -> None:  # fmt: skip
        if recipe.balance and recipe.balance not in train.attributes:
            has = ", ".join(train.attributes) or "none"
            raise InputError(f"balance={recipe.balance!r}: the table has no such attribute (it has: {has})")
        if recipe.augment.flip and not train.info.keypoints.mirror:
            raise InputError(
                f"{train.info.dataset}: flip=true needs keypoints that change places in a mirror image, but "
                f"{train.info.keypoints.name} has no mirror pairs; name them left_ and right_, or train without flips"
            )
        if recipe.equivariance and isinstance(train.images, StreamedImages):
            raise InputError("equivariance: needs the crops in memory; raise --set memory=GB")
        self.train_table, self.valid_table, self.out, self.recipe, self.seed = train, valid, out, recipe, seed
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
            torch.default_generator.manual_seed(seed)
            self.net = create_model(model, len(train.info.keypoints), **(options or {}))
            self.net.initialize(train.points, train.mask)
        if start and not copy_matching(load_weights(start).net.state_dict(), self.net):
            raise InputError(f"{start}: no tensor matches {model} in name and shape; use weights of a similar network")
        self.net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(recipe, self.net)
        if self.net.task not in TASKS:
            raise InputError(f"{model}: cannot be trained as a whole; train its parts, then `recombinator join` them")
        if teacher and self.net.task != "score_maps":
            raise InputError(f"teacher {teacher}: is for networks with score maps of images; {model} has none")
        if recipe.equivariance and (self.net.task != "score_maps" or teacher):
            raise InputError(f"equivariance: is for networks with score maps of images, without a teacher; got {model}")
        if recipe.revive and not self.net.rectified():
            raise InputError(f"revive=true: {model} lists no rectified convolutions whose channels could be dead")
        if errors_of and self.net.task != "denoising":
            raise InputError(f"errors_of {errors_of}: is for a denoiser; {model} learns from images")
        teacher_net = load_teacher(errors_of or teacher, train)
        self.task = TASKS[self.net.task](self.net, train, valid, recipe, self.device, teacher_net)
        self.samples = len(epoch_rows(train, recipe))  # per epoch
        self.pseudo_labels = train.subsets.count(PSEUDO_LABELS)
        if self.samples < parallel.processes() or recipe.batch < parallel.processes():
            raise InputError(
                f"{parallel.processes()} processes need a batch of that many images; got batch={recipe.batch} and "
                f"{self.samples} training images"
            )
        self.steps = len(batches(torch.arange(self.samples), recipe.batch, parallel.processes()))  # per epoch
        self.position = Position()
        self.average = MovingAverage(self.net, recipe.ema) if recipe.ema else None
        self.revived = 0  # channels re-initialized before the current epoch
        self.settings = {
            "model": self.net.config, "recipe": recipe.to_dict(), "seed": seed, "data": train.fingerprint,
            "validation_data": valid.fingerprint, "dataset": train.info.dataset, "images": len(train),
            "validation_images": len(valid),
            **{
                name: str(resolve(given)) if given else None
                for name, given in (("start", start), ("errors_of", errors_of), ("teacher", teacher))
            },
        }  # fmt: skip

    # ---- the run ---------------------------------------------------------------------------------------------

    def fit(
        self, on_epoch: Callable[[dict[str, Any]], None] = lambda metrics: None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Any]:  # fmt: skip
        """Train from the current position to the end.

        Args:
            on_epoch: Called with each epoch's metrics, after its state is written.
            progress: As in `run_epoch`.

        Returns:
            The summary that is also written to summary.json.

        Raises:
            InputError: The loss or a validation error is not finite.
        """
        session = provenance() | {"bfloat16": self.task.bfloat16}
        session |= {"pseudo_labels": self.pseudo_labels} if self.pseudo_labels else {}
        if parallel.processes() > 1:
            session["processes"] = parallel.processes()
        if parallel.rank() == 0:
            begin_session(self.out, self.settings, session, self.position.epoch)
        while self.position.epoch < self.recipe.epochs and not self.out_of_patience:
            began = time.perf_counter()
            loss = self.run_epoch(progress)
            trained = time.perf_counter() - began
            if self.average:
                self.average.swap()
            errors = parallel.from_first(self.task.validate)
            parallel.copy_from_first(self.net.buffers())
            if not all(math.isfinite(v) for v in errors.values()):
                raise self._diverged(f"the validation error is not finite after epoch {self.position.epoch + 1}")
            self.position.epoch += 1
            self.position.seconds += time.perf_counter() - began

            metrics = {
                "epoch": self.position.epoch, "loss": loss, **errors,
                "images_per_second": self.samples / trained, "seconds": self.position.seconds,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
            }  # fmt: skip
            if self.recipe.revive:
                metrics["revived"] = self.revived
            if self.net.rectified():
                metrics["dead_channels"] = self._count_dead_channels()
            improved = errors["valid"] < self.position.best
            if improved:
                self.position.best, self.position.best_epoch = errors["valid"], self.position.epoch
            if improved and parallel.rank() == 0:
                self._save_best(errors["valid"], session)
            if self.average:
                self.average.swap()
            if parallel.rank() == 0:
                self._write_epoch(metrics)
            parallel.wait()
            on_epoch(metrics)
        summary = {
            "epochs": self.position.epoch, "best_epoch": self.position.best_epoch, "best_valid": self.position.best,
            "seconds": self.position.seconds,
        }  # fmt: skip
        if parallel.rank() == 0:
            write_json(self.out / "summary.json", summary)
        return summary

    def change_epochs(self, epochs: int) -> None:
        """Change the number of epochs between two epochs, and save the state.

        Before the learning rate falls, the run then equals one that began with this number of epochs.
        """
        self.recipe = self.task.recipe = replace(self.recipe, epochs=epochs)
        self.settings["recipe"] = self.recipe.to_dict()
        self.save("last.safetensors")

    def _save_best(self, error: float, session: dict[str, Any]) -> None:
        """Write the weights of the epoch with the lowest validation error so far."""
        training = {
            **self.settings, "epoch": self.position.epoch, "validation_nme_paper": error,
            "seconds": self.position.seconds, **session,
        }  # fmt: skip
        save_weights(self.out / "best.safetensors", self._weights(training))

    def _write_epoch(self, metrics: dict[str, Any]) -> None:
        """Write the state and the metrics of a finished epoch."""
        with open(self.out / "metrics.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(metrics) + "\n")
        if self.position.epoch == self.recipe.stable_epochs:
            copy_file(self.out / "best.safetensors", self.out / "stable-best.safetensors")
            self.save("stable.safetensors")
        self.save("last.safetensors")
        logger.info(
            f"epoch {metrics['epoch']:4d}  loss {metrics['loss']:8.3f}  valid {metrics['valid']:6.2f} %  "
            f"plain {metrics['clean']:6.2f} %  {metrics['images_per_second']:4.0f} img/s "
            f"{metrics['seconds']:6.0f} s"
        )

    @property
    def out_of_patience(self) -> bool:
        """Whether the recipe's `patience` ends the training now."""
        return bool(self.recipe.patience) and self.position.epoch - self.position.best_epoch >= self.recipe.patience

    # ---- one epoch -------------------------------------------------------------------------------------------

    def run_epoch(self, progress: Callable[[int, int], None] = lambda done, total: None) -> float:
        """Train on every sample once.

        Args:
            progress: Called after each optimizer step with the steps done and the steps of the whole run.

        Returns:
            The mean loss.

        Raises:
            InputError: The loss is not finite.
        """
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self._epoch_seed)  # for layers that draw random numbers, such as dropout
            return self._run_epoch(progress)

    @property
    def _epoch_seed(self) -> int:
        return self.seed * 1_000_003 + self.position.epoch

    def _run_epoch(self, progress: Callable[[int, int], None]) -> float:
        self.net.train()
        epoch = self.position.epoch
        generator = Generator().manual_seed(self._epoch_seed)
        order = epoch_order(self.train_table, self.recipe, generator)
        self.revived = 0
        if self.recipe.revive and epoch < self.recipe.stable_epochs:
            parts = order[:REVIVE_SAMPLES].split(64)
            inputs = torch.cat([self.task.inputs(part, generator) for part in parts])
            self.revived = revive(self.net, inputs, self.optimizer, generator)
        parallel.copy_from_first(t for t in self._tensors().values() if t.device.type == self.device.type)
        generator, total = parallel.own_generator(generator), 0.0
        whole = batches(order, self.recipe.batch, parallel.processes())
        parts = [parallel.part_of(index) for index in whole]
        if isinstance(self.train_table.images, StreamedImages):
            self.train_table.images.read_ahead(part.numpy() for part in parts)
        for i, (index, part) in enumerate(zip(whole, parts, strict=True)):
            step = epoch * self.steps + i
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate_at(step, self.steps)
            self.task.epoch = step / self.steps
            loss = self.task.loss(part, generator) * (len(part) / len(index))
            value = parallel.add_up(loss.item(), self.device)
            if not math.isfinite(value):
                files = ", ".join(self.train_table.files[j] for j in index[:3].tolist())
                raise self._diverged(f"the loss became {value} in epoch {epoch + 1}, batch {i + 1} ({files}, ...)")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            parallel.add_gradients(self.net.parameters())
            self.optimizer.step()
            if self.average:
                self.average.update(step)
            total += value * len(index)
            progress(step + 1, self.recipe.epochs * self.steps)
        return total / self.samples

    def _count_dead_channels(self) -> int:
        """Dead channels on training images spread over the table, augmented the same in every epoch."""
        n = len(self.train_table)
        index = torch.linspace(0, n - 1, min(n, COUNT_SAMPLES)).long()
        inputs = self.task.inputs(index, Generator().manual_seed(0))
        return count_dead_channels(self.net, inputs)

    def _diverged(self, problem: str) -> InputError:
        epoch = self.position.epoch
        last = f"the last good state is {self.out / 'last.safetensors'} (epoch {epoch})"
        return InputError(
            f"{self.out}: {problem}; {last if epoch else 'no epoch was finished before'}; try a lower learning rate"
        )

    # ---- saving and resuming ---------------------------------------------------------------------------------

    def _weights(self, training: dict[str, Any]) -> Weights:
        """The network with what prediction needs: keypoints, crop rule and mean face relative to the box."""
        table = self.train_table
        template = self.task.template.round(4).tolist()
        return Weights(self.net, table.info.keypoints, self.task.crop_rule, template, training)

    def save(self, name: str) -> None:
        """Write the complete state of the training to a file of the run."""
        meta = {"format": STATE, **self.settings, "position": asdict(self.position)}
        write_tensors(self.out / name, self._tensors(), meta)

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors that change in training: weights, buffers, the optimizer's state."""
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{k}": v for k, v in state.items()}
        if self.average:
            tensors |= {f"average.{i}": v for i, v in enumerate(self.average.values)}
        return tensors

    def restore(self) -> None:
        """Continue the run in `out` from the latest state that this recipe would also have reached.

        This is the last state. With another number of epochs it is a state before the learning rate fell under either
        recipe, or the start; a warning then names the epochs that are run again.

        Raises:
            InputError: There is no run, or it has other settings.
        """
        finished = -1  # epochs of the run so far
        for name in ("last.safetensors", "stable.safetensors"):
            if not (self.out / name).is_file():
                continue
            tensors, meta = read_state(self.out / name)
            check_same_settings(self.out, meta, self.settings)
            epoch = meta["position"]["epoch"]
            finished = max(finished, epoch)
            if self.recipe.epochs < finished:
                raise InputError(
                    f"{self.out}: has {finished} epochs already; use a larger number of epochs, or another --out"
                )
            earlier = replace(self.recipe, epochs=meta["recipe"]["epochs"])
            shared = min(earlier.stable_epochs, self.recipe.stable_epochs)
            if earlier.epochs == self.recipe.epochs or epoch <= shared:
                self._load_state(tensors, meta)
                break
        if finished < 0:
            raise InputError(f"{self.out}: nothing to resume (no last.safetensors); leave --resume out")
        parallel.wait()  # until every process has read the files
        if parallel.rank() == 0:
            if self.position.epoch < finished:
                self._go_back_from(finished)
            trim_metrics(self.out, self.position.epoch)

    def _go_back_from(self, finished: int) -> None:
        """Set the files of the run back to the current position, which is before epoch `finished`."""
        epoch = self.position.epoch
        logger.warning(
            f"{self.out}: with {self.recipe.epochs} epochs the learning rate falls later than it did; "
            f"epochs {epoch + 1} to {finished} are run again; best-{finished}.safetensors keeps the old best"
        )
        old_best = self.out / f"best-{finished}.safetensors"
        if not old_best.is_file():  # it exists if training was stopped in the first epoch that is run again
            copy_file(self.out / "best.safetensors", old_best)
        if epoch and (self.out / "stable-best.safetensors").is_file():
            copy_file(self.out / "stable-best.safetensors", self.out / "best.safetensors")
        self.save("last.safetensors")
        if not epoch:
            (self.out / "stable.safetensors").unlink(missing_ok=True)

    def _load_state(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.net.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("net.")})
        state = self.optimizer.state_dict()
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, i, field = key.split(".", 2)
                state["state"].setdefault(int(i), {})[field] = value
        self.optimizer.load_state_dict(state)
        for parameter, fields in self.optimizer.state.items():
            for field, value in fields.items():
                if value.shape == parameter.shape:  # fused steps need the memory format of the parameter
                    fields[field] = torch.empty_like(parameter).copy_(value)
        if self.average:
            for number, average in enumerate(self.average.values):
                average.copy_(tensors[f"average.{number}"])
        self.position = Position(**meta["position"])
