"""Cut a network's input from an image by one affine: rotation, scale and translation.

The crop rule of the training places a square of cells around the face and a smaller square in it, which the
network sees (data.crops). Here only the cells that the network sees are computed: the region of the image is resized
to cells with Lanczos filtering, as in training, and the cells are sampled bilinearly. An INTER_AREA filter in place of
Lanczos moves points by up to 0.5 network pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recombinator.data.crops import CropRule
from recombinator.data.images import to_gray
from recombinator.data.photograph import Photograph

REDUCING_GAP = 3.0  # Pillow averages whole pixels first where the image shrinks by more than this; see its manual
LANCZOS_REACH = 3  # of the filter, in cells


@dataclass(frozen=True)
class Crop:
    """Hold a network's input.

    Args:
        pixels: (channels, size, size) uint8.
        to_image: (2, 3) affine from the input's pixels to the image's. Its linear part is a rotation times a scale.
        moved: The crop rule moved the square to keep it inside the image, or made it smaller.
    """

    pixels: np.ndarray
    to_image: np.ndarray
    moved: bool = False

    @property
    def pixel(self) -> float:
        """The side of one of the input's pixels in the image."""
        return float(np.hypot(*self.to_image[:, 0]))

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Map (N, 2) points of the input to the image."""
        return points @ self.to_image[:, :2].T + self.to_image[:, 2]


def rotation(degrees: float) -> np.ndarray:
    """Return the (2, 2) matrix that rotates points clockwise on the screen."""
    turn = np.radians(degrees)
    return np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def rotated_covariance(covariance: np.ndarray, angle: float) -> np.ndarray:
    """Rotate (K, 3) covariances xx, xy, yy by an angle in degrees, clockwise on the screen."""
    if angle == 0:
        return covariance
    xx, xy, yy = covariance.T
    full = np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -2)
    turned = rotation(angle) @ full @ rotation(angle).T
    return np.stack([turned[:, 0, 0], turned[:, 0, 1], turned[:, 1, 1]], axis=1)


def crop_face(
    photograph: Photograph, points: np.ndarray, rule: CropRule, size: int, channels: int, angle: float = 0.0,
    free: bool = False,
) -> Crop | None:  # fmt: skip
    """Cut the network's input around a face.

    Args:
        photograph: The image. Its full size is decoded only if the reduced one is too coarse for this face. Pixels
            outside it are black.
        points: (K, 2) rough points in pixels of the full image.
        rule: The crop rule of the network's training. It applies to the image as it is after the rotation of the face
            to upright.
        size: Side of the network's input in pixels.
        channels: 1 for gray, 3 for RGB.
        angle: Rotation of the face in degrees, clockwise on the screen.
        free: Place the square without regard to the image's border, and mirror the image there.

    Returns:
        The crop; None if the points are not finite or too close to each other.
    """
    if not np.isfinite(points).all():
        return None
    upright, frame = _upright(photograph.width, photograph.height, angle)  # from the image
    numbers = points @ upright[:, :2].T + upright[:, 2] + rule.origin
    limited = _place(numbers, rule, size, frame)
    unlimited = limited if rule.whole else _place(numbers, rule, size, None)
    if limited is None or unlimited is None:
        return None
    (x, y, side), inner = unlimited if free else limited
    grid = rule.stored_size(size)
    cell = side / grid
    corner, step = inner[:2], float(inner[2]) / size  # of the network's pixels, in cells
    moved = bool(np.abs(_square(limited, grid) - _square(unlimited, grid)).max() >= step * cell)
    back = _inverted(upright)
    # from network pixels to the image
    linear = back[:, :2] * (step * cell)
    start = back[:, :2] @ (corner * cell + [x, y]) + back[:, 2]
    to_image = np.concatenate([linear, start[:, None]], axis=1)
    if angle == 0 and step >= 1:
        low, high = np.floor(corner).astype(int), np.ceil(corner + inner[2]).astype(int)
        limits = np.array([x, y]), np.array([x + side, y + side])  # as in training, where stage 2 sees only stage 1
        cells = _cells(photograph, np.array([x, y]) + low * cell, high - low, cell, channels, limits, free)
        return Crop(_resized(cells, size), to_image, moved)
    corners = np.array([(0, 0), (size, 0), (0, size), (size, size)]) @ linear.T + start
    first = corners.min(axis=0) - 2 * cell
    cells = _cells(
        photograph, first, np.ceil((np.ptp(corners, axis=0)) / cell).astype(int) + 4, cell, channels, free=free
    )
    return Crop(_warped(cells, linear / cell, (start - first) / cell, size), to_image, moved)


FAR = 1 << 20  # pixels; a frame this far beyond the image sets no limits
Placed = tuple[tuple[int, int, int], np.ndarray]


def _place(numbers: np.ndarray, rule: CropRule, size: int, frame: tuple[int, int] | None) -> Placed | None:
    """Return the stage-1 square in a frame of this width and height and the network's square in its cells.

    Without a frame there are no limits. None if the points are too close to each other.
    """
    if frame is None:
        x, y, side = rule.box(numbers + FAR, rule.stage1, 2 * FAR, 2 * FAR)
        x, y = x - FAR, y - FAR
    else:
        x, y, side = rule.box(numbers, rule.stage1, *frame)
    if side < 4:
        return None
    grid = rule.stored_size(size)
    return (x, y, side), rule.inner_box((numbers - [x, y]) / (side / grid), grid).astype(np.float64)


def _square(placed: Placed, grid: int) -> np.ndarray:
    """Return x, y and side of the network's square in the frame; stage 1 has grid x grid cells."""
    (x, y, side), inner = placed
    return inner * (side / grid) + [x, y, 0]


