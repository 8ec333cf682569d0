"""Output writers: annotated pictures, face chips, text tables, and files of keypoints in several formats."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import encode_image
from recombinator.data.readers.pts import pts_origin
from recombinator.data.writers import WRITERS, ToolWriter
from recombinator.keypoints import KeypointSet
from recombinator.predict.result import POINT_COLUMNS, Face, point_cells
from recombinator.utils.files import write_atomically, write_json, write_text


def save_picture(path: Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) RGB uint8 image as PNG."""
    write_atomically(path, lambda p: p.write_bytes(encode_image(image, 0)))


def as_table(faces: list[Face]) -> str:
    """Return a text table for a terminal with one line per keypoint."""
    lines = [f"{'face':>4}  {'keypoint':14}{'x':>9}{'y':>9}{'confidence':>12}"]
    lines += [
        f"{number:>4}  {p['name']:14}{p['x']:>9.2f}{p['y']:>9.2f}{p['confidence']:>12.3f}"
        for number, face in enumerate(faces, 1)
        for p in face.to_dict()["keypoints"]
    ]
    return "\n".join(lines)


def face_chip(image: np.ndarray, face: Face, template: np.ndarray, size: int) -> np.ndarray:
    """Cut out a face, rotated and scaled to a standard position.

    The similarity transform is the least-squares fit of the face's points to the template.

    Args:
        image: (H, W[, 3]) uint8 image.
        face: A face in pixels of this image.
        template: (K, 2) standard positions x, y in units of the chip's side.
        size: Side of the chip in pixels.

    Returns:
        (size, size[, 3]) uint8. Parts outside the image are black.
    """
    import cv2

    from recombinator.transforms.shapes import similarity

    linear, shift = similarity(template * size, face.points[None], np.ones((1, len(template))))  # chip -> image
    # warping takes single samples, so a photograph much larger than the chip is averaged down first
    factor = max(1, int(np.sqrt(np.linalg.det(linear[0]))))
    image = np.ascontiguousarray(image)
    if factor > 1:
        smaller = (max(1, image.shape[1] // factor), max(1, image.shape[0] // factor))
        shrink = np.array([smaller[0] / image.shape[1], smaller[1] / image.shape[0]])
        image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
        linear, shift = linear * shrink[:, None], shift * shrink
    matrix = np.concatenate([linear[0], shift[0][:, None]], axis=1)
    matrix[:, 2] += linear[0] @ [0.5, 0.5] - 0.5  # in OpenCV a pixel's center is at its integer
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


# ---- file formats: each writer reads points.jsonl line by line, so memory does not grow with it -------------------


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a points.jsonl file, one per photograph."""
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def _write_json(lines: Path, out: Path, weights: str, keypoints: KeypointSet) -> None:
    """Write points.json: one object with the weights and the list of photographs."""

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8") as stream:
            stream.write(f'{{"weights": {json.dumps(weights)}, "photographs": [')
            for i, record in enumerate(records(lines)):
                stream.write(("," if i else "") + "\n" + json.dumps(record))
            stream.write("\n]}\n")

    write_atomically(out / "points.json", write)


def _write_csv(lines: Path, out: Path, weights: str, keypoints: KeypointSet) -> None:
    """Write points.csv, one row per keypoint: file, face (from 1), keypoint, x, y, confidence, inside.

    A file name that is not UTF-8 is written with backslash escapes for its bytes.
    """

    def write(path: Path) -> None:
        with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["file", "face", *POINT_COLUMNS])
            for record in records(lines):
                for number, face in enumerate(record["faces"], 1):
                    writer.writerows([record["file"], number, *point_cells(p)] for p in face["keypoints"])

    write_atomically(out / "points.csv", write)


def _write_coco(lines: Path, out: Path, weights: str, keypoints: KeypointSet) -> None:
    """Write points.coco.json. COCO counts a pixel's center at its integer, so coordinates are half a pixel less."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in records(lines):
        images.append({"id": len(images) + 1, "file_name": record["file"], "width": record["width"],
                       "height": record["height"]})  # fmt: skip
        for face in record["faces"]:
            x, y, side = face["box"]
            flat = [v for p in face["keypoints"] for v in (round(p["x"] - 0.5, 2), round(p["y"] - 0.5, 2), 2)]
            annotations.append({
                "id": len(annotations) + 1, "image_id": len(images), "category_id": 1, "keypoints": flat,
                "num_keypoints": len(keypoints), "bbox": [x, y, side, side], "area": round(side * side, 2),
                "iscrowd": 0, "score": face["confidence"],
            })  # fmt: skip
    skeleton = sorted({(a + 1, b + 1) for path in keypoints.lines for a, b in pairwise(path)})
    category = {"id": 1, "name": "face", "keypoints": list(keypoints.names), "skeleton": skeleton}
    write_json(out / "points.coco.json", {"images": images, "annotations": annotations, "categories": [category]})


def _write_pts(lines: Path, out: Path, weights: str, keypoints: KeypointSet) -> None:
    """Write one .pts file per face: 300-W's coordinates for its 68 points, else with the first pixel's center at 1."""
    origin = pts_origin(len(keypoints))
    for record in records(lines):
        for number, face in enumerate(record["faces"], 1):
            rows = "".join(f"{p['x'] + origin:.3f} {p['y'] + origin:.3f}\n" for p in face["keypoints"])
            text = f"version: 1\nn_points: {len(keypoints)}\n{{\n{rows}}}\n"
            write_text(out / "pts" / f"{record['stem']}_{number}.pts", text)


def _write_for_tool(lines: Path, out: Path, weights: str, keypoints: KeypointSet, write: ToolWriter) -> None:
    """Write the format of a labeling tool (`recombinator.data.writers`)."""
    write(records(lines), out, keypoints)


Writer = Callable[[Path, Path, str, KeypointSet], None]
FORMATS: dict[str, Writer] = {
    "json": _write_json, "csv": _write_csv, "coco": _write_coco, "pts": _write_pts,
    **{name: partial(_write_for_tool, write=writer.write) for name, writer in WRITERS.items()},
}  # fmt: skip
FILES = {  # what they write
    "json": "points.json", "csv": "points.csv", "coco": "points.coco.json", "pts": "pts",
    **{name: writer.file for name, writer in WRITERS.items()},
}  # fmt: skip
