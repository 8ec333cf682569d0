"""A tracked video as files: points by frame, and the video with the points drawn."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from recombinator.predict.result import draw_faces
from recombinator.predict.track import Track, Tracker, frames
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_file


def _drawn(image: np.ndarray, tracks: list[Track]) -> np.ndarray:
    import cv2

    canvas = draw_faces(image, [t.face for t in tracks])
    for t in tracks:
        x, y, side = t.face.box
        place = (round(x), max(12, round(y) - 4))
        cv2.putText(canvas, str(t.number), place, cv2.FONT_HERSHEY_SIMPLEX, max(0.5, side / 250), (255, 255, 255), 2)
    return canvas


def write_track(
    tracker: Tracker, source: str, out: Path, *, annotated: Path | None = None, show: bool = False,
    limit: int | None = None, advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:  # fmt: skip
    """Follows `source` and writes `out` (.jsonl or .csv) and, where given, the annotated video; both appear under
    their names at the end, which Ctrl-C is too.

    Returns counts, the seconds that following took, and `motion` and `motion_raw`: by how much points move from frame
    to frame, root mean square, as a share of the face's box. Of a still scene that is the jitter, with and without
    smoothing. Raises InputError for names of the wrong kind.
    """
    check_output_file(out, ".jsonl", ".csv")
    if annotated:
        check_output_file(annotated, ".mp4")
    for path in (out, annotated):
        if path and path.resolve() == Path(source).resolve():
            raise InputError(f"{path}: would overwrite the video; choose another name")
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    partial = {p: p.with_name(f".{p.stem}.{os.getpid()}.part{p.suffix}") for p in (out, annotated) if p}
    writer: Any = None
    told: dict[str, Any] = {"frames": 0, "faces": 0, "seconds": 0.0}
    last: dict[int, tuple[int, Track]] = {}
    moved, steps = np.zeros(2), 0
    whole = False
    try:
        with open(partial[out], "w", encoding="utf-8", newline="") as stream:
            rows = csv.writer(stream, lineterminator="\n")
            if out.suffix.lower() == ".csv":
                rows.writerow(["frame", "seconds", "face", "keypoint", "x", "y", "confidence"])
            for number, (seconds, image, rate) in enumerate(frames(source)):
                if limit is not None and number >= limit:
                    break
                began = time.perf_counter()
                tracks = tracker.update(image, seconds)
                told["seconds"] += time.perf_counter() - began
                told["frames"] += 1
                told["faces"] += len(tracks)
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
                    bgr = np.ascontiguousarray(_drawn(image, tracks)[..., ::-1])
                    if annotated:
                        writer = writer or _open_writer(partial[annotated], annotated, image, rate)
                        writer.write(bgr)
                    if show and not _shown(bgr):
                        break
                advance(number + 1)
        whole = True
    except KeyboardInterrupt:  # the usual end of a webcam: what was recorded is kept
        whole = told["frames"] > 0
    finally:
        if writer is not None:
            writer.release()
        for path, temporary in partial.items():
            if whole and temporary.exists():
                os.replace(temporary, path)
            temporary.unlink(missing_ok=True)
    motion, motion_raw = np.sqrt(moved / max(steps, 1)).tolist()
    more = {"numbers": len(last), "detections": tracker.detections, "motion": motion, "motion_raw": motion_raw}
    return {**told, **more}


def _write_frame(stream: TextIO, rows: Any, as_csv: bool, number: int, seconds: float, tracks: list[Track]) -> None:
    faces = [{"face": t.number, **t.face.to_dict()} for t in tracks]
    if not as_csv:
        stream.write(json.dumps({"frame": number, "seconds": round(seconds, 4), "faces": faces}) + "\n")
        return
    for face in faces:
        for p in face["keypoints"]:
            rows.writerow([number, round(seconds, 4), face["face"], p["name"], p["x"], p["y"], p["confidence"]])


def _open_writer(path: Path, name: Path, image: np.ndarray, rate: float) -> Any:
    import cv2

    size = (image.shape[1], image.shape[0])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
    if not writer.isOpened():
        raise InputError(f"--video {name}: this OpenCV cannot write MP4 video")
    return writer


def _shown(bgr: np.ndarray) -> bool:
    """Shows a frame; False once the user pressed q. Raises InputError where OpenCV has no windows."""
    import cv2

    try:
        cv2.imshow("recombinator", bgr)
        return cv2.waitKey(1) & 0xFF != ord("q")
    except cv2.error:
        raise InputError(
            "this OpenCV has no windows (the headless build has none): pip install opencv-python, or leave --show out"
        ) from None
