"""`fit`: from a file of points and its images to one model file and a report."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombinator.data.select import join_tables
from recombinator.data.table import SPLIT_SEED, FaceTable
from recombinator.evaluation import calibration
from recombinator.fit.measure import Measured, measure
from recombinator.fit.plan import Plan, changed, decide, examine
from recombinator.fit.report import write_reports
from recombinator.fit.samples import Sample, read_samples, repeated, training_tables, whole_table
from recombinator.fit.unlabeled import unlabeled_table
from recombinator.keypoints import KeypointSet
from recombinator.models import Cascade, ScoreMapNet
from recombinator.training.loop import Trainer
from recombinator.training.recipe import Recipe, get_recipe
from recombinator.training.tasks import FromPixels
from recombinator.transforms.augment import Augment
from recombinator.utils.errors import InputError
from recombinator.utils.files import lock_folder, write_json
from recombinator.utils.provenance import provenance
from recombinator.weights.files import Weights, resolve, save_weights

logger = logging.getLogger(__name__)

FEWEST = 10  # images
HELD_OUT = 0.1  # share of the images that are not trained on
HELD_OUT_RANGE = (5, 100)  # images
TRAINING_SHARE = 0.85  # of the time; the rest is for reading, calibration and the report
MOST_STEPS = 20_000  # per network; more changed nothing
TIMED_STEPS = 3
EQUIVARIANCE = 0.005  # weight of the equivariance term, with unlabeled images; chosen on MTFL
WEIGHTS = (1.0, 0.5, 0.0)  # factors on the coarse log-probability that held-out images choose from
VIEWS = 8  # jittered views of each held-out image that the temperature is fitted on
Progress = Callable[[int, int], None]
PathLike = str | os.PathLike[str]


class _Pixels(FromPixels):
    """Validate by the mean error in input pixels: other datasets' normalizing distances need not exist here."""

    def validate(self) -> dict[str, float]:
        table, net = self.valid, self.net
        seen = measure(net, table)
        return dict.fromkeys(("valid", "clean"), float(np.mean(seen.known_errors / seen.pixel[0])))


def hold_out(samples: Sequence[Sample], seed: int = SPLIT_SEED) -> tuple[list[Sample], list[Sample]]:
    """Split objects into those to train on and those to measure on, by image.

    Raises:
        InputError: there are too few images.
    """
    files = sorted({s.file for s in samples})
    if len(files) < FEWEST:
        raise InputError(f"expected {FEWEST} or more images with points, got {len(files)}; annotate some more")
    count = int(np.clip(round(HELD_OUT * len(files)), *HELD_OUT_RANGE))
    chosen = {files[i] for i in np.random.RandomState(seed).permutation(len(files))[:count]}
    return [s for s in samples if s.file not in chosen], [s for s in samples if s.file in chosen]


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


def _seconds_per_epoch(plan: Plan, table: FaceTable, size: int) -> tuple[float, Trainer]:
    """Time some steps, and return the seconds of an epoch and the trainer."""
    trainer = _trainer(plan, table, table, Path(), size, _recipe(plan, 1, plan.shift, _equivariance(table)), 0)
    generator, times = torch.Generator().manual_seed(0), []
    for _ in range(TIMED_STEPS + 1):  # the first one is slower
        began = time.perf_counter()
        trainer.task.loss(torch.arange(min(plan.batch, trainer.samples)), generator).backward()
        trainer.optimizer.step()
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:])) * trainer.steps, trainer


