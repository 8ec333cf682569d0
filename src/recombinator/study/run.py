"""Run the trainings of a study one after the other; each can be resumed, each writes one file to results/."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from recombinator.data.table import FaceTable, load_table, read_info
from recombinator.evaluation.tables import evaluate, write_per_image
from recombinator.study.archive import archive_weights
from recombinator.study.plan import STUDIES, Run, Study, run_at
from recombinator.study.result import read_result
from recombinator.training.files import read_metrics, read_run, read_summary
from recombinator.training.loop import Trainer
from recombinator.training.recipe import Recipe, get_recipe
from recombinator.training.run import train
from recombinator.utils.errors import InputError, check_choice
from recombinator.utils.files import Busy, copy_file, is_locked, lock_folder, write_json, write_text
from recombinator.utils.provenance import provenance
from recombinator.utils.schema import decode, parse_json

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def get_study(name: str) -> Study:
    """Return a study by name. Raises InputError for an unknown one."""
    check_choice("study", name, STUDIES)
    return STUDIES[name]


def recipe_of(study: Study, run: Run, epochs: int | None) -> Recipe:
    """Return the recipe of a run; `epochs` replaces the study's number."""
    changes: dict[str, Any] = {"epochs": study.epochs, **study.shared, **run.changes}
    changes["epochs"] = (epochs or changes["epochs"]) * run.part
    return get_recipe("fast", run.model, **changes)


def result_path(root: Path, study: str, run: Run) -> Path:
    """Return the path of a run's result file."""
    return root / "results" / study / f"{run.name}.json"


def finished(path: Path, run: Run, recipe: Recipe, seed: int) -> bool:
    """Return whether `path` holds the result of exactly this network, recipe and seed.

    For a run that shares the training of another one, the network is that of the other run.
    """
    if run.same:
        run = run_at(run.same)[1]
    try:
        return _is_training_of(read_result(path)["training"], run, recipe, seed)
    except (OSError, InputError, KeyError, AttributeError):
        return False


def _is_training_of(settings: dict[str, Any], run: Run, recipe: Recipe, seed: int) -> bool:
    """Return whether a training's settings are exactly this network, recipe and seed."""
    model = {k: v for k, v in settings["model"].items() if k != "keypoints"}
    expected = json.loads(json.dumps({"name": run.model, **run.options}))
    return (model, Recipe.from_dict(settings["recipe"]), settings["seed"]) == (expected, recipe, seed)


def _measure_test_error(name: str, out: Path, test: FaceTable, metrics: dict[str, Any]) -> None:
    """Evaluate the best weights so far on the test table and append the result to OUT/watched.jsonl."""
    report = evaluate(out, test)[1]
    row = {"epoch": metrics["epoch"], "chosen": report["training"]["epoch"], "nme_paper": report["nme_paper"]}
    earlier = [e for e in _test_errors(out) if e["epoch"] < row["epoch"]]
    write_text(out / "watched.jsonl", "".join(json.dumps(e) + "\n" for e in [*earlier, row]))
    logger.info(f"{name}: epoch {row['epoch']}, test {row['nme_paper']:.2f} %")


def _test_errors(out: Path) -> list[dict[str, Any]]:
    path = out / "watched.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [decode(dict[str, Any], parse_json(t, f"{path}:{i}"), f"{path}:{i}") for i, t in enumerate(lines, 1)]


def run_study(
    name: str, data: Path, root: Path, runs: Path, *, epochs: int | None = None, seed: int = 0, only: str = "",
    exact: bool = False, device: str = "auto", progress: Progress = lambda done, total: None,
) -> int:  # fmt: skip
    """Train and evaluate the runs of a study that have no result yet.

    Several processes can work on one study: a run that another process is training is skipped. The outcome of
    each run is logged at level INFO.

    Args:
        name: One of `STUDIES`.
        data: Folder with train.parquet, valid.parquet and test.parquet.
        root: Folder whose results/ gets the results.
        runs: Folder of the trainings; an interrupted one continues from its last epoch.
        epochs: Epochs of every run; None: the study's number.
        seed: Seed of every run.
        only: Only run those whose name contains this text.
        exact: Only run the one whose whole name is `only`.
        device: As in `train`.
        progress: Called after each optimizer step with steps done and steps in all of the current run.

    Returns:
        The number of runs that were trained now.

    Raises:
        InputError: The study is unknown, it has no such run, or a table is missing or was not written by `prepare`.
    """
    study, done = get_study(name), 0
    for split in ("train", "valid", "test"):  # before anything is trained
        read_info(data / f"{split}.parquet")
    chosen = [r for r in study.runs if (only == r.name if exact else only in r.name)]
    if not chosen:
        known = ", ".join(r.name for r in study.runs)
        raise InputError(f"study {name} has no run whose name contains {only!r}: {known}")
    for i, run in enumerate(chosen, 1):
        recipe, path = recipe_of(study, run, epochs), result_path(root, name, run)
        place = f"{i} of {len(chosen)}, {run.name}"
        if finished(path, run, recipe, seed):
            logger.info(f"{place}: done before")
            _archive_finished(root, name, run, runs, data, path)
            continue
        if run.same:
            other, twin = run_at(run.same)
            done += run_study(
                other, data, root, runs, epochs=epochs, seed=seed, only=twin.name, exact=True, device=device,
                progress=progress,
            )  # fmt: skip
            source = result_path(root, other, twin)
            if not finished(source, twin, recipe, seed):
                logger.info(f"{place}: waits for {run.same}")
                continue
            report = read_result(source)
            if source.with_suffix(".images.parquet").is_file():  # a checkout has the report alone
                copy_file(source.with_suffix(".images.parquet"), path.with_suffix(".images.parquet"))
            write_json(path, report | {"study": name, "run": run.name, "same": run.same})
            logger.info(f"{place}: copied from {run.same}")
            continue
        try:
            with lock_folder(runs / name / run.name):
                if finished(path, run, recipe, seed):  # by another process in the meantime
                    continue
                logger.info(f"{place}: {recipe.epochs} epochs in {runs / name / run.name}")
                summary = _train_and_evaluate(
                    study, run, data, runs / name / run.name, path, recipe, seed, device, progress
                )
        except Busy:
            logger.info(f"{place}: skipped, another process is training it")
            continue
        done += 1
        logger.info(f"{place}: {summary}")
    return done


