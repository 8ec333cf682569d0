"""Weights files: export, conversion, combination, calibration; the denoiser on points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recombinator.cli.options import (
    JsonOut,
    Limit,
    NetworkArgument,
    Overwrite,
    Table,
    WeightsArgument,
    WeightsOut,
    check_outputs,
    print_all,
    write_report,
)
from recombinator.utils.console import progress, warn
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_file
from recombinator.utils.text import plural

if TYPE_CHECKING:  # it brings torch
    from recombinator.weights.files import Weights

KEEP_BELOW = 4.6  # 1/100 of the probability of the best position


def export(
    weights: WeightsArgument,
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="File to write, .onnx.")],
    maps: Annotated[bool, typer.Option("--maps", help="Add the score maps as an output.")] = False,
    int8: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="Quantize to 8 bits, with ranges from 256 images of this training table."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Export an ONNX graph that includes pre- and post-processing.

    Input: a uint8 crop. Outputs: points, probabilities and covariances.
    """
    from recombinator.deploy.onnx import export as write

    check_output_file(onnx, ".onnx")
    check_outputs(onnx, overwrite=overwrite)
    write(weights, onnx, maps=maps, int8=int8)
    print(f"wrote {onnx}: {onnx.stat().st_size / 1e6:.2f} MB")


def convert(
    parameters: Annotated[Path, typer.Argument(metavar="FILE", help="The authors' shared_conv_params_*.pickle.")],
    out: WeightsOut,
    model: Annotated[str, typer.Option(metavar="NAME", help="Architecture of the file.")] = "rcn-68",
    released: Annotated[
        bool,
        typer.Option(
            "--released/--no-released", help="As released: learned upsampling, and only maxima of the trunk are kept."
        ),
    ] = True,
    overwrite: Overwrite = False,
) -> None:
    """Convert the authors' released parameters.

    The pickle is parsed; nothing in it is executed.
    """
    from recombinator.weights import convert as converter
    from recombinator.weights.files import save_weights

    check_output_file(out, ".safetensors")
    check_outputs(out, overwrite=overwrite, source=parameters)
    options: dict[str, Any] = {"upsampling": "learned", "keep_maxima": True} if released else {}
    save_weights(out, converter.convert(parameters, model, **options))
    print(f"wrote {out}")


