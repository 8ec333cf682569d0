"""Weights: exported, joined, calibrated, used on points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recombinator.cli.options import JsonOut, Limit, Table, check_not_overwriting, write_report
from recombinator.utils.console import progress, warn
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_file

if TYPE_CHECKING:  # it brings torch
    from recombinator.weights.files import Weights

KEEP_BELOW = 4.6  # a hundredth as probable as the best place


def export(
    weights: Annotated[str, typer.Argument(help="a shipped name, a weights file or a run's folder")],
    onnx: Annotated[Path, typer.Option(help="file to write")],
    maps: Annotated[bool, typer.Option("--maps", help="score maps as a further output")] = False,
    int8: Annotated[
        Path | None, typer.Option(help="a training table: convolutions in 8 bits, ranges from 256 of its images")
    ] = None,
) -> None:
    """One ONNX graph: uint8 crop in; points, probabilities and covariances out."""
    from recombinator.deploy.onnx import export as write

    check_output_file(onnx, ".onnx")
    write(weights, onnx, maps=maps, int8=int8)
    print(f"wrote {onnx}: {onnx.stat().st_size / 1e6:.2f} MB")


def convert(
    parameters: Annotated[Path, typer.Argument(help="the authors' shared_conv_params_*.pickle")],
    out: Annotated[Path, typer.Option(help="weights file to write (.safetensors)")],
    model: Annotated[str, typer.Option(help="the RCN that the file is of")] = "rcn-68",
    released: Annotated[bool, typer.Option(help="learned upsampling and max-kept trunk, as released")] = True,
) -> None:
    """The authors' released parameters as weights of ours; nothing in the file is executed."""
    from recombinator.weights import convert as converter
    from recombinator.weights.files import save_weights

    options: dict[str, Any] = {"upsampling": "learned", "keep_maxima": True} if released else {}
    save_weights(out, converter.convert(parameters, model, **options))
    print(f"wrote {out}")


def join(
    image: Annotated[str, typer.Argument(help="weights of an RCN: a name, a file or a run's folder")],
    denoiser: Annotated[str, typer.Argument(help="weights of a denoiser, likewise")],
    out: Annotated[Path, typer.Option(help="weights file to write: .safetensors, or .json that names the two")],
    weight: Annotated[float, typer.Option(min=0, help="of the denoiser's scores")] = 1.0,
    iterations: Annotated[int, typer.Option(min=1, help="passes through the denoiser")] = 1,
    choose: Annotated[Path | None, typer.Option(help="a validation table that chooses both instead")] = None,
) -> None:
    """The joint model: an RCN's scores plus a denoiser's."""
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


def _write_made(out: Path, make: Callable[[], Weights]) -> None:
    """Weights made of others, which are not calibrated; the file's name is checked before they are made."""
    from recombinator.weights.files import save_weights

    check_output_file(out, ".safetensors")
    save_weights(out, make())
    print(f"wrote {out}; next: recombinator calibrate {out} --data VALID.parquet --out {out}")


def average(
    weights: Annotated[list[str], typer.Argument(help="networks of one architecture, from one start")],
    out: Annotated[Path, typer.Option(help="weights file to write, .safetensors")],
) -> None:
    """The mean of several networks' weights; often better than each of them. Calibrate it anew."""
    from recombinator.weights.derive import average as mean

    _write_made(out, lambda: mean(weights))


def mirror(
    weights: Annotated[str, typer.Argument(help="an RCN's or a SumNet's: a name, a file or a run's folder")],
    out: Annotated[Path, typer.Option(help="weights file to write, .safetensors")],
) -> None:
    """The network that also looks at the mirror image: more precise, twice the time. Calibrate it anew."""
    from recombinator.weights.derive import mirrored

    _write_made(out, lambda: mirrored(weights))


def shift(
    weights: Annotated[str, typer.Argument(help="an RCN's or a SumNet's: a name, a file or a run's folder")],
    out: Annotated[Path, typer.Option(help="weights file to write, .safetensors")],
    by: Annotated[int, typer.Option(help="input pixels; odd ones, so that poolings see another grid", min=1)] = 1,
) -> None:
    """The network that also looks at the face moved a little, four ways: more precise, five times the time. Calibrate
    it anew."""
    from recombinator.weights.derive import shifted

    _write_made(out, lambda: shifted(weights, by))


def calibrate(
    weights: Annotated[str, typer.Argument(help="a shipped name, a weights file, a pair's .json or a run's folder")],
    data: Table,
    out: Annotated[Path, typer.Option(help="weights file to write, .safetensors; a pair's .json gets it in place")],
) -> None:
    """Probabilities that mean what they say: fits a temperature on a validation table."""
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
    weights: Annotated[str, typer.Argument(help="a shipped name, a weights file, a pair's .json or a run's folder")],
    data: Table,
    json_out: JsonOut = None,
    plot: Annotated[Path | None, typer.Option(help="picture to write, .png or .pdf")] = None,
    limit: Limit = None,
) -> None:
    """Do points lie within r pixels as often as the network says, and does low confidence find covered ones?"""
    from recombinator.evaluation import calibration

    check_not_overwriting(data, json_out, plot)
    if plot:
        check_output_file(plot, ".png", ".pdf")
    told = calibration.report(weights, data, limit=limit)
    temperature = told["calibration"].get("temperature", 1.0)
    print(f"{weights} on {data}: {told['images']} images, temperature {temperature:g}; {told['protocol']}")
    for part in ("plain", "covered"):
        for row in told[part]:
            print(
                f"  {part:8} within {row['radius']} pixels: true for {100 * row['right']:5.1f} % of the points, "
                f"calibration error {100 * row['error']:4.1f} % "
                f"(without temperature {100 * row['error_uncalibrated']:4.1f} %)"
            )
    if told["covered_auroc"] is not None:
        print(f"  covered points found by low confidence: area under the ROC {told['covered_auroc']:.3f}")
    write_report(json_out, "reliability", told)
    if plot:
        from recombinator.evaluation.plots import plot_reliability

        plot_reliability(plot, told)
        print(f"wrote {plot}")


def denoise(
    points: Annotated[Path, typer.Argument(help="a .csv, .json, .jsonl or .pts file with the points of faces")],
    out: Annotated[Path, typer.Option(help="repaired points, .csv or .json")],
    weights: Annotated[str, typer.Option(help="weights of a denoiser")] = "denoiser-lite-300w",
    keep_below: Annotated[float, typer.Option(min=0, help="points less implausible than this stay")] = KEEP_BELOW,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first face that cannot be used")] = False,
) -> None:
    """Points repaired by a shape model: where each should lie, how far it moved, how implausible it was."""
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
                mended = repairs.repair(loaded, face.points, keep_below)
            except InputError as error:
                drop(InputError(f"{face.where}: {error}"))
                continue
            rows += repairs.repair_rows(face, mended, loaded.keypoints)
            advance(i, len(sets))
    if not rows:
        raise InputError(f"{points}: no face could be used ({dropped} dropped)")
    repairs.write_repairs(out, rows)
    faces = len(rows) // len(loaded.keypoints)
    shifted = sum(not r["kept"] for r in rows)
    print(f"{faces} faces, {dropped} dropped, {shifted} points moved: {out}")