def _upright(width: int, height: int, angle: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the (2, 3) affine that turns an image by -angle onto a canvas that holds all of it, and its size."""
    if angle == 0:
        return np.eye(2, 3), (width, height)
    linear = rotation(-angle)
    frame = np.ceil(np.abs(linear) @ [width, height] - 1e-6)
    shift = frame / 2 - linear @ [width / 2, height / 2]
    return np.concatenate([linear, shift[:, None]], axis=1), (int(frame[0]), int(frame[1]))


def _inverted(affine: np.ndarray) -> np.ndarray:
    linear = np.linalg.inv(affine[:, :2])
    return np.concatenate([linear, -linear @ affine[:, 2:]], axis=1)


def _cells(
    photograph: Photograph, start: np.ndarray, count: np.ndarray, cell: float, channels: int,
    limits: tuple[np.ndarray, np.ndarray] | None = None, free: bool = False,
) -> np.ndarray:  # fmt: skip
    """Return count[1] x count[0] cells of `cell` pixels, the first of which begins at `start` in the image.

    The filter uses no pixels outside `limits`, the lowest and highest x and y, which the cells do not leave.
    """
    import cv2
    from PIL import Image

    if photograph.factor == 1 or cell < photograph.factor:
        image = photograph.full
    else:
        image = photograph.pixels
        start, cell = start / photograph.factor, cell / photograph.factor
        limits = limits and (limits[0] // photograph.factor, -(-limits[1] // photograph.factor))
    height, width = image.shape[:2]
    margin = LANCZOS_REACH * max(cell, 1.0) + 1
    low = np.floor(start - margin).astype(int)
    high = np.ceil(start + count * cell + margin).astype(int)
    if limits is not None:
        low, high = np.maximum(low, limits[0]), np.minimum(high, limits[1])
    x0, y0 = np.clip(low, 0, [width, height])
    x1, y1 = np.clip(high, [x0, y0], [width, height])
    part = image[y0:y1, x0:x1]
    part = to_gray(part) if channels == 1 and part.size else part
    if channels == 1:
        part = part[..., 0] if part.ndim == 3 else part
    elif part.ndim == 2:
        part = np.repeat(part[..., None], 3, axis=2)
    before, after = np.array([x0, y0]) - low, high - [x1, y1]
    if not part.size:
        part = np.zeros((high[1] - low[1], high[0] - low[0], *part.shape[2:]), np.uint8)
    elif before.any() or after.any():
        border = cv2.BORDER_REFLECT if free else cv2.BORDER_CONSTANT  # a constant of 0: black
        part = cv2.copyMakeBorder(part, before[1], after[1], before[0], after[0], border, value=(0, 0, 0))
    first = np.maximum(start - low, 0.0)
    last = np.minimum(first + count * cell, part.shape[1::-1])  # against rounding
    picture, box = Image.fromarray(np.ascontiguousarray(part)), (*first.tolist(), *last.tolist())
    size = int(count[0]), int(count[1])
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP))


def _resized(cells: np.ndarray, size: int) -> np.ndarray:
    import cv2

    # as floats: OpenCV rounds the weights for whole numbers, which lowers gray levels by 0.2 on average
    pixels = cv2.resize(cells.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    return _planes(np.rint(pixels).astype(np.uint8))


def _warped(cells: np.ndarray, linear: np.ndarray, start: np.ndarray, size: int) -> np.ndarray:
    import cv2

    # in OpenCV a pixel's center is at its integer
    matrix = np.concatenate([linear, (start + linear @ [0.5, 0.5] - 0.5)[:, None]], axis=1)
    return _planes(cv2.warpAffine(cells, matrix, (size, size), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP))


def _planes(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W[, C]) as (C, H, W)."""
    return np.moveaxis(np.atleast_3d(pixels), 2, 0)
