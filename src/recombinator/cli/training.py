"""Networks: listed, trained, measured, timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from recombinator.cli.options import Data, JsonOut, Limit, Occlude, Table, check_not_overwriting, write_report
from recombinator.utils.console import progress, warn
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_folder


def models(
    as_json: Annotated[bool, typer.Option("--json", help="a JSON list")] = False,
    keypoints: Annotated[int | None, typer.Option(min=1, help="5 or 68 by network without it")] = None,
    size: Annotated[int, typer.Option(help="input side in pixels")] = 80,
) -> None:
    """The networks, with parameters and multiply-adds an image."""
    from recombinator.models import catalogue, model_names
    from recombinator.weights.shipped import shipped_graphs, shipped_weights

    rows = catalogue(keypoints, size)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'name':14}{'parameters':>12}{'multiply-adds':>16}{'input':>9}{'keypoints':>11}")
    for r in rows:
        side = f"{r['input']}x{r['input']}"
        print(f"{r['name']:14}{r['parameters']:>12,}{r['multiply_adds']:>16,}{side:>9}{r['keypoints']:>11}")
    lacking = [name for name in model_names() if name not in [r["name"] for r in rows]]
    if lacking:
        print(f"not possible with that input: {', '.join(lacking)}")
    print(f"\ntrained, inside the package: {', '.join(sorted(shipped_weights() | shipped_graphs()))}")


def _mask(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.replace(" ", "").split(",")
    if not set(parts) <= {"0", "1"}:
        raise InputError(f"--mask {text}: wants zeros and ones, coarsest branch first, such as 1,0,0,1")
    return tuple(int(p) for p in parts)


def train(
    model: Annotated[str, typer.Argument(help="a name from `recombinator models`")],
    data: Data,
    out: Annotated[Path, typer.Option(help="folder of the run")],
    recipe: Annotated[str | None, typer.Option(help="fast (ours; the default) or paper (the authors')")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**31 - 1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on where OUT stopped, with its settings")] = False,
    occlusion: Annotated[bool | None, typer.Option("--occlusion/--no-occlusion", help="black rectangles")] = None,
    rotation: Annotated[int | None, typer.Option(min=0, max=180, help="+- degrees of jitter")] = None,
    flip: Annotated[bool | None, typer.Option("--flip/--no-flip")] = None,
    batch: Annotated[int | None, typer.Option(min=1)] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0)] = None,
    loss: Annotated[str | None, typer.Option(help="softmax (Eq. 2) or l2 (footnote 4)")] = None,
    sigma: Annotated[float | None, typer.Option(min=0.0, help="spread of the target in cells")] = None,
    outside: Annotated[str | None, typer.Option(help="points that leave the crop: ignore or clamp")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, bfloat16 or float32")] = None,
    patience: Annotated[int | None, typer.Option(min=0, help="stop after so many epochs without gain")] = None,
    mask: Annotated[str | None, typer.Option(help="branches to keep, coarsest first, such as 1,0,0,1")] = None,
    alpha: Annotated[str | None, typer.Option(help="SumNet: a weight per map or per pixel")] = None,
    upsampling: Annotated[str | None, typer.Option(help="tile or bilinear")] = None,
    norm: Annotated[str | None, typer.Option(help="local contrast normalization by image or batch; global")] = None,
    size: Annotated[int | None, typer.Option(help="input side in pixels")] = None,
    form: Annotated[str | None, typer.Option(help="RCN: code or twice; with 68 keypoints code or text")] = None,
    width: Annotated[float | None, typer.Option(min=0.01, max=100, help="factor on all widths")] = None,
    fold: Annotated[int | None, typer.Option(min=1, help="RCN: so many cells a side as channels at the finest")] = None,
    channels: Annotated[int | None, typer.Option(help="1 for gray, 3 for RGB")] = None,
    start: Annotated[str | None, typer.Option(help="weights to start from, where shapes agree")] = None,
    errors_of: Annotated[str | None, typer.Option(help="denoiser: weights whose errors it learns to mend")] = None,
    teacher: Annotated[str | None, typer.Option(help="trained weights whose maps this network learns too")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="a recipe or network setting, as NAME=VALUE")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="so many images, drawn from the table")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard")] = False,
) -> None:
    """Train a network; the epoch with the lowest validation error is kept."""
    import torch

    from recombinator.training import run
    from recombinator.training.recipe import parse_settings
    from recombinator.utils.allocator import keep_freed_memory

    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    changes: dict[str, Any] = {
        "epochs": epochs, "batch": batch, "learning_rate": learning_rate, "loss": loss, "sigma": sigma,
        "outside": outside, "precision": precision, "patience": patience, "degrees": rotation, "flip": flip,
        "occlude": None if occlusion is None else ((20, 50) if occlusion else (0, 0)),
    }  # fmt: skip
    options: dict[str, Any] = {
        "mask": _mask(mask), "alpha": alpha, "upsampling": upsampling, "norm": norm, "size": size, "form": form,
        "width": width, "fold": fold, "channels": channels,
    }  # fmt: skip
    more_changes, more_options = parse_settings(sets or [])
    changes = more_changes | {k: v for k, v in changes.items() if v is not None}
    options = more_options | {k: v for k, v in options.items() if v is not None}
    with progress(f"{model}, steps") as advance:

        def report(line: dict[str, Any]) -> None:
            print(
                f"epoch {line['epoch']:4d}  loss {line['loss']:8.3f}  valid {line['valid']:6.2f} %  "
                f"plain {line['clean']:6.2f} %  {line['images_per_second']:4.0f} img/s {line['seconds']:6.0f} s",
                flush=True,
            )

        try:
            summary = run.train(
                model, data, out, recipe=recipe, seed=seed, resume=resume, device=device, start=start, limit=limit,
                errors_of=errors_of, teacher=teacher, options=options, tensorboard=tensorboard, notice=warn,
                report=report, step_done=advance, **changes,
            )  # fmt: skip
        except KeyboardInterrupt:
            warn(f"stopped; finished epochs are in {out}: the same command with --resume goes on")
            raise typer.Exit(130) from None
    print(
        f"best epoch {summary['best_epoch']} of {summary['epochs']}: validation error {summary['best_valid']:.2f} %; "
        f"{out / 'best.safetensors'}"
    )


def evaluate(
    weights: Annotated[str, typer.Argument(help="a shipped name, a weights file or a run's folder")],
    data: Table,
    json_out: Annotated[Path | None, typer.Option("--json", help="report; per-image Parquet beside it")] = None,
    plots: Annotated[Path | None, typer.Option(help="folder for the error curve and the worst faces")] = None,
    limit: Limit = None,
    occlude: Occlude = False,
    photos: Annotated[Path | None, typer.Option(help="whole photographs: the folder the table was made from")] = None,
    detector: Annotated[str, typer.Option(help="with --photos: haar or yunet:MODEL.onnx")] = "haar",
    passes: Annotated[int, typer.Option(min=1, help="with --photos: crops again from its own points")] = 2,
    engine: Annotated[str, typer.Option(help="on a table: torch or onnx; a graph is always run by onnx")] = "torch",
) -> None:
    """Errors on a table, in the paper's protocol and in the continuous one; with --photos, detection included."""
    from recombinator.evaluation import denoising
    from recombinator.evaluation import tables as evaluation
    from recombinator.models import Denoiser
    from recombinator.weights.files import load_weights
    from recombinator.weights.shipped import is_graph

    per_image = json_out and json_out.with_name(f"{json_out.stem}.images.parquet")
    check_not_overwriting(data, json_out, per_image)
    if plots:
        check_output_folder(plots)
    if photos:
        if occlude or plots:
            raise InputError("--photos goes without --occlude and --plots: those belong to the table's crops")
        _evaluate_photos(weights, data, photos, detector, passes, limit, json_out)
        return
    if not is_graph(weights) and isinstance(load_weights(weights).net, Denoiser):
        if occlude or plots:
            raise InputError("--occlude and --plots are for networks that see images; this is a denoiser")
        told = denoising.evaluate_denoiser(weights, data, limit=limit)
        write_report(json_out, "denoising", told)
        print(f"{weights} on {data}: {told['data']['images']} faces, {told['protocol']}")
        for name, row in told["rows"].items():
            low, high = row["nme_paper_ci95"]
            print(f"  {name:24} nme_paper {row['nme_paper']:6.3f}  [{low:.3f}, {high:.3f}]  nme {row['nme']:6.3f}")
        return
    result, report = evaluation.evaluate(weights, data, limit=limit, occlude=occlude, engine=engine)
    if json_out and per_image:  # before anything that a reader which has seen enough (`| head`) could cut short
        evaluation.write_per_image(per_image, result)
        print(f"wrote {per_image}")
        write_report(json_out, "evaluation", report)
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
    if plots:
        from recombinator.evaluation import plots as pictures
        from recombinator.transforms.samples import network_inputs

        pictures.plot_cumulative(plots / "cumulative.png", result, f"{weights}, {report['data']['dataset']}")
        inputs = network_inputs(data, result.size, int(report["model"].get("channels", 1)), limit)
        pictures.contact_sheet(plots / "worst.png", inputs, result)
        print(f"wrote {plots / 'cumulative.png'} and {plots / 'worst.png'}")


