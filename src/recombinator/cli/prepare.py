"""`recombinator prepare`: datasets to tables."""

from __future__ import annotations

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import AllowOutside, Command, Data, Group, Overwrite, Seed, check_outputs
from recombinator.utils.console import progress
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_folder
from recombinator.utils.text import plural

prepare = typer.Typer(help="Turn a dataset into Parquet tables of crops and points.", cls=Group, no_args_is_help=True)


class YAxis(StrEnum):
    """Direction of y."""

    down = "down"
    up = "up"


Folder = Annotated[
    Path | None, typer.Argument(metavar="OUT", show_default=False, help="Folder for the tables; the same as --out.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Folder for train, valid and test.parquet.")]
Size = Annotated[int, typer.Option(min=16, max=1024, metavar="PIXELS", help="Side of the stored crops.")]
Gray = Annotated[bool, typer.Option("--gray/--color", help="Store gray or RGB crops.")]
Quality = Annotated[int, typer.Option(min=0, max=100, metavar="N", help="JPEG quality; 0 stores PNG, without loss.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first face that cannot be used.")]


def _one_folder(positional: Path | None, option: Path | None, overwrite: bool) -> Path:
    """Return the folder for the tables, given in one of two ways; it must hold none, or they may be replaced."""
    folder = option or positional
    if folder is None:
        raise InputError("no folder for the tables; give --out FOLDER")
    if option and positional:
        raise InputError(f"two folders for the tables, {positional} and --out {option}: give one")
    check_output_folder(folder)
    check_outputs(*(folder / f"{split}.parquet" for split in ("train", "valid", "test")), overwrite=overwrite)
    return folder


def _print_counts(counts: dict[str, int], out: Path) -> None:
    parts = [f"{out / split}.parquet: {plural(n, 'face')}" for split, n in counts.items() if split != "dropped" and n]
    print("\n".join(parts))
    if "dropped" in counts:
        print(f"dropped: {plural(counts['dropped'], 'face')}")


Whole = Annotated[bool, typer.Option("--whole", help="Store whole images instead of crops, to train a finder.")]
Backgrounds = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="With --whole: images without objects.", show_default=False)
]


def _check_backgrounds(backgrounds: Path | None, whole: bool) -> None:
    if backgrounds and not whole:
        raise InputError("--backgrounds: for whole images only; add --whole")


def _add_reader(name: str, module: str, text: str, finder: bool = False) -> None:
    """Add a command for a dataset that is read from a folder; they differ in data only."""

    def command(
        source: Annotated[
            Path, typer.Argument(metavar="SOURCE", help="Folder of the dataset, in its original layout.")
        ],
        folder: Folder = None,
        out: Out = None,
        size: Size = 160,
        gray: Gray = False,
        quality: Quality = 95,
        strict: Strict = False,
        whole: Whole = False,
        backgrounds: Backgrounds = None,
        overwrite: Overwrite = False,
    ) -> None:
        out = _one_folder(folder, out, overwrite)
        if (whole or backgrounds) and not finder:
            raise InputError(
                f"prepare {name}: --whole and --backgrounds are for `prepare mtfl` and `prepare points` only"
            )
        _check_backgrounds(backgrounds, whole)
        read = getattr(import_module(f"recombinator.data.readers.{module}"), f"prepare_{name}")
        further = {"whole": whole, "backgrounds": backgrounds} if whole else {}
        with progress("preparing") as advance:
            counts = read(
                source, out, size=size, gray=gray, quality=quality, strict=strict, progress=advance, **further
            )
        _print_counts(counts, out)

    prepare.command(name, cls=Command, help=text)(command)


for _name, _module, _text, _finder in (
    (
        "mtfl", "mtfl",
        "Read MTFL and its AFLW test set: five points.\n\nSOURCE contains training.txt (10,000 faces), testing.txt "
        "(AFLW) and the images that they name.",
        True,
    ),
    (
        "afw", "afw",
        "Read AFW: five points, a test table only.\n\nSOURCE contains the photographs and anno.mat (MATLAB 7.3).",
        False,
    ),
    (
        "300w", "w300",
        "Read 300-W: 68 points.\n\nSOURCE contains folders of images with .pts files. Those in folders named testset "
        "and ibug become the test table.",
        False,
    ),
):  # fmt: skip
    _add_reader(_name, _module, _text, _finder)


