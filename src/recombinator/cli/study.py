"""`recombinator study`: the paper's experiments and figures by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import (
    Command,
    Data,
    Group,
    JsonOut,
    Overwrite,
    Root,
    Sample,
    Seed,
    Table,
    Threads,
    check_outputs,
    set_threads,
    write_report,
)
from recombinator.study.plan import FIGURES, STUDIES
from recombinator.utils.console import progress
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_file
from recombinator.utils.text import plural

study = typer.Typer(help="Run the paper's experiments; draw its tables and figures.", cls=Group, no_args_is_help=True)
Runs = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the studies' trainings.")]
Epochs = Annotated[
    int | None, typer.Option(min=1, metavar="N", show_default="the study's", help="Epochs of each run, in results too.")
]
FigureOut = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the PNG and the PDF.")]


def _add_study(name: str, title: str) -> None:
    """Add a command for a study; they differ in data only."""

    def command(
        data: Data,
        root: Root = Path("."),
        runs: Runs = Path("runs/study"),
        epochs: Epochs = None,
        seed: Seed = 0,
        only: Annotated[
            str, typer.Option(metavar="TEXT", show_default="all", help="Train only runs whose name contains TEXT.")
        ] = "",
        threads: Threads = None,
    ) -> None:
        from recombinator.study import run
        from recombinator.utils.allocator import keep_freed_memory

        keep_freed_memory()
        set_threads(threads)
        with progress(name) as advance:
            done = run.run_study(name, data, root, runs, epochs=epochs, seed=seed, only=only, progress=advance)
        print(f"{plural(done, 'run')} trained now; `recombinator study render` writes the table")

    study.command(name, cls=Command, help=f"{title}.", short_help=f"{title}.")(command)


for _name, _plan in STUDIES.items():
    _add_study(_name, _plan.title)


def _add_figure(name: str, title: str, needs_data: bool) -> None:
    """Add a command for a figure; they differ in data only."""

    def command(
        out: FigureOut,
        data: Annotated[
            Path | None, typer.Option(metavar="TABLE", help="Test table, for figures that show images or errors.")
        ] = None,
        weights: Annotated[
            list[str] | None,
            typer.Option(metavar="WEIGHTS", show_default="the study's runs", help="Networks to draw (repeatable)."),
        ] = None,
        runs: Runs = Path("runs/study"),
    ) -> None:
        from recombinator.study import figures

        if needs_data and data is None:
            raise InputError(f"study {name}: give a test table that `recombinator prepare` wrote, with --data")
        for path in figures.draw(name, out, data, runs, weights):
            print(path)

    study.command(name, cls=Command, help=f"Figure: {title}.")(command)


for _name, (_title, _weights) in FIGURES.items():
    _add_figure(_name, _title, needs_data=bool(_weights))


@study.command("robustness", cls=Command)
def robustness(
    weights: Annotated[
        list[str],
        typer.Argument(metavar="WEIGHTS", help="Networks to compare: shipped names, weights files or run folders."),
    ],
    data: Table,
    out: FigureOut,
    json_out: JsonOut = None,
    limit: Sample = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure and draw errors under disturbances.

    A shifted, scaled or rotated crop, a black rectangle, blur, noise, brightness, JPEG.
    """
    from recombinator.evaluation import robustness as disturbances

    check_outputs(json_out, overwrite=overwrite, source=data)
    with progress("disturbances") as advance:
        report = disturbances.measure(weights, data, limit=limit, progress=advance)
    for row in report["rows"]:
        print(f"  {row['disturbance']:10} {row['value']:6g}  {row['weights']:28} {row['nme']:7.3f} %")
    write_report(json_out, "robustness", report)
    for path in disturbances.draw(report, out):
        print(path)


@study.command("web", cls=Command)
def measure_page(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A face model.")] = "rcn-6-fast-mtfl-int8",
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Repetitions, of which medians are printed.")] = 5,
    json_out: JsonOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure frames per second of a page of `recombinator web`.

    One face, followed through frames of 640x480 pixels in a headless Chromium on one processor core.
    """
    from recombinator.study import web

    check_outputs(json_out, overwrite=overwrite)
    report = web.measure(model, rounds)
    print(web.as_text(report))
    write_report(json_out, "web", report)


@study.command("curves", cls=Command)
def curves(
    out: FigureOut,
    root: Root = Path("."),
) -> None:
    """Figure: error by epochs and by minutes.

    Drawn from the results of `study convergence`.
    """
    from recombinator.study import figures
    from recombinator.study.render import load_results

    for path in figures.draw_curves(load_results(root), out):
        print(path)


@study.command("collect", cls=Command)
def collect(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    json_out: JsonOut = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the learning curves, .png or .pdf.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Collect settings and learning curves of trainings.

    One result file for trials that chose a setting, and for trainings in stages.
    """
    from recombinator.study import collect as collecting

    if plot:
        check_output_file(plot, ".png", ".pdf")
    check_outputs(json_out, plot, overwrite=overwrite)
    rows = collecting.collect_runs(folders)
    for row in rows:
        last = row["curve"][-1]
        print(f"{row['name']}: epoch {last['epoch']}, validation {last['valid']:.2f} %, plain {last['clean']:.2f} %")
    write_report(json_out, "runs", {"runs": rows})
    if plot:
        collecting.draw_learning_curves(rows, plot)
        print(f"wrote {plot}")


@study.command("list", cls=Command)
def list_studies(
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Tables, to estimate the time of the remaining runs here.")
    ] = None,
    root: Root = Path("."),
    runs: Runs = Path("runs/study"),
    epochs: Epochs = None,
    seed: Seed = 0,
) -> None:
    """List the studies with the state of their runs.

    With --data, also the time that the remaining runs take on this machine.
    """
    from recombinator.study import run

    for name, plan in STUDIES.items():
        rows = run.state(name, root, runs, epochs, seed)
        done = sum(r["state"] == "done" for r in rows)
        print(f"{name}: {plan.title}; {done} of {len(rows)} done")
        for row, one in zip(rows, plan.runs, strict=True):
            epoch = f", epoch {row['epoch']}" if row["state"] in ("begun", "running") else ""
            text = f"  {row['run']:24}{row['epochs']:3} epochs, {row['state']}{epoch}"
            if row["same"]:
                text += f", from {row['same']}"
            elif data and row["state"] != "done":
                text += f", about {run.cost(plan, one, data, epochs) / 60:.0f} min"
            print(text)
    print("figures: " + "; ".join(f"{name}: {title}" for name, (title, _) in FIGURES.items()))


@study.command("render", cls=Command)
def render(
    root: Root = Path("."),
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit status 1 if a table is stale.")] = False,
) -> None:
    """Write the tables in README and docs from results/."""
    from recombinator.study.render import render_documents

    changed = render_documents(root, write=not check)
    for path in changed:
        print(f"{'stale' if check else 'wrote'}: {path}")
    if check and changed:
        raise typer.Exit(1)
