"""Collect the settings and learning curves of trainings in one result file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from recombinator.evaluation.plots import COLORS, new_figure
from recombinator.training.files import read_metrics, read_run
from recombinator.training.recipe import FAST
from recombinator.utils.errors import InputError
from recombinator.utils.files import to_file_keys, write_atomically


def collect_runs(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Read finished or interrupted trainings.

    Args:
        folders: Run folders.

    Returns:
        For each run: its name (PARENT/FOLDER), network, recipe, changes to the fast recipe, number of images, data
        fingerprints, commits, and the metrics of every epoch.

    Raises:
        InputError: A folder holds no training with a finished epoch.
    """
    rows = []
    for folder in folders:
        run, metrics = read_run(folder), read_metrics(folder)
        if not run or not metrics:
            raise InputError(f"{folder}: not the folder of a training with a finished epoch")
        recipe, fast = run["recipe"], FAST.to_dict()
        plain = {k: v for k, v in recipe.items() if k != "augment"} | recipe["augment"]
        usual = {k: v for k, v in fast.items() if k != "augment"} | fast["augment"]
        changes = {k: v for k, v in plain.items() if json.loads(json.dumps(usual.get(k))) != v and k != "epochs"}
        rows.append({
            "name": f"{folder.resolve().parent.name}/{folder.resolve().name}", "model": run["model"],
            "changes": to_file_keys(changes), "epochs": recipe["epochs"], "seed": run["seed"],
            **{k: run.get(k) for k in ("images", "data", "validation_data", "start")},
            "commits": sorted({s.get("commit") or "" for s in run.get("sittings", [])}),
            "curve": metrics,
        })  # fmt: skip
    return rows


def draw_learning_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot validation errors by epoch, one color per run: jittered samples dashed, plain ones solid.

    Args:
        rows: What `collect_runs` returns.
        path: Picture to write; its ending decides the format.
    """
    figure = new_figure(5.5, 3.4)
    axes = figure.subplots()
    for row, color in zip(rows, cycle(COLORS), strict=False):
        epochs = [point["epoch"] for point in row["curve"]]
        axes.plot(epochs, [point["clean"] for point in row["curve"]], color=color, label=row["name"].split("/")[-1])
        axes.plot(epochs, [point["valid"] for point in row["curve"]], color=color, linestyle="--", linewidth=0.9)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation error, %")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(title="solid: plain, dashed: jittered", fontsize=8, title_fontsize=8)
    write_atomically(path, lambda p: figure.savefig(p, dpi=160))