def _timed(plan: Plan, tables: Sequence[FaceTable], minutes: float) -> Plan:
    """Return the plan with the numbers of epochs that fit the time: half of it for each network."""
    seconds = 60 * minutes * TRAINING_SHARE / len(tables)
    epochs, lines = [0, 0], []
    for i, (table, size, name) in enumerate(zip(tables, (plan.size, plan.patch), ("coarse", "fine"), strict=False)):
        cost, trainer = _seconds_per_epoch(plan, table, size)
        epochs[i] = max(1, min(int(seconds / cost), -(-MOST_STEPS * plan.batch // trainer.samples)))
        lines.append(f"{name} network {epochs[i]} epochs of {trainer.samples} samples, {cost:.1f} s each")
    return replace(
        plan, coarse_epochs=epochs[0], fine_epochs=epochs[1],
        reasons=(*plan.reasons, f"time: {'; '.join(lines)}, of {minutes:g} minutes"),
    )  # fmt: skip


def _train(trainer: Trainer, resume: bool, progress: Progress) -> ScoreMapNet:
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
    return trainer.net.eval()  # type: ignore[return-value]


def _reach(net: ScoreMapNet, table: FaceTable, plan: Plan) -> float:
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
        seed: of all random numbers.
        resume: continue the trainings in `out`.
        stop_at_plan: return before the training.
        unlabeled: folder of images and videos without points, which the coarse network also learns from.
        on_plan: called with the complete plan before the training.
        progress: called after each step with steps done and in all, over both networks.

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
    if not plan.coarse_epochs:
        plan = _timed(plan, tables, minutes)
    on_plan(plan)
    if stop_at_plan:
        return plan, None
    write_json(out / "plan.json", plan.to_dict())
    steps = [n * e for n, e in zip(steps, (plan.coarse_epochs, plan.fine_epochs), strict=False)]
    total = sum(steps)
    small = whole_table(held_out, keypoints, plan.rule, plan.size, plan.channels, "valid")
    recipe = _recipe(plan, plan.coarse_epochs, plan.shift, _equivariance(tables[0]))
    trainer = _trainer(plan, tables[0], small, out / "coarse", plan.size, recipe, seed)
    coarse = _train(trainer, resume, lambda done, _: progress(done, total))
    training = {"fit": plan.to_dict(), "seed": seed, "images": len({s.file for s in train}), **provenance()}
    if plan.factor == 1:
        return plan, _calibrated(_weights(coarse, keypoints, plan, small, training), small, plan)
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
        return plan, _calibrated(_weights(coarse, keypoints, plan, small, training), small, plan)
    logger.info(f"two networks: mean held-out error {best:.2f} pixels, the coarse one alone {alone:.2f}")
    return plan, _calibrated(_weights(net, keypoints, plan, full, training), full, plan)


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


def fit(
    points: PathLike, out: PathLike, *, images: PathLike | None = None, test: PathLike | None = None,
    minutes: float = 30.0, seed: int = 0, boxes: bool = False, resume: bool = False, plan_only: bool = False,
    settings: dict[str, Any] | None = None, unlabeled: PathLike | None = None, allow_outside: bool = False,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Fit a localizer to annotated images.

    Writes OUT/model.safetensors, which `load` takes, OUT/report.html and OUT/report.json.

    Args:
        points: the points, in any format that `prepare points` reads.
        out: folder of the run, which is created.
        images: folder of the images; without it, the folder of `points`.
        test: points of further images, to measure on.
        minutes: time for everything, on this machine.
        seed: of all random numbers.
        boxes: boxes are given at prediction; without it, the model finds one object in the whole image.
        resume: continue the run in `out`, with its plan.
        plan_only: decide, and train nothing.
        settings: decisions to replace: fields of `recombinator.fit.plan.Plan`.
        unlabeled: folder of images and videos without points, for models of whole images. Its annotated images are left
            out. A resumed run needs the same folder.
        allow_outside: images outside the folder of the points file and `images` are allowed.
        on_plan: called with the complete plan before the training.
        progress: called after each step with steps done and in all.

    Returns:
        The report that is also in OUT/report.json; with `plan_only` the plan.

    Raises:
        InputError: the points or images cannot be used, or OUT holds a run already.
    """
    points, out = Path(points), Path(out)
    samples, keypoints = read_samples(points, Path(images) if images else None, allow_outside)
    train, held_out = hold_out(samples)
    began = time.perf_counter()
    stored = out / "plan.json"
    if resume and not stored.is_file():
        raise InputError(f"{out}: nothing to resume (no plan.json); leave --resume out")
    if stored.is_file() and not resume and not plan_only:
        raise InputError(f"{out}: already holds a run; continue it with --resume or choose another --out")
    if resume:
        plan = Plan.read(stored)
    else:
        plan = changed(decide(examine(samples, keypoints), keypoints, boxes=boxes), **(settings or {}))
    if unlabeled and plan.where != "image":
        raise InputError(
            "--unlabeled: is for models that see the whole image; without points there is no box to cut from an image"
        )
    further = Path(unlabeled) if unlabeled else None
    tested: list[Sample] = []
    if test:
        tested, named = read_samples(Path(test), Path(images) if images else None, allow_outside)
        if named.names != keypoints.names:
            raise InputError(f"{test}: has other keypoints than {points}")
    if plan_only:
        plan, _ = train_plan(
            plan, train, held_out, keypoints, out, minutes=minutes, stop_at_plan=True, unlabeled=further,
            on_plan=on_plan,
        )  # fmt: skip
        return plan.to_dict()
    with lock_folder(out):
        plan, weights = train_and_save(
            plan, train, held_out, keypoints, out, minutes=minutes, seed=seed, resume=resume, unlabeled=further,
            on_plan=on_plan, progress=progress,
        )  # fmt: skip
        parts: dict[str, tuple[list[Sample], Measured]] = {}
        for name, part in (("held_out", held_out), ("training", train), ("test", tested)):
            if part:
                parts[name] = (list(part), measure_samples(weights, part, plan, keypoints))
        seconds = time.perf_counter() - began
        return write_reports(out, str(points), keypoints, plan, parts, seconds, weights.training.get("chosen", {}))


def train_and_save(
    plan: Plan, train: Sequence[Sample], held_out: Sequence[Sample], keypoints: KeypointSet, out: Path, **options: Any
) -> tuple[Plan, Weights]:
    """Train a model by `train_plan`, and write it to OUT/model.safetensors."""
    plan, weights = train_plan(plan, train, held_out, keypoints, out, **options)
    assert weights is not None  # only a stop at the plan returns none
    save_weights(out / "model.safetensors", weights)
    return plan, weights


def measure_samples(weights: Weights, samples: Sequence[Sample], plan: Plan, keypoints: KeypointSet) -> Measured:
    """Measure a fitted model on objects."""
    net = weights.net
    table = whole_table(samples, keypoints, plan.rule, net.size, net.channels, "test")
    return measure(net, table, np.array([s.mm_per_pixel for s in samples]))
