"""Networks measured: errors on a table or on photographs, comparisons, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recombinator.cli.options import (
    DETECTOR_FILES,
    JsonOut,
    Limit,
    Occlude,
    Overwrite,
    Table,
    Threads,
    WeightsArgument,
    check_outputs,
    passes_option,
    print_all,
    set_threads,
    write_report,
)
from recombinator.utils.console import progress
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_folder
from recombinator.utils.text import plural

PROTOCOLS = (("nme_paper", "paper's protocol"), ("nme", "continuous"))  # docs/protocol.md


def evaluate(
    weights: WeightsArgument,
    data: Table,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the report to FILE.json, and FILE.images.parquet."),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also draw the error curve and the worst faces.")
    ] = None,
    limit: Limit = None,
    occlude: Occlude = False,
    photos: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Evaluate on the photographs that the table was made from.")
    ] = None,
    detector: Annotated[
        str, typer.Option(metavar=f"[auto|faces|haar|{DETECTOR_FILES}]", help="With --photos: see predict.")
    ] = "auto",
    passes: Annotated[
        int | None, passes_option("With --photos: number of passes; each crops around the points of the last one.")
    ] = None,
    engine: Annotated[
        str, typer.Option(metavar="[torch|onnx]", help="Engine of the network; .onnx files always use onnx.")
    ] = "torch",
    overwrite: Overwrite = False,
) -> None:
    """Measure errors on a table, or on photographs.

    Prints the mean error in the paper's protocol and in the continuous one (docs/protocol.md), each with its 95 %
    interval. With --photos, face detection is included.
    """
    from recombinator.evaluation import denoising
    from recombinator.evaluation import tables as evaluation
    from recombinator.weights.files import load_weights
    from recombinator.weights.shipped import is_graph

    per_image = json_out and json_out.with_name(f"{json_out.stem}.images.parquet")
    pictures = [plots / name for name in ("cumulative.png", "worst.png")] if plots else []
    check_outputs(json_out, per_image, *pictures, overwrite=overwrite, source=data)
    if plots:
        check_output_folder(plots)
    if photos:
        if occlude or plots:
            raise InputError("--photos excludes --occlude and --plots, which apply to the table's crops")
        _evaluate_photos(weights, data, photos, detector, passes, limit, json_out)
        return
    loaded = weights if is_graph(weights) or engine == "onnx" else load_weights(weights)
    if not isinstance(loaded, str) and not loaded.net.takes_images:
        if occlude or plots:
            raise InputError(f"{weights}: --occlude and --plots need a network that takes images; this is a denoiser")
        report = denoising.evaluate_denoiser(loaded, data, limit=limit)
        print_all(write_report(json_out, "denoising", report))
        print(
            f"{weights} on {data}: {plural(report['data']['images'], 'face')}, {report['corrupted']} points of each "
            "moved to random places; errors of these points in %"
        )
        for name, row in report["rows"].items():
            print(f"  {name:24} paper's protocol {_interval(row, 'nme_paper')}  continuous {row['nme']:6.3f}")
        return
    result, report = evaluation.evaluate(loaded, data, limit=limit, occlude=occlude, engine=engine)
    # files before anything is printed: a closed pipe (`| head`) stops the command
    written = []
    if json_out and per_image:
        evaluation.write_per_image(per_image, result)
        written.append(f"wrote {per_image}")
        written += write_report(json_out, "evaluation", report)
    if plots:
        from recombinator.evaluation import plots as drawing

        drawing.plot_cumulative(pictures[0], result, f"{weights}, {report['data']['dataset']}")
        drawing.plot_worst(pictures[1], result)
        written.append(f"wrote {pictures[0]} and {pictures[1]}")
    print_all(written)
    names = report["keypoints"]
    print(f"{weights} on {data}: {plural(report['images'], 'image')}, errors in % of the {report['normaliser']}")
    for key, protocol in PROTOCOLS:
        print(f"  {protocol:17} {_interval(report, key)}")
    print(f"  above 10 %: {100 * report['failure_rate_10']:.2f} % of the images; AUC to 10 %: {report['auc_10']:.4f}")
    if len(names) <= 10:
        errors = zip(names, report["per_keypoint"], strict=True)
        print("  by keypoint, continuous: " + ", ".join(f"{name} {error:.2f}" for name, error in errors))
    for name, rows in report.get("by", {}).items():
        classes = ", ".join(f"{r['class']}: {r['nme']:.2f} ({plural(r['images'], 'image')})" for r in rows)
        print(f"  by class of {name}, continuous: {classes}")


def _interval(row: dict[str, Any], key: str) -> str:
    low, high = row[f"{key}_ci95"]
    return f"{row[key]:6.3f}  [{low:.3f}, {high:.3f}]"


def _evaluate_photos(
    weights: str, data: Path, photos: Path, detector: str, passes: int | None, limit: int | None, json_out: Path | None
) -> None:
    from recombinator.evaluation.photographs import evaluate_photographs
    from recombinator.predict.detect import detector_by_name

    with progress("photographs") as advance:
        report = evaluate_photographs(
            weights, data, photos, detector=detector_by_name(detector), passes=passes, limit=limit, progress=advance
        )
    print_all(write_report(json_out, "photographs", {**report, "detector": detector}))
    found, missed, others = report["found"], report["missed"], report["others"]
    photographs, faces = plural(report["photographs"], "photograph"), plural(report["faces"], "face")
    print(f"{weights} on {photographs} of {data}, {plural(report['passes'], 'pass')}")
    print(f"  {found} of {faces} found, {missed} missed, {plural(others, 'other detection')}")
    if found:
        print(f"  error of the faces found, continuous, in %: {_interval(report, 'nme')}")
        print(f"  the same faces, with the crop from the true points: {report['nme_true_crop']:.3f}")


def compare(
    weights: Annotated[
        list[str], typer.Argument(metavar="WEIGHTS", help="Two or more networks; the first one is the reference.")
    ],
    data: Table,
    json_out: JsonOut = None,
    limit: Limit = None,
    occlude: Occlude = False,
    overwrite: Overwrite = False,
) -> None:
    """Compare networks on the same images, with intervals.

    Prints each network's error and its difference from the first one's with a 95 % interval, over all images and over
    the tenth where the first network is worst.
    """
    from recombinator.evaluation import tables as evaluation

    check_outputs(json_out, overwrite=overwrite, source=data)
    report = evaluation.compare(weights, data, limit=limit, occlude=occlude)
    print_all(write_report(json_out, "comparison", report))
    images = plural(report["images"], "image")
    print(f"{data}{', occluded' if occlude else ''}: {images}, errors in % of the {report['normaliser']}")
    for part, text in (("all", "all images"), ("worst_tenth", f"the tenth where {weights[0]} is worst")):
        print(text)
        for row in report["rows"]:
            line = f"  {row['weights']:32}"
            for key, protocol in PROTOCOLS:
                low, high = row[f"{key}_{part}_difference_ci95"]
                line += f"  {protocol} {row[f'{key}_{part}']:6.3f} ({row[f'{key}_{part}_difference']:+.3f} "
                line += f"[{low:+.3f}, {high:+.3f}])"
            print(line)


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default="rcn-6, sumnet-6", help="Architecture or shipped name (repeatable)."),
    ] = None,
    json_out: JsonOut = None,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of interleaved rounds; medians are printed.")
    ] = 7,
    threads: Threads = None,
    pipeline: Annotated[
        bool,
        typer.Option(
            "--pipeline", help="Time prediction from an image to points; one thread unless --threads is given."
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure training and prediction speed on this machine.

    For comparison, a matrix product and a convolution are timed too; with --pipeline, a fixed OpenCV operation.
    """
    from recombinator.study import bench as benchmark

    check_outputs(json_out, overwrite=overwrite)
    set_threads(threads)
    if pipeline:
        from recombinator.study import pipeline as photographs

        with progress("timing") as advance:
            report = photographs.run(model or [], rounds, threads or 1, advance)
        print(benchmark.as_text(report))
        write_report(json_out, "pipeline", report)
        return
    with progress("timing") as advance:
        report = benchmark.run(model or ["rcn-6", "sumnet-6"], rounds, advance)
    print_all(write_report(json_out, "bench", report))
    print(benchmark.as_text(report))
