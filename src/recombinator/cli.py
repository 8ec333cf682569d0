"""The command line: parses, calls, prints. Heavy imports stay inside the commands."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from recombinator.console import progress, warn
from recombinator.errors import InputError, remedy
from recombinator.files import to_file, to_folder, write_json
from recombinator.options import Data, Table, not_over
from recombinator.study.commands import study

DEFAULT_WEIGHTS = "rcn-6-mtfl"
# extra -> what it brings; prediction with exported graphs needs none of them
EXTRAS = {"train": ("torch", "pyarrow", "safetensors", "matplotlib"), "onnx": ("onnx", "onnxscript"), "afw": ("h5py",)}
DEMO_WEIGHTS = (DEFAULT_WEIGHTS, "joint-68-300w")
KEEP_BELOW = 4.6  # a hundredth as probable as the best place

app = typer.Typer(
    help="Recombinator Networks: train, compare and use small, precise keypoint localisers.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
prepare = typer.Typer(help="Turn a dataset into Parquet tables of crops and points.", no_args_is_help=True)
app.add_typer(prepare, name="prepare")
app.add_typer(study, name="study")

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
        grey: Annotated[bool, typer.Option("--grey", help="store grey crops")] = False,
        quality: Quality = 95,
        strict: Annotated[bool, typer.Option("--strict", help="stop at the first bad face")] = False,
    ) -> None:
        read = getattr(import_module(f"recombinator.data.{module}"), f"prepare_{name}")
        with progress("preparing") as advance:
            counts = read(source, out, size=size, grey=grey, quality=quality, strict=strict, drop=warn, advance=advance)
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
    normaliser: Annotated[str | None, typer.Option(help="two keypoints, a,b: errors are shares of their gap")] = None,
    size: Size = 160,
    grey: Annotated[bool, typer.Option("--grey", help="store grey crops")] = False,
    quality: Quality = 95,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first that cannot be used")] = False,
) -> None:
    """Your own keypoints, of faces or of anything: a file of points and the images it names.

    CSV: columns file, keypoint, x, y (a row a point; face too, where a photograph has several), or file, x1, y1, x2, y2
    and so on (a row a face). JSON: what `predict` writes, objects with file and points, or COCO keypoints.
    """
    from recombinator.data.own import prepare_points

    with progress("preparing") as advance:
        counts = prepare_points(
            source, out, images=images, normaliser=normaliser, size=size, grey=grey, quality=quality, strict=strict,
            drop=warn, advance=advance,
        )  # fmt: skip
    _counts(counts, out)


@prepare.command("synthetic")
def prepare_synthetic(
    out: Annotated[Path, typer.Argument(help="folder to write train, valid and test.parquet to")],
    faces: Annotated[int, typer.Option(help="faces in all; a tenth each for validation and test")] = 1000,
    points: Annotated[int, typer.Option(help="keypoints a face: 5 or 68")] = 5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Size = 160,
    grey: Annotated[bool, typer.Option("--grey/--colour")] = True,
    quality: Quality = 95,
) -> None:
    """Drawn faces with known points: no download needed."""
    from recombinator.data import synthetic

    with progress("drawing") as advance:
        counts = synthetic.prepare_synthetic(
            out, faces=faces, keypoints=points, seed=seed, size=size, grey=grey, quality=quality, advance=advance
        )
    _counts(counts, out)


@app.command()
def models(
    as_json: Annotated[bool, typer.Option("--json", help="a JSON list")] = False,
    keypoints: Annotated[int | None, typer.Option(min=1, help="5 or 68 by network without it")] = None,
    size: Annotated[int, typer.Option(help="input side in pixels")] = 80,
) -> None:
    """The networks, with parameters and multiply-adds an image."""
    from recombinator.models import catalogue
    from recombinator.shipped import shipped_graphs, shipped_weights

    rows = catalogue(keypoints, size)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'name':14}{'parameters':>12}{'multiply-adds':>16}{'input':>9}{'keypoints':>11}")
    for r in rows:
        side = f"{r['input']}x{r['input']}"
        print(f"{r['name']:14}{r['parameters']:>12,}{r['multiply_adds']:>16,}{side:>9}{r['keypoints']:>11}")
    print(f"\ntrained, inside the package: {', '.join(sorted(shipped_weights() | shipped_graphs()))}")


def _mask(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.replace(" ", "").split(",")
    if not set(parts) <= {"0", "1"}:
        raise InputError(f"--mask {text}: wants zeros and ones, coarsest branch first, such as 1,0,0,1")
    return tuple(int(p) for p in parts)


@app.command()
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
    norm: Annotated[str | None, typer.Option(help="local contrast normalisation by image or batch; global")] = None,
    size: Annotated[int | None, typer.Option(help="input side in pixels")] = None,
    form: Annotated[str | None, typer.Option(help="RCN: code or twice; with 68 keypoints code or text")] = None,
    width: Annotated[float | None, typer.Option(min=0.01, max=100, help="factor on all widths")] = None,
    fold: Annotated[int | None, typer.Option(min=1, help="RCN: so many cells a side as channels at the finest")] = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for RGB")] = None,
    start: Annotated[str | None, typer.Option(help="weights to start from, where shapes agree")] = None,
    errors_of: Annotated[str | None, typer.Option(help="denoiser: weights whose errors it learns to mend")] = None,
    teacher: Annotated[str | None, typer.Option(help="trained weights whose maps this network learns too")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="any field of the recipe, as NAME=VALUE")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="so many images, drawn from the table")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard")] = False,
) -> None:
    """Train a network; the epoch with the lowest validation error is kept."""
    import torch

    from recombinator.training import run
    from recombinator.training.recipe import parse_changes

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
    changes = parse_changes(sets or []) | {k: v for k, v in changes.items() if v is not None}
    options = {k: v for k, v in options.items() if v is not None}
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


@app.command()
def evaluate(
    weights: Annotated[str, typer.Argument(help="a shipped name, a weights file or a run's folder")],
    data: Table,
    json_out: Annotated[Path | None, typer.Option("--json", help="report; per-image Parquet beside it")] = None,
    plots: Annotated[Path | None, typer.Option(help="folder for the error curve and the worst faces")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first images")] = None,
    occlude: Annotated[bool, typer.Option("--occlude", help="one black rectangle on each image, seeded")] = False,
    photos: Annotated[Path | None, typer.Option(help="whole photographs: the folder the table was made from")] = None,
    detector: Annotated[str, typer.Option(help="with --photos: haar or yunet:MODEL.onnx")] = "haar",
    passes: Annotated[int, typer.Option(min=1, help="with --photos: crops again from its own points")] = 2,
    engine: Annotated[str, typer.Option(help="torch or onnx; an exported graph is always run by onnx")] = "torch",
) -> None:
    """Errors on a table, in the paper's protocol and in the continuous one; with --photos, detection included."""
    from recombinator import denoising, evaluation
    from recombinator.models import Denoiser
    from recombinator.provenance import provenance
    from recombinator.shipped import is_graph
    from recombinator.weights import load_weights

    per_image = json_out and json_out.with_name(f"{json_out.stem}.images.parquet")
    not_over(data, json_out, per_image)
    if photos:
        if occlude or plots:
            raise InputError("--photos goes without --occlude and --plots: those belong to the table's crops")
        _evaluate_photos(weights, data, photos, detector, passes, limit, json_out)
        return
    if not is_graph(weights) and isinstance(load_weights(weights).net, Denoiser):
        told = denoising.evaluate_denoiser(weights, data, limit=limit)
        print(f"{weights} on {data}: {told['data']['images']} faces, {told['protocol']}")
        for name, row in told["rows"].items():
            low, high = row["nme_paper_ci95"]
            print(f"  {name:24} nme_paper {row['nme_paper']:6.3f}  [{low:.3f}, {high:.3f}]  nme {row['nme']:6.3f}")
        if json_out:
            write_json(json_out, {"kind": "denoising", **told, "provenance": provenance()})
            print(f"wrote {json_out}")
        return
    result, report = evaluation.evaluate(weights, data, limit=limit, occlude=occlude, engine=engine)
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
    if json_out and per_image:
        evaluation.write_per_image(per_image, result)
        write_json(json_out, {"kind": "evaluation", **report, "provenance": provenance()})
        print(f"wrote {json_out} and {per_image}")
    if plots:
        from recombinator import plots as pictures

        pictures.plot_cumulative(plots / "cumulative.png", result, f"{weights}, {report['data']['dataset']}")
        inputs = evaluation.network_inputs(data, result.size, int(report["model"].get("channels", 1)), limit)
        pictures.contact_sheet(plots / "worst.png", inputs, result)
        print(f"wrote {plots / 'cumulative.png'} and {plots / 'worst.png'}")


