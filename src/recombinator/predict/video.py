"""Write a tracked video to files: points by frame, and the video with the points drawn."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from recombinator.predict.drawing import draw_faces
from recombinator.predict.result import POINT_COLUMNS, point_cells
from recombinator.predict.track import Track, Tracker, Video, check_opencv_name
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_file


def _draw(image: np.ndarray, tracks: list[Track]) -> np.ndarray:
    import cv2

    canvas = draw_faces(image, [t.face for t in tracks], legend=False)  # a legend would jump between corners
    for t in tracks:
        x, y, side = t.face.box
        place = (round(x), max(12, round(y) - 4))
        cv2.putText(canvas, str(t.number), place, cv2.FONT_HERSHEY_SIMPLEX, max(0.5, side / 250), (255, 255, 255), 2)
    return canvas


def write_track(
    tracker: Tracker, source: str, out: Path, *, annotated: Path | None = None, show: bool = False,
    limit: int | None = None, progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Track the faces of a video and write their points.

    Output files appear under their final names at the end. After Ctrl-C or SystemExit, what was tracked until then is
    kept. A frame that cannot be decoded has no points; the annotated video repeats the frame before it.

    Args:
        tracker: A new tracker.
        source: A video file, or the number of a webcam.
        out: A .jsonl file, one line per frame, or a .csv file, one row per keypoint.
        annotated: An .mp4 file for the video with the points drawn.
        show: Show the video in a window while it is tracked.
        limit: Track this many frames only.
        progress: Called with the number of frames done and in total, as far as that is known.

    Returns:
        A report: `frames`, `damaged` (numbers of the frames, from 0, that could not be decoded), `missing` (frames that
        the file claims to have after the last one that could be read), `faces` (summed over frames), `numbers`
        (different faces), `detections` (calls of the detector), `seconds` (time that tracking took), `motion` and
        `motion_raw`: root mean square movement of the points from frame to frame, as a share of the face's box, with
        and without smoothing. In a still scene this is the jitter.

    Raises:
        InputError: If the video cannot be read or an output cannot be written.
    """
    check_output_file(out, ".jsonl", ".csv")
    if annotated:
        check_output_file(annotated, ".mp4")
        check_opencv_name(annotated.absolute())
    video = Video(source)
    for path in (out, annotated):
        if path and path.resolve() == Path(source).resolve():
            raise InputError(f"{path}: would overwrite the input; choose another name")
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    total = min(video.declared, limit or 1 << 60)
    # a part of the stem: names may have 255 bytes
    partial = {p: p.with_name(f".{p.stem[:40]}.{os.getpid()}.part{p.suffix}") for p in (out, annotated) if p}
    writer: Any = None
    drawn, bgr = 0, np.zeros((0, 0, 3), np.uint8)
    report: dict[str, Any] = {"frames": 0, "damaged": [], "missing": 0, "faces": 0, "seconds": 0.0}
    last: dict[int, tuple[int, Track]] = {}  # by the face's number: its last frame, and the track there
    moved, steps = np.zeros(2), 0
    complete = incomplete = False
    try:
        with open(partial[out], "w", encoding="utf-8", newline="") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            if out.suffix.lower() == ".csv":
                rows.writerow(["frame", "seconds", "face", *POINT_COLUMNS])
            for number, (seconds, image, rate) in enumerate(video):
                if limit is not None and number >= limit:
                    break
                if image is None:
                    report["damaged"].append(number)
                    if out.suffix.lower() == ".jsonl":
                        row = {"frame": number, "seconds": round(seconds, 4), "damaged": True, "faces": []}
                        stream.write(json.dumps(row) + "\n")
                    if writer is not None:
                        writer.write(bgr)
                        drawn += 1
                    continue
                began = time.perf_counter()
                tracks = tracker.update(image, seconds)
                report["seconds"] += time.perf_counter() - began
                report["frames"] += 1
                report["faces"] += len(tracks)
                for t in tracks:
                    seen, before = last.get(t.number, (-1, t))
                    if seen == number - 1 >= 0:
                        side = float(t.raw.box[2])
                        moved += [((a.points - b.points) ** 2).sum(axis=1).mean() / side**2
                                  for a, b in ((before.face, t.face), (before.raw, t.raw))]  # fmt: skip
                        steps += 1
                    last[t.number] = (number, t)
                _write_frame(stream, rows, out.suffix.lower() == ".csv", number, seconds, tracks)
                if annotated or show:
                    bgr = np.ascontiguousarray(_draw(image, tracks)[..., ::-1])
                    if annotated:
                        writer = writer or _open_writer(partial[annotated], annotated, image, rate)
                        writer.write(bgr)
                        drawn += 1
                    if show and not _show(bgr):
                        break
                if progress:
                    progress(number + 1, max(total, number + 1))
        complete = True
    except KeyboardInterrupt:  # the usual end of a webcam
        complete = report["frames"] > 0
    except SystemExit:
        complete = report["frames"] > 0
        raise
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror or error}); free some space") from None
    finally:
        if writer is not None and annotated:
            writer.release()
            if complete and not _holds_frames(partial[annotated], drawn):
                incomplete = True
                partial[annotated].unlink(missing_ok=True)
        for path, temporary in partial.items():
            if complete and temporary.exists():
                os.replace(temporary, path)
            temporary.unlink(missing_ok=True)
    if incomplete:
        raise InputError(f"{annotated}: could not be written completely; is the disk full? The points are in {out}")
    report["missing"] = video.missing
    motion, motion_raw = np.sqrt(moved / max(steps, 1)).tolist()
    more = {"numbers": len(last), "detections": tracker.detections, "motion": motion, "motion_raw": motion_raw}
    return {**report, **more}


def _write_frame(stream: TextIO, rows: Any, as_csv: bool, number: int, seconds: float, tracks: list[Track]) -> None:
    faces = [{"face": t.number, **t.face.to_dict()} for t in tracks]
    if not as_csv:
        stream.write(json.dumps({"frame": number, "seconds": round(seconds, 4), "faces": faces}) + "\n")
        return
    for face in faces:
        rows.writerows([number, round(seconds, 4), face["face"], *point_cells(p)] for p in face["keypoints"])


def _open_writer(path: Path, name: Path, image: np.ndarray, rate: float) -> Any:
    import cv2

    size = (image.shape[1], image.shape[0])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    if not writer.isOpened():
        raise InputError(f"{name}: this OpenCV cannot write MP4 video; leave --video-out out")
    return writer


def _holds_frames(path: Path, count: int) -> bool:
    """Return whether a video can be read and has this many frames. OpenCV does not report a full disk."""
    import cv2

    video = cv2.VideoCapture(str(path))
    try:
        return bool(video.isOpened() and video.get(cv2.CAP_PROP_FRAME_COUNT) >= count and video.read()[0])
    finally:
        video.release()


def _show(bgr: np.ndarray) -> bool:
    """Show a frame. Return False once the user has pressed q. Raises InputError if OpenCV has no windows."""
    import cv2

    try:
        cv2.imshow("recombinator", bgr)
        return cv2.waitKey(1) & 0xFF != ord("q")
    except cv2.error:
        raise InputError(
            "this OpenCV has no windows (the headless build has none): pip install opencv-python, or leave --show out"
        ) from None
