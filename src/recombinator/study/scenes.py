"""Scenes made from annotated photographs: faces pasted on images without faces, and faces cut by the border."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recombinator.data.crops import RULES
from recombinator.data.images import ENDINGS, read_image
from recombinator.data.table import FaceTable
from recombinator.predict.crop import rotation
from recombinator.transforms.squares import oriented_squares
from recombinator.utils.errors import InputError

PIECE = 1.25  # side of what is pasted of a photograph, in sides of the face: other people are rarely in it
ABOVE_EYES, BELOW_MOUTH = 0.6, 0.25  # eye distances: above the brows, below the mouth


@dataclass(frozen=True)
class Sample:
    """One annotated face.

    Attributes:
        file: Its photograph.
        points: (K, 2) keypoints in pixels of the photograph.
        square: (4,) center x, y, side and rotation in degrees of the square that the network sees.
    """

    file: Path
    points: np.ndarray
    square: np.ndarray


@dataclass(frozen=True)
class Photographs:
    """Validation and test photographs of a data set, with the networks that are measured on them.

    Attributes:
        name: Name of the data set in the report.
        data: Folder that `prepare` wrote.
        folder: The folder that it was prepared from.
        networks: Shipped networks or weights files.
    """

    name: str
    data: Path
    folder: Path
    networks: tuple[str, ...]


def annotated_faces(table: FaceTable, photographs: Path) -> list[Sample]:
    """Return the faces of a table in pixels of their photographs.

    Raises:
        InputError: The folder does not have the photographs.
    """
    if not (photographs / table.files[0]).is_file():
        raise InputError(f"{photographs}: has no {table.files[0]}; give the folder that the table was prepared from")
    points = table.points.astype(float) @ table.to_file[:, :, :2].transpose(0, 2, 1) + table.to_file[:, None, :, 2]
    squares = oriented_squares(points, table.mask, RULES[table.info.crop_rule])
    return [
        Sample(photographs / file, p, s) for file, p, s in zip(table.files, points, squares, strict=True)
        if np.isfinite(s).all()
    ]  # fmt: skip


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder by name.

    Raises:
        InputError: There are none.
    """
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in ENDINGS)
    if not files:
        raise InputError(f"{folder}: holds no image; give a folder of images without faces")
    return files


def color(image: np.ndarray) -> np.ndarray:
    """Return a gray or RGB image as RGB."""
    return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def paste(canvas: np.ndarray, face: Sample, center: np.ndarray, side: float, degrees: float) -> np.ndarray:
    """Paste a face into an image, in place.

    Args:
        canvas: (H, W, 3) uint8.
        face: The face.
        center: (2,) where the center of its square goes.
        side: Side of its square in pixels of the canvas.
        degrees: Rotation in addition to its own, clockwise on the screen.

    Returns:
        (K, 2) its points on the canvas.
    """
    import cv2

    image = color(read_image(face.file))
    height, width = image.shape[:2]
    scale = side / face.square[2]
    if scale < 1:  # averaged, so that nothing aliases
        small = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    linear = rotation(degrees) * scale
    shift = center - linear @ face.square[:2]
    x0, y0 = np.maximum(np.floor(center - PIECE * side / 2).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(center + PIECE * side / 2).astype(int), canvas.shape[1::-1])
    from_small = linear @ np.diag([width / image.shape[1], height / image.shape[0]])
    matrix = np.concatenate([from_small, (shift - [x0, y0] + from_small @ [0.5, 0.5] - 0.5)[:, None]], axis=1)
    size = int(x1 - x0), int(y1 - y0)
    there = cv2.warpAffine(np.full(image.shape[:2], 255, np.uint8), matrix, size) == 255
    canvas[y0:y1, x0:x1][there] = cv2.warpAffine(image, matrix, size)[there]
    moved: np.ndarray = face.points @ linear.T + shift
    return moved


def canvas(files: list[Path], rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return one of the images, drawn at random, scaled and cut to this size.

    Returns:
        (height, width, 3) RGB, uint8.
    """
    import cv2

    image = color(read_image(files[int(rng.integers(len(files)))]))
    scale = max(width / image.shape[1], height / image.shape[0])
    size = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.ascontiguousarray(cv2.resize(image, size, interpolation=method)[:height, :width])


def place(
    rng: np.random.Generator, used: list[tuple[float, float, float]], side: float, size: tuple[int, int]
) -> np.ndarray | None:
    """Draw a position for a face that overlaps none of those before.

    Args:
        rng: Random numbers.
        used: Center x, y and side of the faces before.
        side: Side of the face.
        size: Width and height of the image.

    Returns:
        (2,) the center; None where there is no room.
    """
    reach = PIECE * side / 2
    for _ in range(200):
        center = rng.uniform(reach, np.array(size) - reach)
        if all(max(abs(center - [x, y])) >= reach + PIECE * s / 2 for x, y, s in used):
            return center
    return None


def _with(around: list[float], index: int, value: float) -> np.ndarray:
    box = np.array(around, float)
    box[index] = value
    return box


def _eyes(face: Sample) -> float:
    return float(np.linalg.norm(face.points[0] - face.points[1]))


# by name, where the image ends: x0, y0, x1, y1
CUTS: dict[str, Callable[[Sample, list[float]], np.ndarray]] = {
    "not cut": lambda f, around: np.array(around),
    "left half outside": lambda f, around: _with(around, 0, f.square[0]),
    "right half outside": lambda f, around: _with(around, 2, f.square[0]),
    "upper half outside": lambda f, around: _with(around, 1, f.square[1]),
    "lower half outside": lambda f, around: _with(around, 3, f.square[1]),
    "above the brows": lambda f, around: _with(around, 1, f.points[:2, 1].mean() - ABOVE_EYES * _eyes(f)),
    "below the mouth": lambda f, around: _with(around, 3, f.points[3:, 1].mean() + BELOW_MOUTH * _eyes(f)),
}