def _train_and_evaluate(
    study: Study, run: Run, data: Path, out: Path, path: Path, recipe: Recipe, seed: int, device: str,
    progress: Progress,
) -> str:  # fmt: skip
    """Train and evaluate one run, write its result to `path`, and return a line about it."""
    rows, test = pq.read_metadata(data / "train.parquet").num_rows, data / "test.parquet"

    table = load_table(test, int(run.options.get("channels", 1)))  # decoded once, however often it is evaluated

    def on_epoch(metrics: dict[str, Any]) -> None:
        if study.watched:
            _measure_test_error(run.name, out, table, metrics)

    summary = _summary_of(out, run, recipe, seed) or train(
        run.model, data, out, recipe=recipe, seed=seed, resume=(out / "last.safetensors").is_file(), device=device,
        options=dict(run.options), on_epoch=on_epoch, progress=progress,
        limit=rows // run.part if run.part > 1 else None,
    )  # fmt: skip
    result, report = evaluate(out, table)
    metrics = read_metrics(out)
    curve = [{k: line[k] for k in ("epoch", "seconds", "valid", "clean", "images_per_second")} for line in metrics]
    if study.watched:  # a killed process can leave an epoch without its test error; that of the last one is known
        errors = {row["epoch"]: row["nme_paper"] for row in _test_errors(out)}
        errors[curve[-1]["epoch"]] = report["nme_paper"]
        curve = [{**point, "test": errors.get(point["epoch"])} for point in curve]
    write_per_image(path.with_suffix(".images.parquet"), result)
    study_name, root = path.parent.name, path.parent.parent.parent
    labels = {"kind": "study", "study": study_name, "run": run.name, "curve": curve, "provenance": provenance()}
    archived = archive_weights(root, f"{study_name}/{run.name}", out, table, report["nme_paper"])
    write_json(path, report | labels | {"archived": archived})
    return (
        f"{report['nme_paper']:.2f} % on {report['data']['images']} images, epoch {summary['best_epoch']} of "
        f"{summary['epochs']}, {summary['seconds'] / 60:.1f} min; {path}"
    )


def _summary_of(out: Path, run: Run, recipe: Recipe, seed: int) -> dict[str, Any] | None:
    """Return the summary of a finished training in `out`, such as one copied from another machine, or None."""
    summary, settings = read_summary(out), read_run(out)
    if not summary or not settings or not _is_training_of(settings, run, recipe, seed):
        return None
    return summary if summary["epochs"] == recipe.epochs else None


def _archive_finished(root: Path, study: str, run: Run, runs: Path, data: Path, path: Path) -> None:
    """Archive the weights of a run that was finished by a version without archives, if its folder still exists."""
    report = read_result(path)
    out = runs / (run.same or f"{study}/{run.name}")
    if "archived" in report or not (out / "best.safetensors").is_file():
        return
    place = run.same or f"{study}/{run.name}"
    report["archived"] = archive_weights(root, place, out, data / "test.parquet", report["nme_paper"])
    write_json(path, report)


def cost(study: Study, run: Run, data: Path, epochs: int | None) -> float:
    """Estimate the seconds of a training on this machine from three steps, validation not counted."""
    table = load_table(data / "train.parquet", int(run.options.get("channels", 1)), limit=64)
    recipe = recipe_of(study, run, epochs)
    trainer = Trainer(run.model, table, table, Path(), recipe, options=dict(run.options))
    generator, times = torch.Generator().manual_seed(0), []
    for _ in range(3):
        began = time.perf_counter()
        trainer.task.loss(torch.arange(min(recipe.batch, len(table))), generator).backward()
        trainer.optimizer.step()
        times.append(time.perf_counter() - began)
    steps = -(-(pq.read_metadata(data / "train.parquet").num_rows // run.part) // recipe.batch)
    return min(times) * steps * recipe.epochs


def state(name: str, root: Path, runs: Path, epochs: int | None, seed: int) -> list[dict[str, Any]]:
    """Return how far each run of a study is.

    Returns:
        One row per run: run (its name), state ("done", "running", "begun" or "open"), epoch (finished ones), epochs (of
        the whole run) and same (STUDY/RUN whose training it shares, or "").
    """
    study, rows = get_study(name), []
    for run in study.runs:
        recipe, where = recipe_of(study, run, epochs), run.same or f"{name}/{run.name}"
        metrics = runs / where / "metrics.jsonl"
        epoch = len(metrics.read_text(encoding="utf-8").splitlines()) if metrics.is_file() else 0
        done = finished(result_path(root, name, run), run, recipe, seed)
        now = "done" if done else "running" if is_locked(runs / where) else "begun" if epoch else "open"
        rows.append({"run": run.name, "epoch": epoch, "epochs": recipe.epochs, "same": run.same, "state": now})
    return rows
