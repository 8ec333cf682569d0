"""`recombinator study`: the paper's experiments and figures by name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import (
    DEFAULT_WEIGHTS,
    DETECTOR_FILES,
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
    print_all,
    set_threads,
    write_report,
)
from recombinator.study.plan import FIGURES, STUDIES
from recombinator.utils.console import progress
from recombinator.utils.errors import InputError, import_optional
from recombinator.utils.files import check_output_file, check_output_folder
from recombinator.utils.text import plural

study = typer.Typer(help="Run the paper's experiments; draw its tables and figures.", cls=Group, no_args_is_help=True)
Runs = Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the runs of the studies.")]
Epochs = Annotated[int | None, typer.Option(min=1, metavar="N", show_default="the study's", help="Epochs of each run.")]
Rounds = Annotated[int, typer.Option(min=1, metavar="N", help="Number of interleaved rounds.")]
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
            str, typer.Option(metavar="TEXT", show_default="all", help="Train only runs with TEXT in their names.")
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

    The disturbances are shift, scale and rotation of the crop, a black rectangle, blur, noise, brightness and JPEG.
    """
    from recombinator.evaluation import robustness as disturbances

    check_outputs(json_out, overwrite=overwrite, source=data)
    with progress("disturbances") as advance:
        report = disturbances.measure(weights, data, limit=limit, progress=advance)
    written = write_report(json_out, "robustness", report)
    print_all([*written, *map(str, disturbances.draw(report, out))])
    for row in report["rows"]:
        print(f"  {row['disturbance']:10} {row['value']:6g}  {row['weights']:28} {row['nme']:7.3f} %")


