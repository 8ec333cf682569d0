"""Runs a study's trainings one after the other, each resumable, each ending in a file under results/."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from recombinator.data.table import load_table, read_info
from recombinator.evaluation.tables import evaluate, write_per_image
from recombinator.study.archive import archive_weights
from recombinator.study.plan import STUDIES, Run, Study, run_at
from recombinator.training.loop import Trainer
from recombinator.training.recipe import Recipe, get_recipe
from recombinator.training.run import train
from recombinator.utils.errors import InputError
from recombinator.utils.files import Busy, copy_file, is_locked, lock_folder, write_json, write_text
from recombinator.utils.provenance import provenance


def get_study(name: str) -> Study:
    if name not in STUDIES:
        raise InputError(f"no study is called {name!r}: use one of {', '.join(STUDIES)}")
    return STUDIES[name]


def recipe_of(study: Study, run: Run, epochs: int | None) -> Recipe:
    changes: dict[str, Any] = {"epochs": study.epochs, **study.shared, **run.changes}
    changes["epochs"] = (epochs or changes["epochs"]) * run.part
    return get_recipe("fast", run.model, **changes)


def result_path(root: Path, study: str, run: Run) -> Path:
    return root / "results" / study / f"{run.name}.json"


def finished(path: Path, run: Run, recipe: Recipe, seed: int) -> bool:
    """True where `path` holds the result of this very network, recipe and seed; for a run that takes its result from
    another one, of that one's."""
    if run.same:
        run = run_at(run.same)[1]
    try:
        training = json.loads(path.read_text(encoding="utf-8"))["training"]
        model = {k: v for k, v in training["model"].items() if k != "keypoints"}
        theirs = Recipe.from_dict(training["recipe"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        return False
    wanted = json.loads(json.dumps({"name": run.model, **run.options}))
    return (model, theirs, training["seed"]) == (wanted, recipe, seed)


def _line(report: Callable[[str], None], name: str, out: Path, watched: Path | None, line: dict[str, Any]) -> None:
    """Tells of an epoch; with `watched`, a test table, also measures what is best so far, and keeps that in `out`."""
    text = f"{name}: epoch {line['epoch']}, validation {line['valid']:.2f} %, {line['seconds']:.0f} s"
    if watched:
        told = evaluate(out, watched)[1]
        seen = {"epoch": line["epoch"], "chosen": told["training"]["epoch"], "nme_paper": told["nme_paper"]}
        earlier = [e for e in _watched(out) if e["epoch"] < seen["epoch"]]
        write_text(out / "watched.jsonl", "".join(json.dumps(e) + "\n" for e in [*earlier, seen]))
        text += f", test {told['nme_paper']:.2f} %"
    report(text)


def _watched(out: Path) -> list[dict[str, Any]]:
    path = out / "watched.jsonl"
    return [json.loads(t) for t in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def run_study(
    name: str, data: Path, root: Path, runs: Path, *, epochs: int | None = None, seed: int = 0, only: str = "",
    exact: bool = False, device: str = "auto", report: Callable[[str], None] = print,
    step_done: Callable[[int, int], None] = lambda i, n: None,
) -> int:  # fmt: skip
    """Trains and evaluates what of the study is not done yet; returns how many runs that were. `runs`: the folder of
    the trainings, which go on where they stopped; `only`: a part of the names of the runs wanted, or with `exact` the
    name. Several processes can work at one study: a run that another one holds is left to it."""
    study, done = get_study(name), 0
    for split in ("train", "valid", "test"):  # tables of ours, before anything is trained
        read_info(data / f"{split}.parquet")
    wanted = [r for r in study.runs if (only == r.name if exact else only in r.name)]
    if not wanted:
        known = ", ".join(r.name for r in study.runs)
        raise InputError(f"study {name} has no run whose name contains {only!r}: {known}")
    for i, run in enumerate(wanted, 1):
        recipe, path = recipe_of(study, run, epochs), result_path(root, name, run)
        place = f"{i} of {len(wanted)}, {run.name}"
        if finished(path, run, recipe, seed):
            report(f"{place}: done before")
            _archive_finished(root, name, run, runs, data, path)
            continue
        if run.same:
            other, twin = run_at(run.same)
            done += run_study(
                other, data, root, runs, epochs=epochs, seed=seed, only=twin.name, exact=True, device=device,
                report=report, step_done=step_done,
            )  # fmt: skip
            theirs = result_path(root, other, twin)
            if not finished(theirs, twin, recipe, seed):
                report(f"{place}: waits for {run.same}")
                continue
            told = json.loads(theirs.read_text(encoding="utf-8")) | {"study": name, "run": run.name, "same": run.same}
            if theirs.with_suffix(".images.parquet").is_file():  # a checkout has the report alone
                copy_file(theirs.with_suffix(".images.parquet"), path.with_suffix(".images.parquet"))
            write_json(path, told)
            report(f"{place}: taken over from {run.same}")
            continue
        try:
            with lock_folder(runs / name / run.name):
                if finished(path, run, recipe, seed):  # by another process, meanwhile
                    continue
                text = _one(study, run, data, runs / name / run.name, path, recipe, seed, device, report, step_done)
        except Busy:
            report(f"{place}: another process is at it; left to that one")
            continue
        done += 1
        report(f"{place}: {text}")
    return done


def _one(
    study: Study, run: Run, data: Path, out: Path, path: Path, recipe: Recipe, seed: int, device: str,
    report: Callable[[str], None], step_done: Callable[[int, int], None],
) -> str:  # fmt: skip
    """Trains and evaluates one run and writes its result; returns what it came to."""
    rows, test = pq.read_metadata(data / "train.parquet").num_rows, data / "test.parquet"
    summary = train(
        run.model, data, out, recipe=recipe, seed=seed, resume=(out / "last.safetensors").is_file(), device=device,
        options=dict(run.options), report=partial(_line, report, run.name, out, test if study.watched else None),
        notice=report, step_done=step_done, limit=rows // run.part if run.part > 1 else None,
    )  # fmt: skip
    result, told = evaluate(out, test)
    metrics = [json.loads(t) for t in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [{k: line[k] for k in ("epoch", "seconds", "valid", "clean", "images_per_second")} for line in metrics]
    if study.watched:  # a kill can leave an epoch unwatched; the last one's error is known
        seen = {one["epoch"]: one["nme_paper"] for one in _watched(out)} | {curve[-1]["epoch"]: told["nme_paper"]}
        curve = [{**point, "test": seen.get(point["epoch"])} for point in curve]
    write_per_image(path.with_suffix(".images.parquet"), result)
    study_name = path.parent.name
    told |= {"kind": "study", "study": study_name, "run": run.name, "curve": curve, "provenance": provenance()}
    root = path.parent.parent.parent
    told["archived"] = archive_weights(root, f"{study_name}/{run.name}", out, test, told["nme_paper"])
    write_json(path, told)
    return (
        f"{told['nme_paper']:.2f} % on {told['data']['images']} images, epoch {summary['best_epoch']} of "
        f"{summary['epochs']}, {summary['seconds'] / 60:.1f} min; {path}"
    )


def _archive_finished(root: Path, study: str, run: Run, runs: Path, data: Path, path: Path) -> None:
    """Archive the weights of a run that an earlier version finished without, where its folder is still there."""
    told = json.loads(path.read_text(encoding="utf-8"))
    out = runs / (run.same or f"{study}/{run.name}")
    if "archived" in told or not (out / "best.safetensors").is_file():
        return
    place = run.same or f"{study}/{run.name}"
    told["archived"] = archive_weights(root, place, out, data / "test.parquet", told["nme_paper"])
    write_json(path, told)


def cost(study: Study, run: Run, data: Path, epochs: int | None) -> float:
    """Seconds that the training will take on this machine, from a few steps now (validation not counted)."""
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
    """For each run of a study: "done", "running", "begun" (with its finished epochs) or "open"; its epochs in all;
    STUDY/RUN it takes its result from, if any."""
    study, rows = get_study(name), []
    for run in study.runs:
        recipe, where = recipe_of(study, run, epochs), run.same or f"{name}/{run.name}"
        begun = runs / where / "metrics.jsonl"
        epoch = len(begun.read_text(encoding="utf-8").splitlines()) if begun.is_file() else 0
        told = {"run": run.name, "epoch": epoch, "epochs": recipe.epochs, "same": run.same}
        done = finished(result_path(root, name, run), run, recipe, seed)
        now = "done" if done else "running" if is_locked(runs / where) else "begun" if epoch else "open"
        rows.append(told | {"state": now})
    return rows