def join(
    image: NetworkArgument,
    denoiser: Annotated[
        str, typer.Argument(metavar="DENOISER", help="Denoiser: shipped name, weights file or run folder.")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Weights file to write, .safetensors, or .json that refers to both.")
    ],
    weight: Annotated[float, typer.Option(min=0, metavar="FACTOR", help="Factor on the denoiser's scores.")] = 1.0,
    iterations: Annotated[int, typer.Option(min=1, metavar="N", help="Passes through the denoiser.")] = 1,
    choose: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="Validation table that chooses --weight and --iterations.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Join an RCN and a denoiser into one model.

    Its scores are the sum of theirs (the paper's Section 4).
    """
    from recombinator.evaluation.tables import choose_joint
    from recombinator.weights import files as weights_files

    check_output_file(out, ".safetensors", ".json")
    check_outputs(out, overwrite=overwrite)
    if choose:
        tried = choose_joint(weights_files.join(image, denoiser), choose)
        for row in tried:
            iterations = int(row["iterations"])
            errors = f"plain {row['plain']:.3f} %, occluded {row['occluded']:.3f} %"
            print(f"weight {row['weight']:4g}, {plural(iterations, 'iteration')}: {errors}")
        best = min(tried, key=lambda row: row["plain"] + row["occluded"])
        weight, iterations = best["weight"], int(best["iterations"])
    joined = weights_files.join(image, denoiser, weight, iterations)  # raises where they do not fit
    if out.suffix == ".json":
        weights_files.write_pair(out, weights_files.resolve(image), weights_files.resolve(denoiser), weight, iterations)
    else:
        weights_files.save_weights(out, joined)
    print(f"wrote {out}: weight {weight:g}, {plural(iterations, 'iteration')}")


def _write_derived(out: Path, make: Callable[[], Weights], overwrite: bool) -> None:
    """Write weights made of others, which are not calibrated. The file's name is checked first."""
    from recombinator.weights.files import save_weights

    check_output_file(out, ".safetensors")
    check_outputs(out, overwrite=overwrite)
    made = make()
    save_weights(out, made)
    calibrate = f"; next: recombinator calibrate {out} --data VALID.parquet --out {out} --overwrite"
    print(f"wrote {out}{calibrate if made.net.takes_images else ''}")


def average(
    weights: Annotated[
        list[str], typer.Argument(metavar="WEIGHTS", help="Networks of one architecture, trained from one start.")
    ],
    out: WeightsOut,
    overwrite: Overwrite = False,
) -> None:
    """Average the weights of several networks.

    The average is often more precise than each network. Calibrate it again.
    """
    from recombinator.weights.derive import average as mean

    _write_derived(out, lambda: mean(weights), overwrite)


def mirror(weights: WeightsArgument, out: WeightsOut, overwrite: Overwrite = False) -> None:
    """Average a network's scores over an image and its mirror image.

    The result is more precise and takes twice the time. Calibrate it again, unless it is a denoiser.
    """
    from recombinator.weights.derive import mirrored

    _write_derived(out, lambda: mirrored(weights), overwrite)


def shift(
    weights: NetworkArgument,
    out: WeightsOut,
    by: Annotated[
        int, typer.Option(min=1, metavar="PIXELS", help="Size of the shift, odd, so that the pooling grid changes.")
    ] = 1,
    overwrite: Overwrite = False,
) -> None:
    """Average a network's scores over an image and four shifts of it.

    The result is more precise and takes five times the time. Calibrate it again.
    """
    from recombinator.weights.derive import shifted

    if by % 2 == 0:
        raise InputError(f"--by {by}: must be odd, so that the pooling grid changes")
    _write_derived(out, lambda: shifted(weights, by), overwrite)


def smooth(
    weights: WeightsArgument,
    out: WeightsOut,
    sigma: Annotated[
        float,
        typer.Option(min=0.1, metavar="CELLS", help="Standard deviation of the Gaussian."),
    ] = 1.5,
    overwrite: Overwrite = False,
) -> None:
    """Smooth the probabilities of a network's score maps.

    The highest cell is then more precise if the maps are broad, at almost no cost. Calibrate the result again.
    """
    from recombinator.weights.derive import smoothed

    _write_derived(out, lambda: smoothed(weights, sigma), overwrite)


def calibrate(
    weights: WeightsArgument,
    data: Table,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Weights file to write, .safetensors, or .json for a joint model's .json."),
    ],
    overwrite: Overwrite = False,
) -> None:
    """Calibrate a network's probabilities on a validation table.

    Fits one temperature. For a finder, --data is a table of another crop rule; the finder then also places the crops
    of that rule.
    """
    from recombinator.evaluation import calibration
    from recombinator.weights.files import read_pair, resolve, save_weights, write_pair

    check_outputs(out, overwrite=overwrite, source=data)
    check_output_file(out, ".safetensors", ".json")
    pair = read_pair(resolve(weights)) if out.suffix == ".json" else None  # raises where it is none
    done = calibration.calibrate(weights, data)
    if pair:
        write_pair(out, **{**pair, "calibration": done.calibration})
    else:
        save_weights(out, done)
    print(f"wrote {out}: {_calibrated(done.calibration)}")


def _calibrated(calibration: dict[str, Any]) -> str:
    if "relation" not in calibration:
        return f"temperature {calibration['temperature']:g}"
    return "; ".join(f"{rule}: {a:g} sides, {b:g} below" for rule, (a, b) in calibration["relation"].items())


def reliability(
    weights: WeightsArgument,
    data: Table,
    json_out: JsonOut = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Also draw it, into a folder or a .png or .pdf file.")
    ] = None,
    limit: Limit = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure how reliable a network's probabilities are.

    Compares the probability that a point is within r pixels with the observed frequency, and tests whether low
    confidence finds occluded points.
    """
    from recombinator.evaluation import calibration

    picture = plots / "reliability.png" if plots and not plots.suffix else plots
    check_outputs(json_out, picture, overwrite=overwrite, source=data)
    if picture:
        check_output_file(picture, ".png", ".pdf")
    report = calibration.report(weights, data, limit=limit)
    written = write_report(json_out, "reliability", report)
    if picture:
        from recombinator.evaluation.plots import plot_reliability

        plot_reliability(picture, report)
        written.append(f"wrote {picture}")
    print_all(written)
    temperature = report["calibration"].get("temperature", 1.0)
    print(f"{weights} on {data}: {plural(report['images'], 'image')}, jittered; temperature {temperature:g}")
    for part, name in (("plain", "plain"), ("covered", "occluded")):
        for row in report[part]:
            distance = plural(row["radius"], "pixel")
            print(
                f"  {name:8} within {distance}: true for {100 * row['right']:5.1f} % of the points, "
                f"calibration error {100 * row['error']:4.1f} % "
                f"(without temperature {100 * row['error_uncalibrated']:4.1f} %)"
            )
    if report["covered_auroc"] is not None:
        print(f"  occluded points found by low confidence: area under the ROC curve {report['covered_auroc']:.3f}")


def denoise(
    points: Annotated[Path, typer.Argument(metavar="POINTS", help="Points of faces, in a format of `prepare points`.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="File for the repaired points, .csv or .json.")],
    weights: Annotated[
        str, typer.Option(metavar="WEIGHTS", help="Denoiser: shipped name, weights file or run folder.")
    ] = "denoiser-lite-300w",
    keep_below: Annotated[
        float, typer.Option(min=0, metavar="X", help="Keep points whose implausibility is below X.")
    ] = KEEP_BELOW,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first face that cannot be used.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Repair points with a denoiser.

    Writes where each point should be, how far it was moved and how implausible it was.
    """
    from recombinator.data import points as files
    from recombinator.predict import repair as repairs
    from recombinator.weights.files import load_weights

    check_output_file(out, ".csv", ".json")
    check_outputs(out, overwrite=overwrite, source=points)
    loaded, dropped = load_weights(weights), 0

    def drop(error: InputError) -> None:
        nonlocal dropped
        if strict:
            raise error
        dropped += 1
        warn(f"dropped: {error}")

    rows = []
    sets = files.read_points(points, loaded.keypoints, drop)
    with progress("faces") as advance:
        for i, face in enumerate(sets, 1):
            try:
                repaired = repairs.repair(loaded, face.points, keep_below)
            except InputError as error:
                drop(InputError(f"{face.where}: {error}"))
                continue
            rows += repairs.repair_rows(face, repaired, loaded.keypoints)
            advance(i, len(sets))
    if not rows:
        needed = f"{weights} repairs {len(loaded.keypoints)} keypoints ({loaded.keypoints.name})"
        raise InputError(f"{points}: no face could be used ({dropped} dropped); {needed}")
    repairs.write_repairs(out, rows)
    faces = len(rows) // len(loaded.keypoints)
    moved = sum(not r["kept"] for r in rows)
    print(f"{plural(faces, 'face')}, {dropped} dropped, {plural(moved, 'point')} moved: {out}")
