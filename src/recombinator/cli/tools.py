"""`recombinator study tools`, `study negatives` and `study framing`: whole photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import Data, JsonOut, Overwrite, Seed, WeightsArgument, check_outputs, write_report
from recombinator.utils.console import progress
from recombinator.utils.errors import InputError, import_optional


def tools(
    envs: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the environments of the tools.")],
    data: Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Tables of MTFL, from `prepare`.")],
    photos: Annotated[Path, typer.Option(metavar="FOLDER", help="MTFL's photographs.")],
    data_68: Annotated[
        Path | None, typer.Option("--data-68", metavar="FOLDER", help="Tables of 300-W, to compare on it too.")
    ] = None,
    photos_68: Annotated[
        Path | None, typer.Option("--photos-68", metavar="FOLDER", help="300-W's photographs.")
    ] = None,
    install: Annotated[
        bool, typer.Option("--install", help="Create missing environments, with pinned packages from PyPI.")
    ] = False,
    valid_only: Annotated[bool, typer.Option("--valid-only", help="Skip the test photographs, for a trial.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="all", help="Use the first N faces of each table.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of timing rounds.")] = 5,
    json_out: JsonOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare with MediaPipe, MTCNN and dlib on whole photographs.

    Measures faces found, errors of the points, and milliseconds per photograph. Each tool runs in its own environment.
    """
    from recombinator.study import tools as comparing
    from recombinator.study import whole_images
    from recombinator.study.scenes import Photographs

    check_outputs(json_out, overwrite=overwrite)
    if json_out:
        import_optional("torch", "--json")  # before the work
    if (data_68 is None) != (photos_68 is None):
        raise InputError("study tools: give --data-68 and --photos-68 together")
    sets = [Photographs("MTFL", data, photos, comparing.NETWORKS)]
    if data_68 and photos_68:
        sets.append(Photographs("300-W", data_68, photos_68, comparing.NETWORKS_68))
    with progress("tools") as advance:
        report = comparing.run(
            sets, envs, install=install, limit=limit, rounds=rounds, final=not valid_only, progress=advance
        )
    print(whole_images.tools_errors(report) + "\n" + whole_images.tools_about(report), end="")
    write_report(json_out, "tools", report)


def negatives(
    weights: WeightsArgument,
    photos: Annotated[Path, typer.Option(metavar="FOLDER", help="Photographs.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the parts, PNG.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="TABLE", show_default="photographs without faces", help="Training table with their faces."
        ),
    ] = None,
    finder: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default="the face finder", help="Finder, .onnx.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Collect false alarms of a face finder, for `prepare mtfl --whole --backgrounds`.

    They are parts of photographs where the finder sees a face and the localizer does not.
    """
    from recombinator.study.negatives import write_negatives

    with progress("photographs") as advance:
        count = write_negatives(weights, out, data=data, photographs=photos, finder=finder, seed=seed, progress=advance)
    print(f"{count} parts of photographs: {out}")


def framing(data: Data) -> None:
    """Print the regression from five points to the square around all 68, for recombinator.predict.five_points.

    It is a linear regression on the annotated points of the training table.
    """
    from recombinator.data.table import load_table
    from recombinator.predict.engine import load_engine
    from recombinator.predict.predictor import FRAMING
    from recombinator.study.framing import square_regression

    typical = load_engine(FRAMING).about.template
    for row in square_regression(load_table(data / "train.parquet").points, typical):
        print(f"        ({', '.join(f'{value:.4f}' for value in row)}),")
