"""`recombinator study`: the paper's experiments and figures by name. Heavy imports stay inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import Data, Root, Table, check_not_overwriting, write_report
from recombinator.study.plan import FIGURES, STUDIES
from recombinator.utils.console import progress
from recombinator.utils.errors import InputError

study = typer.Typer(help="The paper's experiments, and tables from the files under results/.", no_args_is_help=True)
Runs = Annotated[Path, typer.Option(help="folder of the studies' trainings")]


def _study(name: str, title: str) -> None:
    """One command for each study; they differ in data only."""

    def command(
        data: Data,
        root: Root = Path("."),
        runs: Runs = Path("runs/study"),
        epochs: Annotated[int | None, typer.Option(min=1, help="of every run; results say so")] = None,
        seed: Annotated[int, typer.Option(min=0)] = 0,
        only: Annotated[str, typer.Option(help="only runs whose name contains this")] = "",
        threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
    ) -> None:
        import torch

        from recombinator.study import run
        from recombinator.utils.allocator import keep_freed_memory

        keep_freed_memory()
        if threads:
            torch.set_num_threads(threads)
        with progress(name) as advance:
            done = run.run_study(name, data, root, runs, epochs=epochs, seed=seed, only=only, step_done=advance)
        print(f"{done} runs done now; `recombinator study render` writes the table")

    study.command(name, help=title)(command)


for _name, _plan in STUDIES.items():
    _study(_name, _plan.title)


def _figure(name: str, title: str, wants_data: bool) -> None:
    def command(
        out: Annotated[Path, typer.Option(help="folder for the PNG and the PDF; faces stay outside the repository")],
        data: Annotated[Path | None, typer.Option(help="a test table")] = None,
        weights: Annotated[list[str] | None, typer.Option(help="instead of the study's own runs (repeatable)")] = None,
        runs: Runs = Path("runs/study"),
    ) -> None:
        from recombinator.study import figures

        if wants_data and data is None:
            raise InputError(f"{name} wants --data, a test table that `recombinator prepare` wrote")
        for path in figures.draw(name, out, data, runs, weights):
            print(path)

    study.command(name, help=f"Figure: {title}.")(command)


for _name, (_title, _weights) in FIGURES.items():
    _figure(_name, _title, wants_data=bool(_weights))


@study.command("robustness")
def robustness(
    weights: Annotated[list[str], typer.Argument(help="networks to compare: names, files or run folders")],
    data: Table,
    out: Annotated[Path, typer.Option(help="folder for the PNG and the PDF")],
    json_out: Annotated[Path | None, typer.Option("--json", help="also write the figures to this file")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="so many images, drawn over the table")] = None,
) -> None:
    """Error against a shifted, scaled, turned crop, a rectangle, blur, noise, brightness, JPEG."""
    from recombinator.evaluation import robustness as study_of

    check_not_overwriting(data, json_out)
    with progress("disturbances") as advance:
        told = study_of.measure(weights, data, limit=limit, advance=advance)
    for row in told["rows"]:
        print(f"  {row['disturbance']:10} {row['value']:6g}  {row['weights']:28} {row['nme']:7.3f} %")
    write_report(json_out, "robustness", told)
    for path in study_of.draw(told, out):
        print(path)


@study.command("curves")
def curves(
    out: Annotated[Path, typer.Option(help="folder for the PNG and the PDF")],
    root: Root = Path("."),
) -> None:
    """Figure: error against epochs and minutes, from the results of `study convergence`."""
    from recombinator.study import figures
    from recombinator.study.render import load_results

    for path in figures.draw_curves(load_results(root), out):
        print(path)


@study.command("list")
def list_studies(
    data: Annotated[Path | None, typer.Option(help="tables; with them the cost on this machine is measured")] = None,
    root: Root = Path("."),
    runs: Runs = Path("runs/study"),
    epochs: Annotated[int | None, typer.Option(min=1, help="of every run")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """What exists, what is done, running or begun, and what the rest will cost here."""
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


@study.command("render")
def render(
    root: Root = Path("."),
    check: Annotated[bool, typer.Option("--check", help="change nothing; exit status 1 if a table is stale")] = False,
) -> None:
    """Writes the tables in README and docs from the files under results/."""
    from recombinator.study.render import render_documents

    changed = render_documents(root, write=not check)
    for path in changed:
        print(f"{'stale' if check else 'wrote'}: {path}")
    if check and changed:
        raise typer.Exit(1)