def _evaluate_photos(
    weights: str, data: Path, photos: Path, detector: str, passes: int, limit: int | None, json_out: Path | None
) -> None:
    from recombinator.photographs import evaluate_photographs
    from recombinator.predict.detect import detector_by_name
    from recombinator.provenance import provenance

    with progress("photographs") as advance:
        told = evaluate_photographs(
            weights, data, photos, detector=detector_by_name(detector), passes=passes, limit=limit, advance=advance
        )
    print(f"{weights} on {told['photographs']} photographs of {data}, {passes} passes; {told['protocol']}")
    print(
        f"  {told['found']} of {told['faces']} faces found, {told['missed']} missed, {told['others']} other detections"
    )
    if told["found"]:
        low, high = told["nme_ci95"]
        print(
            f"  error {told['nme']:.3f} %  [{low:.3f}, {high:.3f}]; crop from true points {told['nme_true_crop']:.3f} %"
        )
    if json_out:
        write_json(json_out, {"kind": "photographs", **told, "detector": detector, "provenance": provenance()})
        print(f"wrote {json_out}")


@app.command()
def compare(
    weights: Annotated[list[str], typer.Argument(help="two or more weights; the others are compared with the first")],
    data: Table,
    json_out: Annotated[Path | None, typer.Option("--json", help="report")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first images")] = None,
    occlude: Annotated[bool, typer.Option("--occlude", help="one black rectangle on each image, seeded")] = False,
) -> None:
    """Networks on the same images, differences with their 95 % intervals, also where the first one is worst."""
    from recombinator import evaluation
    from recombinator.provenance import provenance

    not_over(data, json_out)
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
    if json_out:
        write_json(json_out, {"kind": "comparison", **report, "provenance": provenance()})
        print(f"wrote {json_out}")


def _parse_boxes(texts: list[str] | None) -> list[list[float]] | None:
    boxes = []
    for text in texts or []:
        try:
            box = [float(v) for v in text.split(",")]
        except ValueError:
            box = []
        if len(box) != 4:
            raise InputError(f"--box {text}: wants four numbers, x,y,width,height in pixels")
        boxes.append(box)
    return boxes or None


@app.command()
def predict(
    photos: Annotated[list[str], typer.Argument(help="photographs, folders, patterns such as '*.jpg', or - for one")],
    out: Annotated[Path, typer.Option(help="folder for points.jsonl, the other formats and annotated pictures")],
    weights: Annotated[str, typer.Option(help="a shipped name, .onnx or weights file, run folder")] = DEFAULT_WEIGHTS,
    engine: Annotated[str | None, typer.Option(help="onnx or torch; onnx where there is a graph")] = None,
    formats: Annotated[list[str] | None, typer.Option("--format", help="json, csv, coco, pts (repeatable)")] = None,
    detector: Annotated[str, typer.Option(help="haar, none (each photograph is a face), yunet:MODEL.onnx")] = "haar",
    box: Annotated[list[str] | None, typer.Option(help="a face as x,y,width,height, in place of detection")] = None,
    boxes: Annotated[Path | None, typer.Option(help="CSV of faces: file, x, y, width, height")] = None,
    passes: Annotated[int, typer.Option(min=1, help="crops again from its own points after the first")] = 2,
    min_confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="drop detections below it; 0 keeps all; default: the weights'")
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="write annotated PNGs")] = True,
    numbers: Annotated[bool, typer.Option("--numbers", help="number the points in the pictures")] = False,
    chips: Annotated[int, typer.Option(min=0, max=4096, help="also write aligned faces of so many pixels")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="leave out what an earlier run into OUT finished")] = False,
) -> None:
    """Every face's keypoints, in pixels of the photograph. Exit status 1 if a photograph could not be read."""
    from recombinator.predict import batch, predictor
    from recombinator.predict.detect import detector_by_name
    from recombinator.predict.output import as_table

    to_folder(out)
    names = batch.find_photographs(photos, out)
    given = _parse_boxes(box)
    if given and boxes:
        raise InputError("--box and --boxes are two ways to say the same; give one of them")
    if given and len(names) > 1:
        raise InputError("--box belongs to one photograph; give one photograph, or --boxes FILE for many")
    by_file = {names[0]: given} if given else batch.read_boxes(boxes) if boxes else None
    unmatched = sorted(set(by_file or {}) - set(names))
    if boxes and unmatched:
        told = (
            f"{boxes}: {len(unmatched)} of its files are not among the photographs, such as {unmatched[0]}; it names "
            f"them as this command does, such as {names[0]}"
        )
        if len(unmatched) == len(by_file or {}):
            raise InputError(told)
        warn(told)
    loaded = predictor.load(weights, detector_by_name(detector), engine=engine)
    with progress("photographs") as advance:
        outcome = batch.predict_all(
            loaded, names, out, formats=formats or ("json", "csv"), boxes=by_file, passes=passes,
            min_confidence=min_confidence, pictures=pictures, numbers=numbers, chips=chips, resume=resume,
            weights=weights, advance=advance,
        )  # fmt: skip
    if len(names) == 1 and outcome.last:
        print(as_table(outcome.last))
    for name in outcome.empty[:20]:
        warn(f"{name}: no face found; --min-confidence 0 keeps doubtful ones, --box x,y,w,h gives one")
    if len(outcome.empty) > 20:
        warn(f"and no face in {len(outcome.empty) - 20} more")
    before = f", {outcome.skipped} done before" if outcome.skipped else ""
    if outcome.photographs or outcome.skipped:
        print(f"{outcome.faces} faces in {outcome.photographs} photographs{before}: {out / 'points.jsonl'}")
    for sentence in outcome.failed:
        warn(f"error: {sentence}")
    if outcome.failed:
        raise typer.Exit(1 if outcome.photographs or outcome.skipped else 2)


