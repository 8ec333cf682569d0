"""Commands that predict keypoints on photographs and videos."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import DEFAULT_WEIGHTS, DETECTOR_FILES, Overwrite, check_outputs, passes_option
from recombinator.cli.ray import predict_with_ray
from recombinator.utils.console import progress, warn
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_file, check_output_folder, write_json
from recombinator.utils.text import plural

DEMO_WEIGHTS = (DEFAULT_WEIGHTS, "joint-68-300w")
STDOUT = Path("-")

Model = Annotated[
    str,
    typer.Option("--weights", metavar="WEIGHTS", help="Shipped name, .onnx file, weights file or run folder."),
]
Engine = Annotated[
    str | None,
    typer.Option(metavar="[onnx|torch]", show_default="onnx if the model has a graph", help="Engine of the network."),
]
Threads = Annotated[int, typer.Option(min=0, metavar="N", help="CPU threads of the engine; 0: the engine's choice.")]
Device = Annotated[str, typer.Option(metavar="[cpu|cuda]", help="Device of the network; cuda needs the torch engine.")]


def _parse_boxes(texts: list[str] | None) -> list[list[float]] | None:
    boxes = []
    for text in texts or []:
        try:
            box = [float(v) for v in text.split(",")]
        except ValueError:
            box = []
        if len(box) != 4:
            raise InputError(f"--box {text}: expected four numbers x,y,width,height in pixels")
        boxes.append(box)
    return boxes or None


def workers_for(photographs: int, weights: str, engine: str | None, threads: int, device: str) -> int:
    """Return how many photographs to work on at once. Only ONNX Runtime serves several of them with a thread each."""
    import cv2

    from recombinator.weights.shipped import shipped_graphs

    has_graph = weights.endswith(".onnx") or (weights in shipped_graphs() and not Path(weights).exists())
    if device != "cpu" or engine == "torch" or not has_graph:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(threads or cores, photographs)
    if workers > 1:
        cv2.setNumThreads(1)
    return workers


def _check_options_for_stdout(**given: object) -> None:
    """Raise InputError for an option that needs a folder if the points go to standard output."""
    for name, value in given.items():
        if value:
            raise InputError(f"--out - writes only JSON lines to standard output; leave out --{name}, or give a folder")


def predict(
    photos: Annotated[
        list[str], typer.Argument(metavar="PHOTO", help="Files, folders, patterns such as '*.jpg', or - for stdin.")
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Folder for points and pictures; - writes points to stdout as JSON lines."),
    ] = Path("keypoints"),
    weights: Model = DEFAULT_WEIGHTS,
    engine: Engine = None,
    threads: Threads = 0,
    device: Device = "cpu",
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="[json|csv|coco|pts|labelme|labelstudio|cvat|dlc|tps|slp]",
            show_default="json and csv",
            help="Format of the points, in addition to points.jsonl (repeatable).",
        ),
    ] = None,
    detector: Annotated[
        str,
        typer.Option(
            metavar=f"[auto|faces|haar|none|{DETECTOR_FILES}]",
            help="auto: the model's own finder, or the face finder; none: each photograph is one object.",
        ),
    ] = "auto",
    box: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y,WIDTH,HEIGHT", help="Box of an object in pixels, instead of detection (repeatable)."),
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV file of boxes: file, x, y, width, height.")
    ] = None,
    passes: Annotated[
        int | None, passes_option("Number of passes; each crops around the points of the last one.")
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            show_default="stored with the weights",
            help="Drop detections with a probability below P, from 0 to 1; 0 keeps all.",
        ),
    ] = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Write annotated PNG files.")] = True,
    numbers: Annotated[bool, typer.Option("--numbers", help="Number the points in the pictures.")] = False,
    chips: Annotated[
        int, typer.Option(min=0, max=4096, metavar="PIXELS", help="Also write aligned faces of this size; 0: none.")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Skip photographs that an earlier run finished.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier run.")] = False,
    max_pixels: Annotated[
        int, typer.Option(min=1, metavar="N", help="Refuse photographs with more pixels, before decoding.")
    ] = 200_000_000,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Predict with Ray, here or at this ADDRESS; also reads URLs and Parquet, writes json or parquet.",
        ),
    ] = None,
) -> None:
    """Predict the keypoints of every face, in pixels of the photograph.

    The exit status is 1 if a photograph could not be read, and 2 if none could.
    """
    if ray:
        settings = {
            "weights": weights, "detector": detector, "engine": engine, "threads": threads, "device": device,
            "max_pixels": max_pixels, "passes": passes, "min_confidence": min_confidence,
        }  # fmt: skip
        pictures_off = {"numbers": numbers, "chips": chips, "box": box, "boxes": boxes}
        return predict_with_ray(ray, photos, out, formats, resume, overwrite, settings, **pictures_off)
    from recombinator.predict import batch, predictor
    from recombinator.predict.detect import detector_by_name
    from recombinator.predict.output import as_table

    folder = None if out == STDOUT else out
    if folder:
        check_output_folder(folder)
    else:
        _check_options_for_stdout(format=formats, numbers=numbers, chips=chips, resume=resume, overwrite=overwrite)
    names = batch.find_photographs(photos, folder)
    given = _parse_boxes(box)
    if given and boxes:
        raise InputError("--box and --boxes both give boxes; use one of them")
    if given and len(names) > 1:
        raise InputError("--box is for one photograph; give one photograph, or --boxes FILE for many")
    by_file = {names[0]: given} if given else batch.read_boxes(boxes) if boxes else None
    unmatched = sorted(set(by_file or {}) - set(names))
    if boxes and unmatched:
        message = (
            f"{boxes}: {len(unmatched)} of its files are not among the photographs, such as {unmatched[0]}; it must "
            f"name them as this command does, such as {names[0]}"
        )
        if len(unmatched) == len(by_file or {}):
            raise InputError(message)
        warn(message)
    workers = workers_for(len(names), weights, engine, threads, device)
    loaded = predictor.load(
        weights, detector_by_name(detector), engine=engine, threads=1 if workers > 1 else threads, device=device,
        max_pixels=max_pixels,
    )  # fmt: skip
    with progress("photographs") as step:
        outcome = batch.predict_all(
            loaded, names, folder, formats=formats or ("json", "csv"), boxes=by_file, passes=passes,
            min_confidence=min_confidence, pictures=pictures, numbers=numbers, chips=chips, resume=resume,
            overwrite=overwrite, weights=weights, workers=workers, progress=step,
        )  # fmt: skip
    if folder and len(names) == 1 and outcome.last:
        print(as_table(outcome.last))
    for name in outcome.empty[:20]:
        warn(f"{name}: no {loaded.noun} found; --min-confidence 0 keeps doubtful ones, --box x,y,w,h gives one")
    if len(outcome.empty) > 20:
        warn(f"no {loaded.noun} found in {plural(len(outcome.empty) - 20, 'more photograph')}")
    before = f", {outcome.skipped} done before" if outcome.skipped else ""
    if outcome.photographs or outcome.skipped:
        where = f": {folder / 'points.jsonl'}" if folder else ""
        counts = f"{plural(outcome.faces, loaded.noun)} in {plural(outcome.photographs, 'photograph')}"
        summary = f"{counts}{before}{where}"
        print(summary, file=sys.stdout if folder else sys.stderr)
    for sentence in outcome.failed:
        warn(f"error: {sentence}")
    if outcome.failed:
        raise typer.Exit(1 if outcome.photographs or outcome.skipped else 2)


def track(
    video: Annotated[str, typer.Argument(metavar="VIDEO", help="Video file, or the number of a webcam.")],
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="Points to write: .jsonl (one line per frame) or .csv (one row per keypoint)."
        ),
    ],
    video_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the video with the points drawn, .mp4.")
    ] = None,
    old_video_out: Annotated[Path | None, typer.Option("--video", hidden=True)] = None,
    weights: Model = DEFAULT_WEIGHTS,
    engine: Engine = None,
    threads: Threads = 0,
    device: Device = "cpu",
    detector: Annotated[
        str, typer.Option(metavar=f"[auto|faces|haar|{DETECTOR_FILES}]", help="Detector of the objects; see predict.")
    ] = "auto",
    detect_every: Annotated[int, typer.Option(min=1, metavar="N", help="Frames between searches for new faces.")] = 15,
    smooth: Annotated[bool, typer.Option("--smooth/--raw", help="Smooth the points with a One-Euro filter.")] = True,
    show: Annotated[bool, typer.Option("--show", help="Show the video while it is tracked; q ends it.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", show_default="all", help="Track only the first N frames.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Track the keypoints of every face through a video.

    Each face keeps its number. The exit status is 1 if a frame is damaged or the video ends early; the other frames
    are still tracked.
    """
    from recombinator.predict import predictor
    from recombinator.predict.detect import detector_by_name
    from recombinator.predict.track import Tracker
    from recombinator.predict.video import write_track

    if detector == "none":
        raise InputError("--detector none treats each frame as one face; track needs another detector, such as auto")
    video_out = video_out or old_video_out
    check_output_file(out, ".jsonl", ".csv")
    if video_out:
        check_output_file(video_out, ".mp4")
    check_outputs(out, video_out, overwrite=overwrite, source=Path(video))
    loaded = predictor.load(weights, detector_by_name(detector), engine=engine, threads=threads, device=device)
    tracker = Tracker(loaded, detect_every, smooth)
    with progress("frames") as step:
        report = write_track(tracker, video, out, annotated=video_out, show=show, limit=limit, progress=step)
    print(
        f"{out}: {plural(report['frames'], 'frame')}, {plural(report['numbers'], loaded.noun)} in them, "
        f"{report['seconds'] / max(report['frames'], 1) * 1000:.1f} ms per frame, detector run "
        f"{plural(report['detections'], 'time')}"
    )
    print(
        f"jitter: points move by {100 * report['motion']:.3f} % of the box per frame, without smoothing "
        f"{100 * report['motion_raw']:.3f} %"
    )
    damaged, missing = report["damaged"], report["missing"]
    if damaged:
        named = ", ".join(map(str, damaged[:20])) + (" and more" if len(damaged) > 20 else "")
        warn(f"error: {video}: {plural(len(damaged), 'damaged frame')} left out (counted from 0): {named}")
    if missing:
        read = report["frames"] + len(damaged)
        warn(f"error: {video}: ends after {read} of {read + missing} frames; the file is incomplete")
    if damaged or missing:
        raise typer.Exit(1)


