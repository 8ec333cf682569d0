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
from recombinator.errors import InputError
from recombinator.evaluation import evaluate, write_per_image
from recombinator.files import Busy, copy_file, write_json
from recombinator.provenance import provenance
from recombinator.study.plan import STUDIES, Run, Study
from recombinator.training.loop import Trainer
from recombinator.training.recipe import Recipe, get_recipe
from recombinator.training.run import train


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


def finished(path: Path, recipe: Recipe, seed: int) -> bool:
    """True where `path` holds the result of this very recipe and seed."""
    try:
        training = json.loads(path.read_text(encoding="utf-8"))["training"]
    except (OSError, json.JSONDecodeError, KeyError):
        return False
    return Recipe.from_dict(training["recipe"]) == recipe and training["seed"] == seed


def _line(report: Callable[[str], None], name: str, out: Path, watched: Path | None, line: dict[str, Any]) -> None:
    """Tells of an epoch; with `watched`, a test table, also measures what is best so far, and keeps that in `out`."""
    text = f"{name}: epoch {line['epoch']}, validation {line['valid']:.2f} %, {line['seconds']:.0f} s"
    if watched:
        told = evaluate(out, watched)[1]
        seen = {"epoch": line["epoch"], "chosen": told["training"]["epoch"], "nme_paper": told["nme_paper"]}
        with open(out / "watched.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(seen) + "\n")
        text += f", test {told['nme_paper']:.2f} %"
    report(text)


def run_study(
    name: str, data: Path, root: Path, runs: Path, *, epochs: int | None = None, seed: int = 0, only: str = "",
    exact: bool = False, device: str = "auto", report: Callable[[str], None] = print,
    step_done: Callable[[int, int], None] = lambda i, n: None,
) -> int:  # fmt: skip
    """Trains and evaluates what of the study is not done yet; returns how many runs that were. `runs`: the folder of
    the trainings, which go on where they stopped; `only`: a part of the names of the runs wanted, or with `exact` the
    name. Several processes can work at one study: a run that another one holds is left to it."""
    study, done = get_study(name), 0
    read_info(data / "train.parquet")  # a table of ours, before anything is trained
    wanted = [r for r in study.runs if (only == r.name if exact else only in r.name)]
    if not wanted:
        known = ", ".join(r.name for r in study.runs)
        raise InputError(f"study {name} has no run whose name contains {only!r}: {known}")
    for i, run in enumerate(wanted, 1):
        recipe, path = recipe_of(study, run, epochs), result_path(root, name, run)
        if finished(path, recipe, seed):
            report(f"{i} of {len(wanted)}, {run.name}: done before")
            continue
        if run.same:
            other, _, twin = run.same.partition("/")
            done += run_study(
                other, data, root, runs, epochs=epochs, seed=seed, only=twin, exact=True, device=device, report=report,
                step_done=step_done,
            )  # fmt: skip
            theirs = result_path(root, other, next(r for r in get_study(other).runs if r.name == twin))
            if finished(theirs, recipe, seed):
                told = json.loads(theirs.read_text(encoding="utf-8")) | {"study": name, "run": run.name}
                copy_file(theirs.with_suffix(".images.parquet"), path.with_suffix(".images.parquet"))
                write_json(path, told | {"same": run.same})
            continue
        out = runs / name / run.name
        rows = pq.read_metadata(data / "train.parquet").num_rows
        resume = (out / "last.safetensors").is_file()
        try:
            summary = train(
                run.model, data, out, recipe=recipe, seed=seed, resume=resume, device=device, options=dict(run.options),
                report=partial(_line, report, run.name, out, data / "test.parquet" if study.watched else None),
                notice=report, step_done=step_done, limit=rows // run.part if run.part > 1 else None,
            )  # fmt: skip
        except Busy:
            report(f"{i} of {len(wanted)}, {run.name}: another process is at it; left to that one")
            continue
        result, told = evaluate(out, data / "test.parquet")
        metrics = [json.loads(t) for t in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        curve = [{k: line[k] for k in ("epoch", "seconds", "valid", "clean", "images_per_second")} for line in metrics]
        if study.watched:  # after a kill an epoch may have been watched twice, or not at all: the last word counts
            seen = [json.loads(t) for t in (out / "watched.jsonl").read_text(encoding="utf-8").splitlines()]
            test = {one["epoch"]: one["nme_paper"] for one in seen}
            curve = [{**point, "test": test.get(point["epoch"])} for point in curve]
        write_per_image(path.with_suffix(".images.parquet"), result)
        told |= {"kind": "study", "study": name, "run": run.name, "curve": curve, "provenance": provenance()}
        write_json(path, told)
        done += 1
        report(
            f"{i} of {len(wanted)}, {run.name}: {told['nme_paper']:.2f} % on {told['data']['images']} images, epoch "
            f"{summary['best_epoch']} of {summary['epochs']}, {summary['seconds'] / 60:.1f} min; {path}"
        )
    return done


def cost(study: Study, run: Run, data: Path, epochs: int | None) -> float:
    """Seconds that the training will take on this machine, from a few steps now (validation not counted)."""
    table = load_table(data / "train.parquet", int(run.options.get("channels", 1)), limit=64)
    recipe = recipe_of(study, run, epochs)
    trainer = Trainer(run.model, table, table, Path(), recipe, options=dict(run.options))
    generator, times = torch.Generator().manual_seed(0), []
    for _ in range(3):
        began = time.perf_counter()
        trainer.task.loss(torch.arange(min(recipe.batch, len(table))), generator).backward()
        trainer.optimiser.step()
        times.append(time.perf_counter() - began)
    steps = -(-(pq.read_metadata(data / "train.parquet").num_rows // run.part) // recipe.batch)
    return min(times) * steps * recipe.epochs


def state(name: str, root: Path, runs: Path, epochs: int | None, seed: int) -> list[dict[str, Any]]:
    """For each run of a study: "done", "begun" (with its finished epochs) or "open"."""
    study, rows = get_study(name), []
    for run in study.runs:
        recipe = recipe_of(study, run, epochs)
        begun = runs / name / run.name / "metrics.jsonl"
        epoch = len(begun.read_text(encoding="utf-8").splitlines()) if begun.is_file() else 0
        done = finished(result_path(root, name, run), recipe, seed)
        rows.append({"run": run.name, "state": "done" if done else "begun" if epoch else "open", "epoch": epoch})
    return rows
