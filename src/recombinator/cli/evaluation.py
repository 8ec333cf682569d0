"""Networks measured: errors on a table or on photographs, comparisons, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import (
    JsonOut,
    Limit,
    Occlude,
    Table,
    Threads,
    WeightsArgument,
    check_not_overwriting,
    print_all,
    set_threads,
    write_report,
)
from recombinator.utils.console import progress
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_file, check_output_folder


def evaluate(
    weights: WeightsArgument,
    data: Table,
    json_out: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="also write the report to this file, with a .images.parquet"),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="also draw the error curve and the worst faces")
    ] = None,
    limit: Limit = None,
    occlude: Occlude = False,
    photos: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="evaluate on the photographs that the table was made from")
    ] = None,
    detector: Annotated[str, typer.Option(metavar="[haar|yunet:FILE]", help="with --photos: face detector")] = "haar",
    passes: Annotated[
        int, typer.Option(min=1, metavar="N", help="with --photos: passes, each crops from the points before it")
    ] = 2,
    engine: Annotated[
        str, typer.Option(metavar="[torch|onnx]", help="what runs the network; .onnx files always use onnx")
    ] = "torch",
) -> None:
    """Measure errors on a table, or on photographs.

    Reports the paper's protocol and the continuous one. With --photos, face detection is included.
    """
    from recombinator.evaluation import denoising
    from recombinator.evaluation import tables as evaluation
    from recombinator.weights.files import load_weights
    from recombinator.weights.shipped import is_graph

    per_image = json_out and json_out.with_name(f"{json_out.stem}.images.parquet")
    check_not_overwriting(data, json_out, per_image)
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
            raise InputError("--occlude and --plots are for networks that take images; this is a denoiser")
        report = denoising.evaluate_denoiser(loaded, data, limit=limit)
        print_all(write_report(json_out, "denoising", report))
        print(f"{weights} on {data}: {report['data']['images']} faces, {report['protocol']}")
        for name, row in report["rows"].items():
            low, high = row["nme_paper_ci95"]
            print(f"  {name:24} nme_paper {row['nme_paper']:6.3f}  [{low:.3f}, {high:.3f}]  nme {row['nme']:6.3f}")
        return
    result, report = evaluation.evaluate(loaded, data, limit=limit, occlude=occlude, engine=engine)
    # files before anything is printed: a closed pipe (`| head`) stops the command
    written = []
    if json_out and per_image:
        evaluation.write_per_image(per_image, result)
        written.append(f"wrote {per_image}")
        written += write_report(json_out, "evaluation", report)
    if plots:
        from recombinator.evaluation import plots as pictures

        pictures.plot_cumulative(plots / "cumulative.png", result, f"{weights}, {report['data']['dataset']}")
        pictures.plot_worst(plots / "worst.png", result)
        written.append(f"wrote {plots / 'cumulative.png'} and {plots / 'worst.png'}")
    print_all(written)
    names = report["keypoints"]
    print(f"{weights} on {data}: {report['images']} images, errors in % of the {report['normaliser']}")
    for protocol, key in (("paper", "nme_paper"), ("continuous", "nme")):
        low, high = report[f"{key}_ci95"]
        print(f"  {key:10} {report[key]:6.3f}  [{low:.3f}, {high:.3f}]  {protocol}: {report['protocols'][protocol]}")
    print(
        f"  failures over 10 %: {100 * report['failure_rate_10']:.2f} % of images; AUC to 10 %: {report['auc_10']:.4f}"
    )
    if len(names) <= 10:
        print("  nme of " + ", ".join(f"{n} {e:.2f}" for n, e in zip(names, report["per_keypoint"], strict=True)))
    for name, rows in report.get("by", {}).items():
        classes = ", ".join(f"{r['class']}: {r['nme']:.2f} ({r['images']})" for r in rows)
        print(f"  nme (images) by {name}, classes from 0: {classes}")


def _evaluate_photos(
    weights: str, data: Path, photos: Path, detector: str, passes: int, limit: int | None, json_out: Path | None
) -> None:
    from recombinator.evaluation.photographs import evaluate_photographs
    from recombinator.predict.detect import detector_by_name

    with progress("photographs") as advance:
        report = evaluate_photographs(
            weights, data, photos, detector=detector_by_name(detector), passes=passes, limit=limit, progress=advance
        )
    print_all(write_report(json_out, "photographs", {**report, "detector": detector}))
    print(f"{weights} on {report['photographs']} photographs of {data}, {passes} passes; {report['protocol']}")
    found, missed, others = report["found"], report["missed"], report["others"]
    print(f"  {found} of {report['faces']} faces found, {missed} missed, {others} other detections")
    if found:
        (low, high), ideal = report["nme_ci95"], report["nme_true_crop"]
        print(f"  error {report['nme']:.3f} %  [{low:.3f}, {high:.3f}]; crop from true points {ideal:.3f} %")


def compare(
    weights: Annotated[
        list[str], typer.Argument(metavar="WEIGHTS...", help="two or more; the first one is the reference")
    ],
    data: Table,
    json_out: JsonOut = None,
    limit: Limit = None,
    occlude: Occlude = False,
) -> None:
    """Compare networks on the same images, with intervals.

    The intervals are 95 % ones of the differences, over all images and over the tenth where the first network is worst.
    """
    from recombinator.evaluation import tables as evaluation

    check_not_overwriting(data, json_out)
    report = evaluation.compare(weights, data, limit=limit, occlude=occlude)
    print_all(write_report(json_out, "comparison", report))
    print(f"{data}{', occluded' if occlude else ''}: {report['images']} images, % of the {report['normaliser']}")
    for part, text in (("all", "all images"), ("worst_tenth", f"the tenth where {weights[0]} is worst")):
        print(text)
        for row in report["rows"]:
            line = f"  {row['weights']:32}"
            for key in ("nme_paper", "nme"):
                low, high = row[f"{key}_{part}_difference_ci95"]
                line += f"  {key} {row[f'{key}_{part}']:6.3f} ({row[f'{key}_{part}_difference']:+.3f} "
                line += f"[{low:+.3f}, {high:+.3f}])"
            print(line)


def bench(
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default="rcn-6, sumnet-6", help="architecture or shipped name (repeatable)"),
    ] = None,
    json_out: JsonOut = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="interleaved repetitions; medians are printed")] = 7,
    threads: Threads = None,
) -> None:
    """Measure training and prediction speed on this machine.

    The machine's own multiply rate is measured too, for comparison.
    """
    from recombinator.study import bench as benchmark

    if json_out:
        check_output_file(json_out)
    set_threads(threads)
    with progress("timing") as advance:
        report = benchmark.run(model or ["rcn-6", "sumnet-6"], rounds, advance)
    print_all(write_report(json_out, "bench", report))
    print(benchmark.as_text(report))
