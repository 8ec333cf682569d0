"""`recombinator check-labels` and `suggest`: which labels are probably wrong, and which images to label next."""

from __future__ import annotations

import csv
import io
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import Overwrite, Threads, check_outputs, set_threads, write_report
from recombinator.cli.photographs import workers_for
from recombinator.utils.console import progress, warn
from recombinator.utils.files import check_output_file, check_output_folder, plain_cell, write_text
from recombinator.utils.text import plural


def check_labels(
    points: Annotated[
        Path, typer.Argument(metavar="POINTS", help="Points file, as for `fit`, or with --model a .parquet table.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            show_default="fitted to the other images",
            help="Shipped name, weights file or run folder of a model that has not seen the images.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default="that of POINTS", help="Folder of the images.")
    ] = None,
    folds: Annotated[
        int, typer.Option(min=2, metavar="N", help="Without --model: parts that the images are split into.")
    ] = 5,
    minutes: Annotated[
        float, typer.Option(min=0.1, metavar="N", help="Without --model: minutes for all fits together.")
    ] = 30.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 2, metavar="N", help="Without --model: random seed.")] = 0,
    number: Annotated[int, typer.Option(min=1, metavar="N", help="Points to print.")] = 20,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write all points, ranked, to this .csv or .json file.")
    ] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Rank probable label errors of an annotation file.

    A point ranks high if it is far from a confident prediction. Without --model, the images are split into folds; a
    model is fitted to the other folds, as `fit` does, and predicts the images of its fold.
    """
    from recombinator.fit import labels
    from recombinator.utils.allocator import keep_freed_memory

    keep_freed_memory()
    if out:
        check_output_file(out, ".csv", ".json")
    check_outputs(out, overwrite=overwrite, source=points)
    set_threads(threads)
    with progress("check-labels, steps of a fold") as advance:
        report = labels.check_labels(
            model, points, images, folds=folds, minutes=minutes, seed=seed, progress=advance
        )  # fmt: skip
    rows = report["labels"]
    if out and out.suffix.lower() == ".json":
        write_report(out, "labels", report)
    elif out:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([plain_cell(v) if isinstance(v, str) else v for v in row.values()] for row in rows)
        write_text(out, text.getvalue())
    print(f"{'rank':>4}  {'error':>8}  {'ratio':>6}  {'confidence':>10}  point")
    for row in rows[:number]:
        print(
            f"{row['rank']:>4}  {row['error']:>8.1f}  {row['ratio']:>6.1f}  {row['confidence']:>10.2f}  "
            f"{row['where']} ({row['file']}): {row['keypoint']}, {row['reason']}"
        )
    print(f"{plural(len(rows), 'point')} of {plural(report['objects'], 'object')}" + (f": {out}" if out else ""))


def suggest(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Shipped name, weights file or run folder.")],
    images: Annotated[list[Path], typer.Option(metavar="FOLDER", help="Image, video, or folder of them (repeatable).")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for the predictions of the chosen images.")],
    number: Annotated[int, typer.Option(min=1, metavar="N", help="Images to choose.")] = 20,
    frames: Annotated[
        int, typer.Option(min=1, metavar="N", help="Evenly spaced frames of each video to choose from.")
    ] = 100,
    labeled: Annotated[
        Path | None, typer.Option(metavar="POINTS", help="Points file of the labeled images, which are not chosen.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            show_default="json and csv",
            help="Format of the predictions, as in predict (repeatable).",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Choose the images to label next, and predict them.

    Chooses images and video frames with uncertain points that differ from each other and from the labeled images.
    Chosen frames are written to the folder frames in --out. Correct the predictions in your labeling tool (--format),
    then run `fit` again. The exit status is 1 if an image could not be read.
    """
    from recombinator.data.images import ENDINGS
    from recombinator.fit.samples import read_samples
    from recombinator.predict import batch, predictor
    from recombinator.predict.suggest import Videos
    from recombinator.predict.suggest import suggest as choose_images
    from recombinator.predict.track import VIDEO_ENDINGS

    check_output_folder(out)
    if not overwrite:
        batch.check_no_results(out)
    folder = next((path for path in images if path.is_dir()), None)
    samples = read_samples(labeled, folder, allow_outside=True)[0] if labeled else []
    known = {str(sample.path.resolve()) for sample in samples}
    inputs = batch.find_photographs(images, out, (*ENDINGS, *VIDEO_ENDINGS))
    names = [n for n in inputs if not n.lower().endswith(VIDEO_ENDINGS) and str(Path(n).resolve()) not in known]
    videos = Videos(
        [n for n in inputs if n.lower().endswith(VIDEO_ENDINGS)], out / "frames", frames,
        frozenset(Path(name).name for name in known),
    )  # fmt: skip
    loaded, total = predictor.load(model, threads=1), len(names) + len(videos)
    with progress("images") as step:
        found = choose_images(
            loaded, chain(((n, n) for n in names), videos), number, sorted(known), total=total, progress=step,
            workers=workers_for(total, model, None, 0, "cpu"),
        )  # fmt: skip
        files = [name for name, _ in found.chosen]
        videos.write(files)
    for sentence in found.failed:
        warn(sentence)
    batch.predict_all(
        loaded, files, out, formats=formats or ("json", "csv"), pictures=False, overwrite=overwrite,
        weights=model,
    )  # fmt: skip
    for name, uncertainty in found.chosen:
        print(f"{uncertainty:.3f}  {name}")
    left_out = f", {plural(len(known), 'labeled image')} left out" if known else ""
    print(f"{len(files)} of {plural(found.candidates, 'image')}{left_out}; predictions: {out}")
    if found.failed:
        raise typer.Exit(1)
