"""`recombinator check-labels`: probable label errors of an annotation file."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import Overwrite, Threads, check_outputs, set_threads, write_report
from recombinator.utils.files import check_output_file, plain_cell, write_text
from recombinator.utils.text import plural


def check_labels(
    points: Annotated[
        Path, typer.Argument(metavar="POINTS", help="Points file as `fit` takes it, or a .parquet table.")
    ],
    model: Annotated[str, typer.Option(metavar="MODEL", help="Shipped name, weights file or run folder.")],
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default="that of POINTS", help="Folder of the images.")
    ] = None,
    number: Annotated[int, typer.Option(min=1, metavar="N", help="Points to print.")] = 20,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write all points, ranked, to this .csv or .json file.")
    ] = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Rank probable label errors of an annotation file.

    A point ranks high if it is far from a prediction that the model is sure of.
    """
    from recombinator.fit import labels

    if out:
        check_output_file(out, ".csv", ".json")
    check_outputs(out, overwrite=overwrite, source=points)
    set_threads(threads)
    report = labels.check_labels(model, points, images)
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