def _evaluate_photos(
    weights: str, data: Path, photos: Path, detector: str, passes: int, limit: int | None, json_out: Path | None
) -> None:
    from recombinator.evaluation.photographs import evaluate_photographs
    from recombinator.predict.detect import detector_by_name

    with progress("photographs") as advance:
        told = evaluate_photographs(
            weights, data, photos, detector=detector_by_name(detector), passes=passes, limit=limit, advance=advance
        )
    write_report(json_out, "photographs", {**told, "detector": detector})
    print(f"{weights} on {told['photographs']} photographs of {data}, {passes} passes; {told['protocol']}")
    print(
        f"  {told['found']} of {told['faces']} faces found, {told['missed']} missed, {told['others']} other detections"
    )
    if told["found"]:
        low, high = told["nme_ci95"]
        print(
            f"  error {told['nme']:.3f} %  [{low:.3f}, {high:.3f}]; crop from true points {told['nme_true_crop']:.3f} %"
        )


def compare(
    weights: Annotated[list[str], typer.Argument(help="two or more weights; the others are compared with the first")],
    data: Table,
    json_out: JsonOut = None,
    limit: Limit = None,
    occlude: Occlude = False,
) -> None:
    """Networks on the same images, differences with their 95 % intervals, also where the first one is worst."""
    from recombinator.evaluation import tables as evaluation

    check_not_overwriting(data, json_out)
    report = evaluation.compare(weights, data, limit=limit, occlude=occlude)
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
    write_report(json_out, "comparison", report)


def bench(
    model: Annotated[list[str] | None, typer.Option(help="networks, or names that ship, to time (repeatable)")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write the figures to this file")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="interleaved repetitions; medians are reported")] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Training and prediction speed on this machine, beside its own multiply rate."""
    from recombinator.study import bench as benchmark

    with progress("timing") as advance:
        report = benchmark.run(model or ["rcn-6", "sumnet-6"], rounds, threads, advance)
    print(benchmark.as_text(report))
    write_report(json_out, "bench", report)
