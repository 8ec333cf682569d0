"""Crop faces around their keypoints in two stages, as the authors' code does (section 5; docs/protocol.md).

Stage 1 cuts a square from the photograph and scales it to `GRID` pixels. Stage 2 is a smaller square inside it, which
the network sees. Points and boxes follow the package's convention: a pixel's center is at its integer + 0.5, boxes are
(x, y, side). The authors' rules use, and truncate, the numbers as they are in the dataset's files. So points are
moved by the rule's `origin` first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from recombinator.data.resample import resized
from recombinator.utils.errors import InputError

GRID = 160  # side of the stage-1 crop in which stage 2's whole-pixel rule is stated

FILE_ORIGIN = 0.5  # a file's number minus the package's, where the first pixel's center counts as 1
Box = tuple[int, int, int]


def _squared(points: np.ndarray, low: Callable[[float], int], high: Callable[[float], int]) -> list[int]:
    """Return [x0, y0, x1, y1]: the points' bounding box with its short side enlarged (ceil below, floor above)."""
    x0, y0 = (low(v) for v in points.min(axis=0))
    x1, y1 = (high(v) for v in points.max(axis=0))
    extra = (x1 - x0) - (y1 - y0)
    grow = abs(extra) / 2
    if extra > 0:
        y0, y1 = y0 - math.ceil(grow), y1 + math.floor(grow)
    else:
        x0, x1 = x0 - math.ceil(grow), x1 + math.floor(grow)
    return [x0, y0, x1, y1]


def _moved_inside(start: int, full: int, side: int, limit: int) -> int:
    """Return the start of a span of `full` pixels, shifted inside [0, limit], cut to what fits, and trimmed evenly to
    `side`."""
    own = min(full, limit)
    return max(0, min(start, limit - own)) + math.ceil((own - side) / 2)


def eye_mouth_box(points: np.ndarray, factor: float, width: int, height: int) -> Box:
    """Apply MTFL's rule: a square around eyes and mouth corners.

    Each side is pushed out by int(factor * max(eye distance, distance of eye center and mouth center)). The square is
    shifted inside the image. Where it does not fit, both axes are trimmed evenly to the shorter one.
    """
    eyes, mouth = points[[0, 1]], points[[3, 4]]
    x0, y0, x1, _ = _squared(points[[0, 1, 3, 4]], int, int)
    reach = max(np.linalg.norm(eyes[0] - eyes[1]), np.linalg.norm(eyes.mean(0) - mouth.mean(0)))
    out = int(factor * reach)
    full = x1 - x0 + 2 * out
    side = min(full, width, height)
    return _moved_inside(x0 - out, full, side, width), _moved_inside(y0 - out, full, side, height), side


def scaled_box(points: np.ndarray, factor: float, width: int, height: int) -> Box:
    """Apply 300-W's rule: the squared bounding box of all points, enlarged about its center.

    The box may leave the image; `cut` pads with zeros.
    """
    x0, y0, x1, _ = _squared(points, math.floor, math.ceil)
    out = (x1 - x0) * (factor - 1) / 2
    x0, y0 = math.floor(x0 - out), math.floor(y0 - out)
    return x0, y0, math.ceil(x1 + out) - x0


def image_box(points: np.ndarray, factor: float, width: int, height: int) -> Box:
    """Take the whole image: the smallest centered square that contains it, enlarged; `cut` pads with zeros."""
    side = round(max(width, height) * factor)
    return -((side - width) // 2), -((side - height) // 2), side


@dataclass(frozen=True)
class CropRule:
    """How a table's crops were made, and how a network's input is cut from them.

    Attributes:
        name: Key in `RULES`.
        box: Function of (points, factor, width, height) that returns (x, y, side) in whole pixels.
        stage1: Factor of `box` for the stored crop.
        stage2: Factor of `box` for the network's input.
        from_detector: Where the stage-2 box is relative to the box of OpenCV's frontal cascade: its side, and how far
            its center is below, both in detector sides (medians over the datasets' training photographs; docs/log.md).
        least: Mean confidence below which a detection counts as false.
        origin: A number in the dataset's files minus the package's, in pixels. 300-W's points are half a pixel right of
            where 1-based files would have them, as mirrored images show, and probably half a pixel below (docs/log.md).
        whole: The network sees the whole image, whatever its points are.
        detailed: The stage-1 crop has as many pixels as the network's input needs, and not always GRID.
    """

    name: str
    box: Callable[[np.ndarray, float, int, int], Box]
    stage1: float
    stage2: float
    from_detector: tuple[float, float]
    least: float
    origin: float = FILE_ORIGIN
    whole: bool = False
    detailed: bool = False

    def stored_size(self, size: int) -> int:
        """Return the side of the stage-1 crop in pixels for a network whose input has `size` pixels."""
        return max(GRID, math.ceil(size * self.stage1 / self.stage2)) if self.detailed else GRID

    def inner_box(self, points: np.ndarray, size: int) -> np.ndarray:
        """Place the stage-2 box.

        Args:
            points: (K, 2), the file's numbers moved and scaled into a stage-1 crop.
            size: Side of that crop in pixels.

        Returns:
            (x, y, side) in crop pixels, float32.
        """
        k = GRID / size
        return np.array(self.box(points * k, self.stage2, GRID, GRID), np.float32) / k

    def crop(
        self, image: np.ndarray, points: np.ndarray, size: int = GRID
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut the stage-1 crop around a face.

        Args:
            image: (H, W) gray or (H, W, 3) RGB, uint8.
            points: (K, 2) in image pixels.
            size: Side of the crop in pixels.

        Returns:
            The (size, size[, 3]) crop, the (2, 3) affine from crop to image coordinates, and the stage-2 box
            (x, y, side) in crop pixels.

        Raises:
            InputError: The points are too close to each other for a crop.
        """
        numbers = points + self.origin
        x, y, side = self.box(numbers, self.stage1, image.shape[1], image.shape[0])
        if side < 4:
            raise InputError(f"the points span a crop of {side} pixels, too small to use")
        s = side / size
        inner = self.inner_box((numbers - [x, y]) / s, size)
        return resized(cut(image, (x, y, side)), size), np.array([[s, 0, x], [0, s, y]], np.float64), inner


RULES = {
    # on 500 MTFL validation photographs no true face was below 0.85, and most false detections were
    "mtfl": CropRule("mtfl", eye_mouth_box, 1.25, 0.95, (1.2, 0.086), 0.85),
    # 0.6 is a guess, not measured
    "300w": CropRule("300w", scaled_box, 1.7, 1.3, (1.139, 0.156), 0.6, origin=1.0),
    "image": CropRule("image", image_box, 1.0, 1.0, (1.0, 0.0), 0.0, whole=True, detailed=True),
    # boxes are the bounding boxes of the points
    "object": CropRule("object", scaled_box, 1.7, 1.3, (1.3, 0.0), 0.0, detailed=True),
}


def cut(image: np.ndarray, box: Box) -> np.ndarray:
    """Cut the square `box` from an image; pixels outside the image are black."""
    x, y, side = box
    height, width = image.shape[:2]
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + side, width), min(y + side, height)
    if (x0, y0, x1, y1) == (x, y, x + side, y + side):
        return image[y0:y1, x0:x1]
    out = np.zeros((side, side, *image.shape[2:]), image.dtype)
    if x1 > x0 and y1 > y0:
        out[y0 - y : y1 - y, x0 - x : x1 - x] = image[y0:y1, x0:x1]
    return out