@prepare.command("points", cls=Command)
def prepare_own(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Points: a file or folder in one of the formats above.")
    ],
    folder: Folder = None,
    out: Out = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default="the folder of SOURCE", help="Folder of the images.")
    ] = None,
    normalizer: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            show_default="the points' bounding box",
            help="Two keypoints whose distance normalizes errors.",
        ),
    ] = None,
    missing: Annotated[
        str,
        typer.Option(
            metavar="[auto|none|X,Y]",
            help="Coordinates that mean a missing point; auto: 0,0 and -1,-1 if two or more points have them.",
        ),
    ] = "auto",
    points_format: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="from the content", help="Format of SOURCE.")
    ] = None,
    y_axis: Annotated[
        YAxis | None,
        typer.Option(
            metavar="[down|up]",
            show_default="from the format",
            help="Direction of y; up: y counts from the image's bottom.",
        ),
    ] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="POINTS2", help="Points of other images, for the test table.")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with train, valid or test for each image.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Put images with the same value, such as a person or video, in one split; folder: the image's folder.",
        ),
    ] = None,
    mm_per_pixel: Annotated[
        str | None,
        typer.Option(
            metavar="[MM|COLUMN]",
            show_default="SCALE of .tps",
            help="Size of a pixel in millimeters, or the column with it.",
        ),
    ] = None,
    allow_outside: AllowOutside = False,
    size: Size = 160,
    gray: Gray = False,
    quality: Quality = 95,
    strict: Strict = False,
    whole: Whole = False,
    backgrounds: Backgrounds = None,
    overwrite: Overwrite = False,
) -> None:
    """Read your own keypoints, of faces or other objects.

    CSV or TSV: columns file, keypoint, x, y (one row per point; also face, where an image has several objects), or
    file, x1, y1, x2, y2 and so on (one row per object). JSON: what `predict` writes, objects with file and points, or
    COCO keypoints. Also files and projects of DeepLabCut, SLEAP, LabelMe, Label Studio, CVAT, VIA, dlib, tpsDig, YOLO
    pose, and folders of .pts.
    """
    from recombinator.data.readers.own import prepare_points

    out = _one_folder(folder, out, overwrite)
    _check_backgrounds(backgrounds, whole)
    with progress("preparing") as advance:
        counts = prepare_points(
            source, out, images=images, normalizer=normalizer, size=size, gray=gray, quality=quality, strict=strict,
            missing=missing, points_format=points_format, y_up=None if y_axis is None else y_axis is YAxis.up,
            test=test, split_column=split_column, group=group, mm_per_pixel=_millimeters(mm_per_pixel),
            whole=whole, backgrounds=backgrounds, allow_outside=allow_outside, progress=advance,
        )  # fmt: skip
    _print_counts(counts, out)


def _millimeters(text: str | None) -> float | str | None:
    """Return --mm-per-pixel as a number, or as it is: the name of a column."""
    try:
        return float(text or "")
    except ValueError:
        return text


@prepare.command("pseudo-labels", cls=Command)
def prepare_pseudo_labels(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO", help="Files, folders or patterns of photographs without points.")
    ],
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the tables.")],
    weights: Annotated[
        str, typer.Option(metavar="WEIGHTS", help="Network that predicts the points; fastest as an .onnx file.")
    ],
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, metavar="P", help="Points with a lower confidence count as unknown.")
    ] = 0.5,
    min_size: Annotated[float, typer.Option(min=0, metavar="PIXELS", help="Skip objects with a smaller crop.")] = 0,
    threads: Annotated[int, typer.Option(min=0, metavar="N", help="CPU threads; 0: all cores.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Add photographs that a trained network labels to a training table.

    The tables of --data are copied to --out. The objects that the network finds in the photographs become further
    training rows, with its points in place of annotated ones.
    """
    from recombinator.cli.photographs import workers_for
    from recombinator.fit.pseudo_labels import FILE, add_pseudo_labels
    from recombinator.predict.batch import find_photographs
    from recombinator.predict.predictor import load

    check_outputs(out / FILE, out / "train.parquet", overwrite=overwrite)
    names = find_photographs(photos)
    workers = workers_for(len(names), weights, None, threads, "cpu")
    with progress("photographs") as advance:
        added = add_pseudo_labels(
            data, names, load(weights, threads=1 if workers > 1 else threads), out, least=min_confidence,
            smallest=min_size, workers=workers, progress=advance,
        )  # fmt: skip
    print(f"{out / FILE}: {plural(added, 'object')}, and the tables of {data}")


@prepare.command("synthetic", cls=Command)
def prepare_synthetic(
    folder: Folder = None,
    out: Out = None,
    faces: Annotated[
        int, typer.Option(metavar="N", help="Number of faces; a tenth each for validation and test.")
    ] = 1000,
    keypoints: Annotated[int, typer.Option(metavar="[5|68]", help="Keypoints per face.")] = 5,
    seed: Seed = 0,
    size: Size = 160,
    gray: Gray = True,
    quality: Quality = 95,
    overwrite: Overwrite = False,
) -> None:
    """Draw faces with known points; no download needed."""
    from recombinator.data.readers import synthetic

    out = _one_folder(folder, out, overwrite)
    with progress("drawing") as advance:
        counts = synthetic.prepare_synthetic(
            out, faces=faces, keypoints=keypoints, seed=seed, size=size, gray=gray, quality=quality, progress=advance
        )
    _print_counts(counts, out)
