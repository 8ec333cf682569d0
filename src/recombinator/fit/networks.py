"""Train, choose and calibrate the networks of a plan."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombinator.data.select import join_tables
from recombinator.data.table import FaceTable
from recombinator.evaluation import calibration
from recombinator.fit.finder import finder_table, finder_trainer, with_finder
from recombinator.fit.measure import measure
from recombinator.fit.plan import Plan
from recombinator.fit.samples import Sample, repeated, training_tables, whole_table
from recombinator.fit.unlabeled import unlabeled_table
from recombinator.keypoints import KeypointSet
from recombinator.models import Cascade, KeypointNet
from recombinator.training.loop import Trainer
from recombinator.training.recipe import Recipe, get_recipe
from recombinator.training.tasks import FromPixels
from recombinator.transforms.augment import Augment
from recombinator.utils.files import write_json
from recombinator.utils.provenance import provenance
from recombinator.weights.files import Weights, resolve

logger = logging.getLogger(__name__)

TRAINING_SHARE = 0.85  # of the time; the rest is for reading, calibration and the report
FINDER_SHARE = 0.25  # of the training time: a finder starts from one of faces, and small errors of its squares are free
MOST_STEPS = 20_000  # per network; more changed nothing
TIMED_STEPS = 3
EQUIVARIANCE = 0.005  # weight of the equivariance term, with unlabeled images; chosen on MTFL
WEIGHTS = (1.0, 0.5, 0.0)  # factors on the coarse log-probability that held-out images choose from
VIEWS = 8  # jittered views of each held-out image that the temperature is fitted on
Progress = Callable[[int, int], None]


class _Pixels(FromPixels):
    """Validate by the mean error in input pixels: other datasets' normalizing distances need not exist here."""

    def validate(self) -> dict[str, float]:
        table, net = self.valid, self.net
        seen = measure(net, table)
        return dict.fromkeys(("valid", "clean"), float(np.mean(seen.known_errors / seen.pixel[0])))


def _augment(plan: Plan, shift: float) -> Augment:
    return Augment(
        shift=shift, zoom=plan.zoom, degrees=plan.degrees, turned=0.0, flip=plan.flip, occlude=(0, 0), gamma=0.5
    )


def _recipe(plan: Plan, epochs: int, shift: float, equivariance: float = 0.0) -> Recipe:
    recipe = get_recipe("fast", plan.model, epochs=epochs, batch=plan.batch, ema=0.999, equivariance=equivariance)
    return replace(recipe, augment=_augment(plan, shift), ramp=epochs // 4 if equivariance else 0)


def _trainer(
    plan: Plan, table: FaceTable, valid: FaceTable, out: Path, size: int, recipe: Recipe, seed: int
) -> Trainer:
    options: dict[str, Any] = {"size": size, **({"channels": plan.channels} if plan.channels != 1 else {})}
    start = resolve(plan.start) if plan.start else None
    trainer = Trainer(plan.model, table, valid, out, recipe, seed=seed, options=options, start=start)
    trainer.task = _Pixels(trainer.net, table, valid, recipe, trainer.device)
    return trainer


def _equivariance(table: FaceTable) -> float:
    """Return the weight of the equivariance term: EQUIVARIANCE for a table with unlabeled images."""
    return 0.0 if table.mask.any(axis=1).all() else EQUIVARIANCE


def _seconds_per_epoch(trainer: Trainer, batch: int) -> float:
    """Time some steps, and return the seconds of an epoch without its validation."""
    generator, times = torch.Generator().manual_seed(0), []
    for _ in range(TIMED_STEPS + 1):  # the first one is slower
        began = time.perf_counter()
        trainer.task.loss(torch.arange(min(batch, trainer.samples)), generator).backward()
        trainer.optimizer.step()
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:])) * trainer.steps


