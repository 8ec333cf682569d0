"""What becomes of found keypoints: drawn on the photograph, as a text table, as CSV."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from recombinator.data.images import encode_image
from recombinator.files import write_atomically
from recombinator.predict.predictor import Face

_LOW, _HIGH = np.array([213, 94, 0]), np.array([0, 158, 115])  # vermilion to green, told apart by the colour-blind


def draw_faces(image: np.ndarray, faces: list[Face], box: bool = True) -> np.ndarray:
    """(H, W[, 3]) uint8 -> an RGB copy with every face's box, lines and points; a point's colour is its
    confidence, its size follows the face's."""
    import cv2

    canvas = np.ascontiguousarray(np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image.copy())

    def at(p: np.ndarray) -> tuple[int, int]:  # 1/16 pixel; OpenCV counts a pixel's centre at its integer
        x, y = np.round((p - 0.5) * 16).astype(int)
        return int(x), int(y)

    for face in faces:
        side = float(face.box[2])
        thickness = max(1, round(side / 160))
        radius = max(2.0, side / (60 if len(face.points) <= 10 else 120))
        if box:
            corner = face.box[:2]
            cv2.rectangle(canvas, at(corner), at(corner + side), (86, 180, 233), thickness, cv2.LINE_AA, 4)
        for path in face.keypoints.lines:
            line = np.array([at(face.points[i]) for i in path], np.int32)
            cv2.polylines(canvas, [line], False, (240, 228, 66), thickness, cv2.LINE_AA, 4)
        for point, confidence in zip(face.points, face.confidence, strict=True):
            colour = tuple(float(v) for v in _LOW + (_HIGH - _LOW) * float(confidence))
            cv2.circle(canvas, at(point), round(radius * 16), colour, -1, cv2.LINE_AA, 4)
            cv2.circle(canvas, at(point), round(radius * 16), (255, 255, 255), thickness, cv2.LINE_AA, 4)
    return canvas


def save_picture(path: Path, image: np.ndarray) -> None:
    """(H, W, 3) RGB uint8 as PNG."""
    write_atomically(path, lambda p: p.write_bytes(encode_image(image, 0)))


def as_table(faces: list[Face]) -> str:
    """A line a keypoint, for a terminal."""
    lines = [f"{'face':>4}  {'keypoint':14}{'x':>9}{'y':>9}{'confidence':>12}"]
    lines += [
        f"{number:>4}  {p['name']:14}{p['x']:>9.2f}{p['y']:>9.2f}{p['confidence']:>12.3f}"
        for number, face in enumerate(faces, 1)
        for p in face.to_dict()["keypoints"]
    ]
    return "\n".join(lines)


def as_csv(found: dict[str, list[Face]]) -> str:
    """Faces by file -> a row a keypoint: file, face (from 1), keypoint, x, y, confidence."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "face", "keypoint", "x", "y", "confidence"])
    for file, faces in found.items():
        for number, face in enumerate(faces, 1):
            for p in face.to_dict()["keypoints"]:
                writer.writerow([file, number, p["name"], p["x"], p["y"], p["confidence"]])
    return text.getvalue()
