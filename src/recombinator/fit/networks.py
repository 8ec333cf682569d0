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

from recombinator.data.select import join_tables
from recombinator.data.table import FaceTable
from recombinator.evaluation import calibration
from recombinator.fit.finder import finder_table, finder_trainer, with_finder
from recombinator.fit.measure import measure
from recombinator.fit.plan import Plan
from recombinator.fit.samples import Sample, repeated, training_tables, whole_table
from recombinator.fit.schedule import TRAINING_SHARE, Progress, Schedule, fitting_epochs, seconds_per_epoch, shares
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

EQUIVARIANCE = 0.005  # weight of the equivariance term, with unlabeled images; chosen on MTFL
WEIGHTS = (1.0, 0.5, 0.0)  # factors on the coarse log-probability that held-out images choose from
VIEWS = 8  # jittered views of each held-out image that the temperature is fitted on


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


def _timed(
    plan: Plan, tables: Sequence[FaceTable], images: tuple[FaceTable, FaceTable] | None, minutes: float
) -> Plan:  # fmt: skip
    """Return the plan with the numbers of epochs that fit the time; those that were given stay.

    Args:
        plan: The decisions.
        tables: The localizer's training tables.
        images: The finder's tables, if there is one.
        minutes: Time for everything.
    """
    epochs, lines = dict[str, Any](), []
    given = {"finder": plan.finder_epochs, "coarse": plan.coarse_epochs}
    for name, share in shares(plan).items():
        if name == "finder":
            assert images
            trainer = finder_trainer(plan, images, Path(), 1, _augment(plan, 0.0), 0)
        else:
            table, size = (tables[0], plan.size) if name == "coarse" else (tables[1], plan.patch)
            trainer = _trainer(plan, table, table, Path(), size, _recipe(plan, 1, plan.shift, _equivariance(table)), 0)
        cost = seconds_per_epoch(trainer, plan.batch)
        if name == "finder":  # whose validation takes as long as many steps
            began = time.perf_counter()
            trainer.task.validate()
            cost += time.perf_counter() - began
        fitting = fitting_epochs(60 * minutes * TRAINING_SHARE * share, cost, trainer, plan.batch)
        count = epochs[f"{name}_epochs"] = given.get(name) or fitting
        lines.append(f"{name} network {count} epochs of {trainer.samples} samples, {cost:.1f} s each")
    if plan.coarse_epochs:
        epochs["fine_epochs"] = plan.fine_epochs
    else:
        epochs["minutes"] = minutes
    return replace(plan, **epochs, reasons=(*plan.reasons, f"time: {'; '.join(lines)}, of {minutes:g} minutes"))


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
        plan: The decisions; where it has no numbers of epochs, they are chosen to fit the time.
        train: The objects to train on.
        held_out: The objects that choose between one and two networks, and that calibrate.
        keypoints: Their keypoint set.
        out: Folder of the run.
        minutes: Time for everything.
        seed: Seed of the initial weights, the order of the images and the augmentation.
        resume: Continue the trainings in `out`.
        stop_at_plan: Return before the training.
        unlabeled: Folder of images and videos without points, which the coarse network also learns from.
        on_plan: Called with the complete plan before the training.
        progress: Called after each step with (percent done, 100), over all networks.

    Returns:
        The complete plan, and the calibrated model; None with `stop_at_plan`.
    """
    tables = training_tables(
        train, keypoints, plan.rule, plan.size, plan.factor, plan.patch, plan.channels, fine=plan.factor > 1
    )
    tables = [repeated(table) for table in tables]
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
    schedule = Schedule(plan, out, resume, progress)
    finder = None
    if images:
        finder = finder_trainer(plan, images, out / "finder", plan.finder_epochs, _augment(plan, 0.0), seed + 2)
        schedule.train("finder", finder)
    training = {"seed": seed, "images": len({s.file for s in train}), **provenance()}
    localizer = _localizer(schedule, tables, held_out, keypoints, out, seed, training)
    plan = schedule.plan
    if finder:
        localizer = with_finder(localizer, finder, {**localizer.training, "epochs": plan.finder_epochs})
    return plan, localizer


def _localizer(
    schedule: Schedule, tables: Sequence[FaceTable], held_out: Sequence[Sample], keypoints: KeypointSet, out: Path,
    seed: int, training: dict[str, Any],
) -> Weights:  # fmt: skip
    """Train the networks of a localizer, choose between one and two, and calibrate.

    Args:
        schedule: Trains the networks of the plan.
        tables: Training tables of the coarse network, and of the fine one if there is one.
        held_out: See `train_plan`.
        keypoints: See `train_plan`.
        out: See `train_plan`.
        seed: See `train_plan`.
        training: Settings of the training, for the weights file; plan and choice between the networks are added.
    """
    plan = schedule.plan
    small = whole_table(held_out, keypoints, plan.rule, plan.size, plan.channels, "valid")
    recipe = _recipe(plan, plan.coarse_epochs, plan.shift, _equivariance(tables[0]))
    trainer = _trainer(plan, tables[0], small, out / "coarse", plan.size, recipe, seed)
    coarse = schedule.train("coarse", trainer)
    if plan.factor == 1:
        training["fit"] = schedule.plan.to_dict()
        return _calibrated(_weights(coarse, keypoints, plan, small, training), small, plan)
    reach = _reach(coarse, small, plan)
    patches = training_tables(
        held_out, keypoints, plan.rule, plan.size, plan.factor, plan.patch, plan.channels
    )[1]  # fmt: skip
    trainer = _trainer(
        plan, tables[1], patches, out / "fine", plan.patch, _recipe(plan, plan.fine_epochs, reach), seed + 1
    )
    fine = schedule.train("fine", trainer)
    training["fit"] = schedule.plan.to_dict()
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
