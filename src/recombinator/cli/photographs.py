"""Keypoints on photographs and videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recombinator.cli.options import DEFAULT_WEIGHTS
from recombinator.utils.console import progress, warn
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_folder, write_json

DEMO_WEIGHTS = (DEFAULT_WEIGHTS, "joint-68-300w")


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

    check_output_folder(out)
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


def demo(
    photo: Annotated[Path | None, typer.Option(help="a photograph; Grace Hopper's without it")] = None,
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("out/demo"),
) -> None:
    """Keypoints on a photograph, five and 68, with the weights inside the package."""
    from recombinator.predict import predictor
    from recombinator.predict.output import as_table, save_picture
    from recombinator.predict.result import draw_faces

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