def demo(
    photo: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="a portrait of Grace Hopper", help="Photograph with a face."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = Path("out/demo"),
) -> None:
    """Predict 5 and 68 keypoints on a photograph with the shipped weights."""
    from recombinator.data.images import SAMPLE_PHOTOGRAPH, read_image
    from recombinator.predict import predictor
    from recombinator.predict.drawing import draw_faces
    from recombinator.predict.output import as_table, save_picture

    check_output_folder(out)
    photo = photo or SAMPLE_PHOTOGRAPH
    image = read_image(photo)
    print(f"{photo}: {image.shape[1]}x{image.shape[0]} pixels")
    for weights in DEMO_WEIGHTS:
        faces = predictor.load(weights).predict(image)
        if not faces:
            raise InputError(f"{photo}: {weights} found no face; try a photograph with a larger, frontal face")
        number = len(faces[0].points)
        print(f"\n{weights}: {plural(len(faces), 'face')}, {number} keypoints each")
        print(as_table(faces) if number <= 10 else f"mean confidence {faces[0].confidence.mean():.3f}")
        stem = f"{photo.stem}.{number}-keypoints"
        picture, points = out / f"{stem}.png", out / f"{stem}.json"
        save_picture(picture, draw_faces(image, faces))
        write_json(points, {"weights": weights, "file": str(photo), "faces": [f.to_dict() for f in faces]})
        print(f"picture: {picture}\npoints:  {points}")