def _timed(
    plan: Plan, tables: Sequence[FaceTable], images: tuple[FaceTable, FaceTable] | None, minutes: float
) -> Plan:  # fmt: skip
    """Return the plan with the numbers of epochs that fit the time: FINDER_SHARE for a finder, half of it otherwise.

    Args:
        plan: the decisions.
        tables: the localizer's training tables.
        images: the finder's tables, if there is one.
        minutes: time for everything.
    """
    seconds = 60 * minutes * TRAINING_SHARE
    epochs, lines = [0, 0], []
    finder_epochs = plan.finder_epochs
    if images:
        trainer = finder_trainer(plan, images, Path(), 1, _augment(plan, 0.0), 0)
        began = time.perf_counter()
        trainer.task.validate()  # which takes as long as many steps
        cost = time.perf_counter() - began + _seconds_per_epoch(trainer, plan.batch)
        finder_epochs = finder_epochs or _epochs(FINDER_SHARE * seconds, cost, trainer, plan)
        lines.append(f"finder {finder_epochs} epochs of {trainer.samples} samples, {cost:.1f} s each")
        seconds *= 1 - FINDER_SHARE
    seconds /= len(tables)
    for i, (table, size, name) in enumerate(zip(tables, (plan.size, plan.patch), ("coarse", "fine"), strict=False)):
        trainer = _trainer(plan, table, table, Path(), size, _recipe(plan, 1, plan.shift, _equivariance(table)), 0)
        cost = _seconds_per_epoch(trainer, plan.batch)
        epochs[i] = _epochs(seconds, cost, trainer, plan)
        lines.append(f"{name} network {epochs[i]} epochs of {trainer.samples} samples, {cost:.1f} s each")
    if plan.coarse_epochs:
        epochs = [plan.coarse_epochs, plan.fine_epochs]
    return replace(
        plan, coarse_epochs=epochs[0], fine_epochs=epochs[1], finder_epochs=finder_epochs,
        reasons=(*plan.reasons, f"time: {'; '.join(lines)}, of {minutes:g} minutes"),
    )  # fmt: skip


