"""`recombinator study unlabeled` and `study labels`: experiments with unlabeled images and with wrong labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import (
    Command,
    Data,
    JsonOut,
    Overwrite,
    Seed,
    Threads,
    check_outputs,
    set_threads,
    write_report,
)
from recombinator.cli.study import study
from recombinator.utils.console import progress
from recombinator.utils.errors import InputError


@study.command("unlabeled", cls=Command)
def unlabeled(
    data: Data,
    runs: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the trainings.")] = Path("runs/unlabeled"),
    share: Annotated[
        list[float] | None,
        typer.Option(
            min=0.0001, max=1, metavar="SHARE", show_default="0.01, 0.05 and 0.2",
            help="Share of the training images with labels (repeatable).",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=5, metavar="N", help="Number of trainings with each share.")] = 3,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting, such as equivariance=0.1 (repeatable)."),
    ] = None,
    final: Annotated[
        bool, typer.Option("--final", help="Also measure the test images, after all choices are made.")
    ] = False,
    threads: Threads = None,
    json_out: JsonOut = None,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Measure whether unlabeled images help.

    Trains on few labeled images, with and without the other images as unlabeled ones, and compares the errors. The
    same command continues after an interruption.
    """
    from recombinator.study.unlabeled import SHARES, measure
    from recombinator.training.recipe import parse_settings
    from recombinator.utils.allocator import keep_freed_memory

    check_outputs(json_out, overwrite=overwrite)
    keep_freed_memory()
    set_threads(threads)
    changes, options = parse_settings(settings or [])
    if options:
        raise InputError(f"--set {next(iter(options))}: expected a setting of the recipe")
    with progress("trainings") as advance:
        report = measure(
            data, runs, shares=share or SHARES, seeds=seeds, settings=changes, final=final, progress=advance
        )
    for row in report["rows"]:
        for split in ("valid", "test"):
            if split in row:
                part = row[split]
                low, high = part["difference"]["ci95_images"]
                print(
                    f"{100 * row['share']:g} % of the labels, {split}: {part['labeled']['nme_paper']:.2f} %, with "
                    f"unlabeled images {part['unlabeled']['nme_paper']:.2f} %, difference "
                    f"{part['difference']['nme_paper']:+.2f} [{low:+.2f}, {high:+.2f}]"
                )
    write_report(json_out, "unlabeled", report)


@study.command("labels", cls=Command)
def labels(
    data: Data,
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Epochs of each of the two trainings.")] = 10,
    seed: Seed = 0,
    threads: Threads = None,
    json_out: JsonOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure how well wrong labels are found.

    Displaces 2 % of the training points, ranks each half of the images by a network that was trained on the other, and
    counts the displaced points in the first 3 % of the ranking.
    """
    from recombinator.study.labels import run
    from recombinator.utils.allocator import keep_freed_memory

    check_outputs(json_out, overwrite=overwrite)
    keep_freed_memory()
    set_threads(threads)
    with progress("steps") as advance:
        report = run(data, epochs=epochs, seed=seed, progress=advance)
    print(f"{report['found']} of {report['displaced']} displaced points are among the {report['looked_at']} first")
    write_report(json_out, "labels", report)