@app.command()
def track(
    video: Annotated[str, typer.Argument(help="a video file, or the number of a webcam")],
    out: Annotated[Path, typer.Option(help="points: .jsonl (a line a frame) or .csv (a row a keypoint)")],
    annotated: Annotated[Path | None, typer.Option("--video", help="also write the video with points, .mp4")] = None,
    weights: Annotated[str, typer.Option(help="a shipped name, .onnx or weights file, run folder")] = DEFAULT_WEIGHTS,
    engine: Annotated[str | None, typer.Option(help="onnx or torch; onnx where there is a graph")] = None,
    detector: Annotated[str, typer.Option(help="haar or yunet:MODEL.onnx")] = "haar",
    detect_every: Annotated[int, typer.Option(min=1, help="frames between looks for new faces")] = 15,
    smooth: Annotated[bool, typer.Option("--smooth/--raw", help="One-Euro filter")] = True,
    show: Annotated[bool, typer.Option("--show", help="a live window, where there is a screen; q ends it")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first frames")] = None,
) -> None:
    """Every face's keypoints through a video, with a number that stays."""
    from recombinator.predict import predictor
    from recombinator.predict import video as movie
    from recombinator.predict.detect import detector_by_name
    from recombinator.predict.track import Tracker, count_frames

    if detector == "none":
        raise InputError("--detector none takes each frame for one face; track wants haar or yunet:MODEL.onnx")
    tracker = Tracker(predictor.load(weights, detector_by_name(detector), engine=engine), detect_every, smooth)
    total = min(count_frames(video) or 0, limit or 1 << 60)
    with progress("frames") as advance:
        told = movie.write_track(
            tracker, video, out, annotated=annotated, show=show, limit=limit,
            advance=lambda done: advance(done, max(total, done)),
        )  # fmt: skip
    print(
        f"{told['frames']} frames, {told['faces']} faces with {told['numbers']} numbers, the detector ran "
        f"{told['detections']} times, {told['seconds'] / max(told['frames'], 1) * 1000:.1f} ms a frame; points move by "
        f"{100 * told['motion']:.3f} % of the face's box a frame ({100 * told['motion_raw']:.3f} % as found): {out}"
    )


@app.command()
def demo(
    photo: Annotated[Path | None, typer.Option(help="a photograph; Grace Hopper's without it")] = None,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("out/demo"),
) -> None:
    """Keypoints on a photograph, five and 68, with the weights inside the package."""
    from recombinator.predict import predictor
    from recombinator.predict.face import draw_faces
    from recombinator.predict.output import as_table, save_picture

    if photo is None:
        import matplotlib

        photo = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    image = predictor.as_image(photo)
    print(f"{photo}: {image.shape[1]}x{image.shape[0]} pixels")
    for weights in DEMO_WEIGHTS:
        faces = predictor.load(weights).predict(image)
        if not faces:
            raise InputError(f"{photo}: {weights} found no face; try a photograph with a larger, frontal face")
        number = len(faces[0].points)
        print(f"\n{weights}: {len(faces)} face{'s' * (len(faces) > 1)}, {number} keypoints each")
        print(as_table(faces) if number <= 10 else f"mean confidence {faces[0].confidence.mean():.3f}")
        stem = f"{photo.stem}.{number}-keypoints"
        picture, points = out / f"{stem}.png", out / f"{stem}.json"
        save_picture(picture, draw_faces(image, faces))
        write_json(points, {"weights": weights, "file": str(photo), "faces": [f.to_dict() for f in faces]})
        print(f"picture: {picture}\npoints:  {points}")


@app.command()
def export(
    weights: Annotated[str, typer.Argument(help="a shipped name, a weights file or a run's folder")],
    onnx: Annotated[Path, typer.Option(help="file to write")],
    maps: Annotated[bool, typer.Option("--maps", help="score maps as a further output")] = False,
    int8: Annotated[
        Path | None, typer.Option(help="a training table: convolutions in 8 bits, ranges from 256 of its images")
    ] = None,
) -> None:
    """One ONNX graph: uint8 crop in; points, probabilities and covariances out."""
    from recombinator.export import export as write

    to_file(onnx, ".onnx")
    write(weights, onnx, maps=maps, int8=int8)
    print(f"wrote {onnx}: {onnx.stat().st_size / 1e6:.2f} MB")


@app.command()
def convert(
    parameters: Annotated[Path, typer.Argument(help="the authors' shared_conv_params_*.pickle")],
    out: Annotated[Path, typer.Option(help="weights file to write (.safetensors)")],
    model: Annotated[str, typer.Option(help="the RCN that the file is of")] = "rcn-68",
    released: Annotated[bool, typer.Option(help="learned upsampling and max-kept trunk, as released")] = True,
) -> None:
    """The authors' released parameters as weights of ours; nothing in the file is executed."""
    from recombinator import convert as converter
    from recombinator.weights import save_weights

    options: dict[str, Any] = {"upsampling": "learned", "keep_maxima": True} if released else {}
    save_weights(out, converter.convert(parameters, model, **options))
    print(f"wrote {out}")


@app.command()
def join(
    image: Annotated[str, typer.Argument(help="weights of an RCN: a name, a file or a run's folder")],
    denoiser: Annotated[str, typer.Argument(help="weights of a denoiser, likewise")],
    out: Annotated[Path, typer.Option(help="weights file to write: .safetensors, or .json that names the two")],
    weight: Annotated[float, typer.Option(min=0, help="of the denoiser's scores")] = 1.0,
    iterations: Annotated[int, typer.Option(min=1, help="passes through the denoiser")] = 1,
    choose: Annotated[Path | None, typer.Option(help="a validation table that chooses both instead")] = None,
) -> None:
    """The joint model: an RCN's scores plus a denoiser's."""
    from recombinator import evaluation, weights

    to_file(out, ".safetensors", ".json")
    if choose:
        tried = evaluation.choose_joint(weights.join(image, denoiser), choose)
        for row in tried:
            print(f"weight {row['weight']:4g}, {row['iterations']} iterations: plain {row['plain']:.3f} %, "
                  f"occluded {row['occluded']:.3f} %")  # fmt: skip
        best = min(tried, key=lambda row: row["plain"] + row["occluded"])
        weight, iterations = best["weight"], int(best["iterations"])
    joined = weights.join(image, denoiser, weight, iterations)  # raises where they do not fit
    if out.suffix == ".json":
        weights.write_pair(out, weights.resolve(image), weights.resolve(denoiser), weight, iterations)
    else:
        weights.save_weights(out, joined)
    print(f"wrote {out}: weight {weight:g}, {iterations} iteration{'s' * (iterations > 1)}")


@app.command()
def average(
    weights: Annotated[list[str], typer.Argument(help="networks of one architecture, from one start")],
    out: Annotated[Path, typer.Option(help="weights file to write, .safetensors")],
) -> None:
    """The mean of several networks' weights; often better than each of them. Calibrate it anew."""
    from recombinator.weights import average as mean
    from recombinator.weights import save_weights

    to_file(out, ".safetensors")
    save_weights(out, mean(weights))
    print(f"wrote {out}; next: recombinator calibrate {out} --data VALID.parquet --out {out}")


@app.command()
def mirror(
    weights: Annotated[str, typer.Argument(help="an RCN's or a SumNet's: a name, a file or a run's folder")],
    out: Annotated[Path, typer.Option(help="weights file to write, .safetensors")],
) -> None:
    """The network that also looks at the mirror image: more precise, twice the time. Calibrate it anew."""
    from recombinator.weights import mirrored, save_weights

    to_file(out, ".safetensors")
    save_weights(out, mirrored(weights))
    print(f"wrote {out}; next: recombinator calibrate {out} --data VALID.parquet --out {out}")


@app.command()
def calibrate(
    weights: Annotated[str, typer.Argument(help="a shipped name, a weights file, a pair's .json or a run's folder")],
    data: Table,
    out: Annotated[Path, typer.Option(help="weights file to write, .safetensors; a pair's .json gets it in place")],
) -> None:
    """Probabilities that mean what they say: fits a temperature on a validation table."""
    from recombinator import calibration
    from recombinator.weights import read_pair, resolve, save_weights, write_pair

    not_over(data, out)
    to_file(out, ".safetensors", ".json")
    pair = read_pair(resolve(weights)) if out.suffix == ".json" else None  # raises where it is none
    done = calibration.calibrate(weights, data)
    if pair:
        write_pair(out, **{**pair, "calibration": done.calibration})
    else:
        save_weights(out, done)
    print(f"wrote {out}: temperature {done.calibration['temperature']:g}")


@app.command()
def reliability(
    weights: Annotated[str, typer.Argument(help="a shipped name, a weights file, a pair's .json or a run's folder")],
    data: Table,
    json_out: Annotated[Path | None, typer.Option("--json", help="report")] = None,
    plot: Annotated[Path | None, typer.Option(help="picture to write, .png or .pdf")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first images")] = None,
) -> None:
    """Do points lie within r pixels as often as the network says, and does low confidence find covered ones?"""
    from recombinator import calibration
    from recombinator.provenance import provenance

    not_over(data, json_out, plot)
    if plot:
        to_file(plot, ".png", ".pdf")
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
    if json_out:
        write_json(json_out, {"kind": "reliability", **told, "provenance": provenance()})
        print(f"wrote {json_out}")
    if plot:
        from recombinator.plots import plot_reliability

        plot_reliability(plot, told)
        print(f"wrote {plot}")


@app.command()
def denoise(
    points: Annotated[Path, typer.Argument(help="a .csv, .json, .jsonl or .pts file with the points of faces")],
    out: Annotated[Path, typer.Option(help="repaired points, .csv or .json")],
    weights: Annotated[str, typer.Option(help="weights of a denoiser")] = "denoiser-lite-300w",
    keep_below: Annotated[float, typer.Option(min=0, help="points less implausible than this stay")] = KEEP_BELOW,
    strict: Annotated[bool, typer.Option("--strict", help="stop at the first face that cannot be used")] = False,
) -> None:
    """Points repaired by a shape model: where each should lie, how far it moved, how implausible it was."""
    from recombinator.data import points as files
    from recombinator.denoising import repair
    from recombinator.weights import load_weights

    to_file(out, ".csv", ".json")
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
                mended = repair(loaded, face.points, keep_below)
            except InputError as error:
                drop(InputError(f"{face.where}: {error}"))
                continue
            rows += files.repair_rows(face, mended, loaded.keypoints)
            advance(i, len(sets))
    if not rows:
        raise InputError(f"{points}: no face could be used ({dropped} dropped)")
    files.write_repairs(out, rows)
    faces = len(rows) // len(loaded.keypoints)
    shifted = sum(not r["kept"] for r in rows)
    print(f"{faces} faces, {dropped} dropped, {shifted} points moved: {out}")


@app.command()
def bench(
    model: Annotated[list[str] | None, typer.Option(help="networks, or names that ship, to time (repeatable)")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="also write the figures to this file")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="interleaved repetitions; medians are reported")] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads")] = None,
) -> None:
    """Training and prediction speed on this machine, beside its own multiply rate."""
    from recombinator import bench as benchmark
    from recombinator.provenance import provenance

    with progress("timing") as advance:
        report = benchmark.run(model or ["rcn-6", "sumnet-6"], rounds, threads, advance)
    print(benchmark.as_text(report))
    if json_out:
        write_json(json_out, {"kind": "bench", **report, "provenance": provenance()})
        print(f"wrote {json_out}")


def main() -> None:
    """Entry point: an InputError is one sentence and exit status 2."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        extra = next((e for e, names in EXTRAS.items() if missing in names), None)
        if extra is None:
            raise
        print(f"error: this command needs {missing}; {remedy(extra)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `recombinator models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
