"""Keep the trainings of `fit` to their time: numbers of epochs before the start, and again while they run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombinator.fit.plan import Plan
from recombinator.training.loop import Trainer
from recombinator.utils.files import write_json

logger = logging.getLogger(__name__)

TRAINING_SHARE = 0.85  # of the time; the rest is for reading, calibration and the report
FINDER_SHARE = 0.25  # of the training time: a finder starts from that of faces, second passes repair its errors
MOST_STEPS = 20_000  # per network; more changed nothing
TIMED_STEPS = 3
SLACK = 0.05  # relative change of the number of epochs that is not worth making
PERCENT = 100
Progress = Callable[[int, int], None]


def shares(plan: Plan) -> dict[str, float]:
    """Return the share of the training time of each network of a plan, in the order of their trainings."""
    finder = {"finder": FINDER_SHARE} if plan.where == "finder" else {}
    localizers = ["coarse", "fine"] if plan.factor > 1 else ["coarse"]
    return finder | dict.fromkeys(localizers, (1 - sum(finder.values())) / len(localizers))


def seconds_per_epoch(trainer: Trainer, batch: int) -> float:
    """Time some steps, and return the seconds of an epoch without its validation."""
    generator, times = torch.Generator().manual_seed(0), []
    for _ in range(TIMED_STEPS + 1):  # the first one is slower
        began = time.perf_counter()
        trainer.task.loss(torch.arange(min(batch, trainer.samples)), generator).backward()
        trainer.optimizer.step()
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:])) * trainer.steps


def fitting_epochs(seconds: float, cost: float, trainer: Trainer, batch: int) -> int:
    """Return how many epochs fit the time, at least one and at most MOST_STEPS steps."""
    return max(1, min(int(seconds / cost), -(-MOST_STEPS * batch // trainer.samples)))


@dataclass
class Schedule:
    """Train the networks of a plan one after the other, in the time that it was made for.

    After each epoch, the number of epochs follows from the time that they have taken. Networks share the time by
    `shares`; what one leaves over or takes too much is spread over the next ones. A plan whose numbers of epochs were
    given keeps them.

    Attributes:
        plan: The plan, with the numbers of epochs that are trained in the end.
        out: Folder of the run, whose plan.json follows.
        resume: Continue trainings that have begun.
        progress: Called with (percent done, 100).
        used: Seconds of the finished trainings.
        shown: Last value of `progress`.
    """

    plan: Plan
    out: Path
    resume: bool
    progress: Progress
    used: float = field(default=0.0, init=False)
    shown: int = field(default=0, init=False)

    def train(self, name: str, trainer: Trainer) -> Any:
        """Train one of the networks to the end, and return it with its averaged weights."""
        if self.resume and (trainer.out / "last.safetensors").is_file():
            trainer.restore()
        all_shares = shares(self.plan)
        before = sum(list(all_shares.values())[: list(all_shares).index(name)])
        share = all_shares[name]
        seconds = share / (1 - before) * (60 * self.plan.minutes * TRAINING_SHARE - self.used)

        def on_epoch(metrics: dict[str, Any]) -> None:
            if self.plan.minutes:
                self._keep_time(name, trainer, seconds)

        def on_step(done: int, total: int) -> None:
            self.shown = max(self.shown, int(PERCENT * (before + share * done / total)))  # `total` can grow
            self.progress(self.shown, PERCENT)

        logs = logging.getLogger("recombinator.training")
        level = logs.level
        logs.setLevel(logging.WARNING)  # its lines are for `train`
        try:
            trainer.fit(on_epoch, on_step)
        finally:
            logs.setLevel(level)
        self.used += trainer.position.seconds
        if trainer.average:
            trainer.average.swap()
        return trainer.net.eval()

    def _keep_time(self, name: str, trainer: Trainer, seconds: float) -> None:
        """Change the number of epochs to what fits the time, by the epochs so far."""
        done, planned = trainer.position.epoch, trainer.recipe.epochs
        wanted = fitting_epochs(seconds, trainer.position.seconds / done, trainer, self.plan.batch)
        wanted = max(wanted, done + 1)
        if done == planned or abs(wanted - planned) <= SLACK * planned:
            return
        if wanted > planned and done > trainer.recipe.stable_epochs:
            return  # the learning rate has begun to fall, and must not rise
        trainer.change_epochs(wanted)
        self.plan = replace(self.plan, **{f"{name}_epochs": wanted})  # type: ignore[arg-type]
        write_json(self.out / "plan.json", self.plan.to_dict())
        logger.info(f"{name} network: {wanted} epochs in place of {planned} fit the time")
