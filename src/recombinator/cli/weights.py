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
    Table,
    WeightsArgument,
    WeightsOut,
    check_not_overwriting,
    print_all,
    write_report,
)
from recombinator.utils.console import progress, warn
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_file

if TYPE_CHECKING:  # it brings torch
    from recombinator.weights.files import Weights

KEEP_BELOW = 4.6  # 1/100 of the probability of the best position


def export(
    weights: WeightsArgument,
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="file to write, .onnx")],
    maps: Annotated[bool, typer.Option("--maps", help="score maps as a further output")] = False,
    int8: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="quantize to 8 bits, with ranges from 256 images of this training table"),
    ] = None,
) -> None:
    """Export one ONNX graph, pre- and post-processing included.

    Input: a uint8 crop. Outputs: points, probabilities and covariances.
    """
    from recombinator.deploy.onnx import export as write

    check_output_file(onnx, ".onnx")
    write(weights, onnx, maps=maps, int8=int8)
    print(f"wrote {onnx}: {onnx.stat().st_size / 1e6:.2f} MB")


def convert(
    parameters: Annotated[Path, typer.Argument(metavar="FILE", help="the authors' shared_conv_params_*.pickle")],
    out: WeightsOut,
    model: Annotated[str, typer.Option(metavar="NAME", help="architecture of the file")] = "rcn-68",
    released: Annotated[
        bool,
        typer.Option("--released/--no-released", help="learned upsampling and max-kept trunk, as in the release"),
    ] = True,
) -> None:
    """Convert the authors' released parameters.

    The pickle is parsed; nothing in it is executed.
    """
    from recombinator.weights import convert as converter
    from recombinator.weights.files import save_weights

    check_output_file(out, ".safetensors")
    options: dict[str, Any] = {"upsampling": "learned", "keep_maxima": True} if released else {}
    save_weights(out, converter.convert(parameters, model, **options))
    print(f"wrote {out}")


def join(
    image: NetworkArgument,
    denoiser: Annotated[
        str, typer.Argument(metavar="DENOISER", help="weights of a denoiser: name, file or run folder")
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="weights file to write, .safetensors, or .json that names the two")
    ],
    weight: Annotated[float, typer.Option(min=0, metavar="FACTOR", help="factor on the denoiser's scores")] = 1.0,
    iterations: Annotated[int, typer.Option(min=1, metavar="N", help="passes through the denoiser")] = 1,
    choose: Annotated[
        Path | None, typer.Option(metavar="TABLE", help="validation table that chooses --weight and --iterations")
    ] = None,
) -> None:
    """Join an RCN and a denoiser into one model.

    Its scores are the sum of theirs (the paper's Section 4).
    """
    from recombinator.evaluation.tables import choose_joint
    from recombinator.weights import files as weights_files

    check_output_file(out, ".safetensors", ".json")
    if choose:
        tried = choose_joint(weights_files.join(image, denoiser), choose)
        for row in tried:
            print(f"weight {row['weight']:4g}, {row['iterations']} iterations: plain {row['plain']:.3f} %, "
                  f"occluded {row['occluded']:.3f} %")  # fmt: skip
        best = min(tried, key=lambda row: row["plain"] + row["occluded"])
        weight, iterations = best["weight"], int(best["iterations"])
    joined = weights_files.join(image, denoiser, weight, iterations)  # raises where they do not fit
    if out.suffix == ".json":
        weights_files.write_pair(out, weights_files.resolve(image), weights_files.resolve(denoiser), weight, iterations)
    else:
        weights_files.save_weights(out, joined)
    print(f"wrote {out}: weight {weight:g}, {iterations} iteration{'s' * (iterations > 1)}")


def _write_derived(out: Path, make: Callable[[], Weights]) -> None:
    """Write weights made of others, which are not calibrated. The file's name is checked first."""
    from recombinator.weights.files import save_weights

    check_output_file(out, ".safetensors")
    save_weights(out, make())
    print(f"wrote {out}; next: recombinator calibrate {out} --data VALID.parquet --out {out}")