@study.command("memory", cls=Command)
def memory(
    crops: Annotated[int, typer.Option(min=1000, metavar="N", help="Number of crops on disk.")] = 1_000_000,
    data: Annotated[
        Path | None, typer.Option(metavar="TABLE", show_default="drawn faces", help="Table whose rows are repeated.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Existing folder with space for 9 kB per crop; crops are removed later."),
    ] = None,
    model: Annotated[str, typer.Option(metavar="MODEL", help="Network to train.")] = "rcn-6",
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Training steps per round.")] = 10,
    rounds: Rounds = 30,
    threads: Threads = None,
    json_out: JsonOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure memory and speed of training from disk.

    Writes jittered crops, and trains alternately from disk and in memory.
    """
    from recombinator.study.memory import PLACES, measure

    check_outputs(json_out, overwrite=overwrite)
    with progress("crops") as advance:
        report = measure(
            crops, source=data, folder=folder, model=model, steps=steps, rounds=rounds, threads=threads,
            progress=advance,
        )  # fmt: skip
    for place in PLACES:
        print(f"{place}: {report[place]['crops']:,} crops, peak {report[place]['peak_bytes'] / 1e9:.2f} GB")
    for what, key in (("images per second", "speed"), ("CPU time per image", "cpu")):
        row = report[key]
        print(f"{what}, on disk / in memory: {row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    write_report(json_out, "memory", report)


@study.command("ray", cls=Command)
def ray_rates(
    photographs: Annotated[int, typer.Option(min=1, metavar="N", help="Photographs to predict.")] = 2000,
    weights: Annotated[str, typer.Option(metavar="WEIGHTS", help="Shipped name or path.")] = DEFAULT_WEIGHTS,
    rounds: Rounds = 3,
    json_out: JsonOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure the cost of predict with and without Ray.

    Predicts shifted copies of the sample photograph, alternately with and without Ray.
    """
    from recombinator.study.ray import measure

    check_outputs(json_out, overwrite=overwrite)
    if json_out:
        import_optional("torch", "--json")  # before the work
    with progress("runs") as advance:
        report = measure(photographs, weights, rounds=rounds, progress=advance)
    for way, row in report["cpu_seconds"].items():
        print(f"{way}: {row['median']:.3f} s of CPU time per photograph [{row['low']:.3f}, {row['high']:.3f}]")
    speed = report["speed"]
    print(f"speed with Ray / plain: {speed['median']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}]")
    write_report(json_out, "ray", report)


@study.command("web", cls=Command)
def measure_page(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A face model.")] = "rcn-6-fast-mtfl-int8",
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of repetitions; medians are printed.")] = 5,
    json_out: JsonOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure frames per second of a page of `recombinator web`.

    The page tracks one face in frames of 640x480 pixels, in headless Chromium on one CPU core.
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

    Writes one result file for several trials, or for the stages of a training.
    """
    from recombinator.study import collect as collecting

    if plot:
        check_output_file(plot, ".png", ".pdf")
    check_outputs(json_out, plot, overwrite=overwrite)
    rows = collecting.collect_runs(folders)
    written = write_report(json_out, "runs", {"runs": rows})
    if plot:
        collecting.draw_learning_curves(rows, plot)
        written.append(f"wrote {plot}")
    print_all(written)
    for row in rows:
        last = row["curve"][-1]
        print(f"{row['name']}: epoch {last['epoch']}, validation {last['valid']:.2f} %, plain {last['clean']:.2f} %")


@study.command("list", cls=Command)
def list_studies(
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Tables, to estimate the time of the remaining runs.")
    ] = None,
    root: Root = Path("."),
    runs: Runs = Path("runs/study"),
    epochs: Epochs = None,
    seed: Seed = 0,
) -> None:
    """List the studies with the state of their runs.

    With --data, also estimates the time of the remaining runs on this machine.
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


@study.command("fuzz", cls=Command)
def fuzz(
    number: Annotated[int, typer.Option(min=1, metavar="N", help="Damaged files to read.")] = 1000,
    seed: Seed = 0,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", show_default="all", help="Only files of this kind (repeatable)."),
    ] = None,
    only: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Repeat the damaged file with this number only.")
    ] = None,
    keep: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder for copies of files with faults.")] = None,
    json_out: JsonOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Read damaged files of every kind and count the outcomes.

    Every file must be read, or refused in one sentence. The exit status is 1 if one led to a traceback, to a result
    that is not finite, or took too long.
    """
    from recombinator.study import fuzz as fuzzing

    if keep:
        check_output_folder(keep)
    check_outputs(json_out, overwrite=overwrite)
    with progress("damaged files") as advance:
        outcome = fuzzing.fuzz(number, seed=seed, only=only, keep=keep, chosen=kind or (), progress=advance)
    written = write_report(json_out, "fuzz", outcome.report(seed))
    for fault, i, detail in outcome.faults:
        print(f"{fault}, number {i}:\n{detail}")
    ends = (fuzzing.SENTENCE, fuzzing.FINE, *fuzzing.FAULTS)
    print(f"{'':18}" + "".join(f"{end:>12}" for end in ends))
    for name, counts in outcome.counts.items():
        print(f"{name:18}" + "".join(f"{counts[end]:>12}" for end in ends))
    print(f"{'all':18}" + "".join(f"{sum(c[end] for c in outcome.counts.values()):>12}" for end in ends))
    print_all(written)
    if outcome.faults:
        raise typer.Exit(1)


@study.command("finder", cls=Command)
def finder(
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Tables of MTFL, from `prepare`.")],
    photos: Annotated[Path, typer.Option(metavar="FOLDER", help="MTFL's photographs.")],
    empty: Annotated[Path, typer.Option(metavar="FOLDER", help="Images without faces that were not used in training.")],
    data_68: Annotated[
        Path | None, typer.Option("--data-68", metavar="FOLDER", help="Tables of 300-W, to measure 68 points too.")
    ] = None,
    photos_68: Annotated[
        Path | None, typer.Option("--photos-68", metavar="FOLDER", help="300-W's photographs.")
    ] = None,
    weights: Annotated[
        str, typer.Option(metavar="WEIGHTS", help="Network for 5 points: shipped name, weights file or run folder.")
    ] = DEFAULT_WEIGHTS,
    weights_68: Annotated[
        str, typer.Option("--weights-68", metavar="WEIGHTS", help="Network for 68 points.")
    ] = "rcn-68-300w",
    detector: Annotated[
        str, typer.Option(metavar="auto|faces|haar|none|" + DETECTOR_FILES, help="Detector; see predict.")
    ] = "auto",
    only: Annotated[
        list[str] | None, typer.Option(metavar="PART", show_default="all", help="Measure this part (repeatable).")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.001, max=1, metavar="SHARE", help="Use only this share of the images, for a trial.")
    ] = 1.0,
    final: Annotated[
        bool, typer.Option("--final", help="Also measure the test photographs, after all choices are made.")
    ] = False,
    seed: Seed = 0,
    json_out: JsonOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure how well faces are found in whole images.

    The parts are mosaics, turned (rotated photographs), without_faces, portrait (the sample portrait at every angle),
    smallest (small faces), cut (faces cut by the border) and passes (whole photographs with one and two passes).
    """
    from recombinator.predict.detect import detector_by_name
    from recombinator.study import whole_images
    from recombinator.study.finder import run as measure_finder
    from recombinator.study.scenes import Photographs

    check_outputs(json_out, overwrite=overwrite)
    if (data_68 is None) != (photos_68 is None):
        raise InputError("study finder: give --data-68 and --photos-68 together")
    sets = [Photographs("MTFL", data, photos, (weights,))]
    if data_68 and photos_68:
        sets.append(Photographs("300-W", data_68, photos_68, (weights_68,)))
    with progress("finder") as advance:
        report = measure_finder(
            sets, empty, detector_by_name(detector), seed=seed, share=share, only=only or [], final=final,
            progress=advance,
        )  # fmt: skip
    for what, value in whole_images.finder_figures(report).items():
        print(f"  {what}: {value}")
    write_report(json_out, "finder", report)


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