def _epochs(seconds: float, cost: float, trainer: Trainer, plan: Plan) -> int:
    """Return how many epochs fit the time, at least one and at most MOST_STEPS steps."""
    return max(1, min(int(seconds / cost), -(-MOST_STEPS * plan.batch // trainer.samples)))


def _train(trainer: Trainer, resume: bool, progress: Progress) -> Any:
    """Train a network to the end, and return it with its averaged weights."""
    if resume and (trainer.out / "last.safetensors").is_file():
        trainer.restore()
    level = logging.getLogger("recombinator.training").level
    logging.getLogger("recombinator.training").setLevel(logging.WARNING)  # its lines are for `train`
    try:
        trainer.fit(progress=progress)
    finally:
        logging.getLogger("recombinator.training").setLevel(level)
    if trainer.average:
        trainer.average.swap()
    return trainer.net.eval()


def _reach(net: KeypointNet, table: FaceTable, plan: Plan) -> float:
    """Return the jitter of patches, as a share of their side, that covers nine in ten of the coarse errors."""
    seen = measure(net, table)
    cells = np.abs(seen.predicted - seen.true).max(axis=2)[seen.known] / np.repeat(seen.pixel, seen.known.sum(axis=1))
    return float(np.clip(np.quantile(cells, 0.9) * plan.factor / plan.patch, 0.08, 0.25).round(3))


def _weights(net: Any, keypoints: KeypointSet, plan: Plan, table: FaceTable, training: dict[str, Any]) -> Weights:
    template = np.nan_to_num(table.template, nan=0.5).round(4).tolist()
    net.config = json.loads(json.dumps(net.config))
    return Weights(net.eval(), keypoints, plan.rule, template, training)


def train_plan(
    plan: Plan, train: Sequence[Sample], held_out: Sequence[Sample], keypoints: KeypointSet, out: Path, *,
    minutes: float, seed: int = 0, resume: bool = False, stop_at_plan: bool = False, unlabeled: Path | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None, progress: Progress = lambda done, total: None,
) -> tuple[Plan, Weights | None]:  # fmt: skip
    """Train, choose and calibrate a model.

    Args:
        plan: the decisions; where it has no numbers of epochs, they are chosen to fit the time.
        train: the objects to train on.
        held_out: the objects that choose between one and two networks, and that calibrate.
        keypoints: their keypoint set.
        out: folder of the run.
        minutes: time for everything.
        seed: seed of the initial weights, the order of the images and the augmentation.
        resume: continue the trainings in `out`.
        stop_at_plan: return before the training.
        unlabeled: folder of images and videos without points, which the coarse network also learns from.
        on_plan: called with the complete plan before the training.
        progress: called after each step with steps done and in all, over all networks.

    Returns:
        The complete plan, and the calibrated model; None with `stop_at_plan`.
    """
    tables = training_tables(
        train, keypoints, plan.rule, plan.size, plan.factor, plan.patch, plan.channels, fine=plan.factor > 1
    )
    tables = [repeated(table) for table in tables]
    steps = [-(-len(t) // plan.batch) for t in tables]
    if unlabeled:
        excluded = {s.path.resolve() for s in (*train, *held_out)}
        size = tables[0].info.size
        tables[0] = join_tables(
            [tables[0], unlabeled_table(unlabeled, keypoints, plan.rule, size, plan.channels, excluded)]
        )
    images = None
    if plan.where == "finder":
        images = (
            finder_table(train, keypoints, plan.finder_size, plan.channels, "train"),
            finder_table(held_out, keypoints, plan.finder_size, plan.channels, "valid"),
        )
    if not plan.coarse_epochs or (images and not plan.finder_epochs):
        plan = _timed(plan, tables, images, minutes)
    on_plan(plan)
    if stop_at_plan:
        return plan, None
    write_json(out / "plan.json", plan.to_dict())
    steps = [n * e for n, e in zip(steps, (plan.coarse_epochs, plan.fine_epochs), strict=False)]
    training = {"fit": plan.to_dict(), "seed": seed, "images": len({s.file for s in train}), **provenance()}
    if images is None:
        return plan, _localizer(plan, tables, steps, held_out, keypoints, out, seed, resume, training, progress)
    finder = finder_trainer(plan, images, out / "finder", plan.finder_epochs, _augment(plan, 0.0), seed + 2)
    first = plan.finder_epochs * finder.steps
    total = first + sum(steps)
    _train(finder, resume, lambda done, _: progress(done, total))
    localizer = _localizer(
        plan, tables, steps, held_out, keypoints, out, seed, resume, training,
        lambda done, _: progress(first + done, total),
    )  # fmt: skip
    return plan, with_finder(localizer, finder, {**training, "epochs": plan.finder_epochs})


def _localizer(
    plan: Plan, tables: Sequence[FaceTable], steps: Sequence[int], held_out: Sequence[Sample], keypoints: KeypointSet,
    out: Path, seed: int, resume: bool, training: dict[str, Any], progress: Progress,
) -> Weights:  # fmt: skip
    """Train the networks of a localizer, choose between one and two, and calibrate.

    Args:
        plan: the complete plan.
        tables: training tables of the coarse network, and of the fine one if there is one.
        steps: optimizer steps of each network's training.
        held_out: see `train_plan`.
        keypoints: see `train_plan`.
        out: see `train_plan`.
        seed: see `train_plan`.
        resume: see `train_plan`.
        training: settings of the training, for the weights file; the choice between the networks is added.
        progress: called after each step with steps done and in all, over both networks.
    """
    total = sum(steps)
    small = whole_table(held_out, keypoints, plan.rule, plan.size, plan.channels, "valid")
    recipe = _recipe(plan, plan.coarse_epochs, plan.shift, _equivariance(tables[0]))
    trainer = _trainer(plan, tables[0], small, out / "coarse", plan.size, recipe, seed)
    coarse = _train(trainer, resume, lambda done, _: progress(done, total))
    if plan.factor == 1:
        return _calibrated(_weights(coarse, keypoints, plan, small, training), small, plan)
    reach = _reach(coarse, small, plan)
    patches = training_tables(
        held_out, keypoints, plan.rule, plan.size, plan.factor, plan.patch, plan.channels
    )[1]  # fmt: skip
    trainer = _trainer(
        plan, tables[1], patches, out / "fine", plan.patch, _recipe(plan, plan.fine_epochs, reach), seed + 1
    )
    fine = _train(trainer, resume, lambda done, _: progress(steps[0] + done, total))
    full = whole_table(held_out, keypoints, plan.rule, plan.size * plan.factor, plan.channels, "valid")
    sharpness = float(
        calibration.fit(coarse, small, _augment(plan, plan.shift), occlude=False, draws=VIEWS)["temperature"]
    )
    rows = []
    for weight in WEIGHTS:
        net = Cascade(coarse, fine, plan.factor, weight, sharpness).eval()
        rows.append((_capped_error(net, full, plan), weight, net))
    alone = _capped_error(coarse, small, plan)
    best, weight, net = min(rows, key=lambda row: row[0])
    training["chosen"] = {"coarse": alone, **{f"weight {w:g}": e for e, w, _ in rows}, "jitter": reach}
    if alone <= best:
        logger.info(f"one network: mean held-out error {alone:.2f} pixels, with the fine network {best:.2f}")
        return _calibrated(_weights(coarse, keypoints, plan, small, training), small, plan)
    logger.info(f"two networks: mean held-out error {best:.2f} pixels, the coarse one alone {alone:.2f}")
    return _calibrated(_weights(net, keypoints, plan, full, training), full, plan)


def _capped_error(net: Any, table: FaceTable, plan: Plan) -> float:
    """Return the mean error in image pixels, each at most half a patch.

    A larger one is a failure of the coarse network, which no choice here repairs; among few held-out points, one such
    error would decide alone.
    """
    seen = measure(net, table)
    cap = seen.pixel * net.size / (plan.size * plan.factor) * plan.patch / 2
    return float(np.mean(np.minimum(seen.errors, cap[:, None])[seen.known]))


def _calibrated(weights: Weights, table: FaceTable, plan: Plan) -> Weights:
    fitted = calibration.fit(weights.net, table, _augment(plan, plan.shift), occlude=False, draws=VIEWS)
    if plan.where == "image":
        fitted["least"] = 0.0  # every image is assumed to have its object
    return weights.calibrated(fitted)
