"""`recombinator prepare`: datasets to tables."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from recombinator.utils.console import progress, warn

prepare = typer.Typer(help="Turn a dataset into Parquet tables of crops and points.", no_args_is_help=True)

Size = Annotated[int, typer.Option(min=16, max=1024, help="side of the stored crops in pixels")]
Quality = Annotated[int, typer.Option(min=0, max=100, help="JPEG quality; 0 stores PNG, without loss")]


def _counts(counts: dict[str, int], out: Path) -> None:
    parts = [f"{out / split}.parquet: {n} faces" for split, n in counts.items() if split != "dropped" and n]
    print("\n".join(parts))
    if "dropped" in counts:
        print(f"dropped: {counts['dropped']} faces")


def _reader(name: str, module: str, text: str) -> None:
    """One `prepare` command for each dataset that is read from a folder; they differ in data only."""

    def command(
        source: Annotated[Path, typer.Argument(help="the dataset's folder, in its original layout")],
        out: Annotated[Path, typer.Argument(help="folder to write train, valid and test.parquet to")],
        size: Size = 160,
        gray: Annotated[bool, typer.Option("--gray", help="store gray crops")] = False,
        quality: Quality = 95,
        strict: Annotated[bool, typer.Option("--strict", help="stop at the first bad face")] = False,
    ) -> None:
        read = getattr(import_module(f"recombinator.data.readers.{module}"), f"prepare_{name}")
        with progress("preparing") as advance:
            counts = read(source, out, size=size, gray=gray, quality=quality, strict=strict, drop=warn, advance=advance)
        _counts(counts, out)

    prepare.command(name, help=text)(command)


_reader("mtfl", "mtfl", "MTFL: training.txt (9,000 + 1,000, the authors' split) and its AFLW testing.txt.")
_reader("afw", "afw", "AFW: photographs and anno.mat (MATLAB 7.3); a test table of five points.")
_reader("300w", "w300", "300-W: images beside .pts files; folders testset and ibug are the test table.")


@prepare.command("points")
def prepare_own(
    source: Annotated[Path, typer.Argument(help="points: .csv, .json or .jsonl, naming their images")],
    out: Annotated[Path, typer.Argument(help="folder to write train, valid and test.parquet to")],
    images: Annotated[Path | None, typer.Option(help="folder of the images; else beside the points")] = None,
    normalizer: Annotated[str | None, typer.Option(help="two keypoints, a,b: errors are shares of their gap")] = None,
    missing: Annotated[
        str, typer.Option(help="what stands for a missing point: auto (0,0 or -1,-1 if repeated), 0,0, or none")
    ] = "auto",
    size: Size = 160,
    gray: Annotated[bool, typer.Option("--gray", help="store gray crops")] = False,
    quality: Quality = 95,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first that cannot be used")] = False,
) -> None:
    """Your own keypoints, of faces or of anything: a file of points and the images it names.

    CSV: columns file, keypoint, x, y (a row a point; face too, where a photograph has several), or file, x1, y1, x2, y2
    and so on (a row a face). JSON: what `predict` writes, objects with file and points, or COCO keypoints.
    """
    from recombinator.data.readers.own import prepare_points

    with progress("preparing") as advance:
        counts = prepare_points(
            source, out, images=images, normalizer=normalizer, size=size, gray=gray, quality=quality, strict=strict,
            missing=missing, drop=warn, advance=advance,
        )  # fmt: skip
    _counts(counts, out)


@prepare.command("synthetic")
def prepare_synthetic(
    out: Annotated[Path, typer.Argument(help="folder to write train, valid and test.parquet to")],
    faces: Annotated[int, typer.Option(help="faces in all; a tenth each for validation and test")] = 1000,
    points: Annotated[int, typer.Option(help="keypoints a face: 5 or 68")] = 5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Size = 160,
    gray: Annotated[bool, typer.Option("--gray/--color")] = True,
    quality: Quality = 95,
) -> None:
    """Drawn faces with known points: no download needed."""
    from recombinator.data.readers import synthetic

    with progress("drawing") as advance:
        counts = synthetic.prepare_synthetic(
            out, faces=faces, keypoints=points, seed=seed, size=size, gray=gray, quality=quality, advance=advance
        )
    _counts(counts, out)