def average(
    weights: Annotated[
        list[str], typer.Argument(metavar="WEIGHTS...", help="networks of one architecture, trained from one start")
    ],
    out: WeightsOut,
) -> None:
    """Average the weights of several networks.

    Often more precise than each of them. Calibrate the result again.
    """
    from recombinator.weights.derive import average as mean

    _write_derived(out, lambda: mean(weights))


def mirror(weights: NetworkArgument, out: WeightsOut) -> None:
    """Make a network average over the mirror image too.

    More precise, twice the time. Calibrate the result again.
    """
    from recombinator.weights.derive import mirrored

    _write_derived(out, lambda: mirrored(weights))


def shift(
    weights: NetworkArgument,
    out: WeightsOut,
    by: Annotated[
        int, typer.Option(min=1, metavar="PIXELS", help="of the input; odd, so that the pooling grid changes")
    ] = 1,
) -> None:
    """Make a network average over four shifted images too.

    More precise, five times the time. Calibrate the result again.
    """
    from recombinator.weights.derive import shifted

    if by % 2 == 0:
        raise InputError(f"--by {by}: must be odd, so that the pooling grid changes")
    _write_derived(out, lambda: shifted(weights, by))


def calibrate(
    weights: WeightsArgument,
    data: Table,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="weights file to write, .safetensors, or .json for a joint model's .json"),
    ],
) -> None:
    """Calibrate a network's probabilities on a validation table.

    Fits one temperature.
    """
    from recombinator.evaluation import calibration
    from recombinator.weights.files import read_pair, resolve, save_weights, write_pair

    check_not_overwriting(data, out)
    check_output_file(out, ".safetensors", ".json")
    pair = read_pair(resolve(weights)) if out.suffix == ".json" else None  # raises where it is none
    done = calibration.calibrate(weights, data)
    if pair:
        write_pair(out, **{**pair, "calibration": done.calibration})
    else:
        save_weights(out, done)
    print(f"wrote {out}: temperature {done.calibration['temperature']:g}")


def reliability(
    weights: WeightsArgument,
    data: Table,
    json_out: JsonOut = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="PATH", help="also draw it: folder, or file ending in .png or .pdf")
    ] = None,
    limit: Limit = None,
) -> None:
    """Measure how reliable a network's probabilities are.

    Compares the probability of a point being within r pixels with how often it is, and tests whether low confidence
    finds occluded points.
    """
    from recombinator.evaluation import calibration

    picture = plots / "reliability.png" if plots and not plots.suffix else plots
    check_not_overwriting(data, json_out, picture)
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
    print(f"{weights} on {data}: {report['images']} images, temperature {temperature:g}; {report['protocol']}")
    for part in ("plain", "covered"):
        for row in report[part]:
            print(
                f"  {part:8} within {row['radius']} pixels: true for {100 * row['right']:5.1f} % of the points, "
                f"calibration error {100 * row['error']:4.1f} % "
                f"(without temperature {100 * row['error_uncalibrated']:4.1f} %)"
            )
    if report["covered_auroc"] is not None:
        print(f"  covered points found by low confidence: area under the ROC {report['covered_auroc']:.3f}")


def denoise(
    points: Annotated[
        Path, typer.Argument(metavar="POINTS", help=".csv, .json, .jsonl or .pts file with the points of faces")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="repaired points, .csv or .json")],
    weights: Annotated[str, typer.Option(metavar="WEIGHTS", help="weights of a denoiser")] = "denoiser-lite-300w",
    keep_below: Annotated[
        float, typer.Option(min=0, metavar="X", help="keep points whose implausibility is below X")
    ] = KEEP_BELOW,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first face that cannot be used")] = False,
) -> None:
    """Repair points with a shape model.

    Writes where each point should be, how far it was moved and how implausible it was.
    """
    from recombinator.data import points as files
    from recombinator.predict import repair as repairs
    from recombinator.weights.files import load_weights

    check_output_file(out, ".csv", ".json")
    if out.resolve() == points.resolve():
        raise InputError(f"--out {out}: would overwrite the input; choose another name")
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
        raise InputError(f"{points}: no face could be used ({dropped} dropped)")
    repairs.write_repairs(out, rows)
    faces = len(rows) // len(loaded.keypoints)
    moved = sum(not r["kept"] for r in rows)
    print(f"{faces} faces, {dropped} dropped, {moved} points moved: {out}")
