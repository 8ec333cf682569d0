"""Draw faces on images: boxes, lines, points colored by confidence, numbers and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recombinator.predict.crop import rotation

if TYPE_CHECKING:
    from recombinator.predict.result import Face

# Colors that the color-blind can tell apart (Okabe, Ito): vermilion for confidence 0, bluish green for 1
LOW, HIGH = np.array([213.0, 94, 0]), np.array([0.0, 158, 115])
BOX, LINE, WHITE, BLACK = (86, 180, 233), (240, 228, 66), (255, 255, 255), (0, 0, 0)
FEW = 10  # up to this number of keypoints there is room for larger markers
LETTER = 9  # height in pixels of the smallest text that can be read
LETTER_AT_SCALE_1 = 22  # height in pixels of OpenCV's capital letters
SUBPIXEL = 4  # OpenCV takes coordinates in units of 1/16 pixel

Rectangle = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def draw_faces(
    image: np.ndarray, faces: Sequence[Face], box: bool = True, numbers: bool = False, legend: bool = True
) -> np.ndarray:
    """Draw faces on a copy of an image. Sizes of markers follow the size of each face.

    Args:
        image: (H, W) gray or (H, W, 3) RGB, uint8.
        faces: The faces, in pixels of the image.
        box: Draw the square that the network saw.
        numbers: Draw the number of each keypoint, from 1, next to it. Numbers that would cover a point or another
            number are left out.
        legend: Draw the colors of confidence 0 to 1 in a corner that is free of faces. It is left out of small images.

    Returns:
        (H, W, 3) RGB, uint8.
    """
    import cv2

    canvas = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image.copy()
    canvas = np.ascontiguousarray(canvas)
    for face in faces:
        side = float(face.box[2])
        if box:
            square = np.array([_at(corner) for corner in _corners(face)], np.int32)
            cv2.polylines(canvas, [square], True, BOX, max(1, round(side / 300)), cv2.LINE_AA, SUBPIXEL)
        _draw_lines(canvas, face)
        radius = _radius(face)
        for point, confidence in zip(face.points, face.confidence, strict=True):
            color = tuple(float(v) for v in _color(float(confidence)))
            cv2.circle(canvas, _at(point), round(radius * 16), color, -1, cv2.LINE_AA, SUBPIXEL)
            if radius >= 2.5:
                outline = max(1, round(radius / 4))
                cv2.circle(canvas, _at(point), round(radius * 16), WHITE, outline, cv2.LINE_AA, SUBPIXEL)
    if numbers:
        _draw_numbers(canvas, faces)
    if legend and faces:
        _draw_legend(canvas, faces)
    return canvas


def _corners(face: Face) -> np.ndarray:
    """Return the (4, 2) corners of the face's square."""
    x, y, side = face.box
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * side / 2
    return corners @ rotation(face.angle).T + [x, y] + side / 2


def _at(point: np.ndarray) -> tuple[int, int]:
    """Return a point in OpenCV's units; there a pixel's center is at its integer."""
    x, y = np.round((point - 0.5) * 16).astype(int)
    return int(x), int(y)


def _color(confidence: float) -> np.ndarray:
    return LOW + (HIGH - LOW) * confidence


def _radius(face: Face) -> float:
    """Return the radius of a face's points in pixels. It grows with the face, more slowly for large faces."""
    side = float(face.box[2])
    few = len(face.points) <= FEW
    return max(0.7, min(side / 55, 1.8 + side / 160)) if few else max(0.5, min(side / 130, 0.8 + side / 190))


def _draw_lines(canvas: np.ndarray, face: Face) -> None:
    """Connect the keypoints. No line is thinner than a pixel, so lines on small faces are drawn more transparent."""
    import cv2

    if not face.keypoints.lines:
        return
    side = float(face.box[2])
    # only the face's part of the image is blended, so that many faces on a large image stay fast
    low = np.maximum(np.floor(face.points.min(axis=0)) - 3, 0).astype(int)
    part = canvas[low[1] : max(0, int(face.points[:, 1].max()) + 4), low[0] : max(0, int(face.points[:, 0].max()) + 4)]
    if not part.size:
        return
    drawn = part.copy()
    for path in face.keypoints.lines:
        line = np.array([_at(face.points[i] - low) for i in path], np.int32)
        cv2.polylines(drawn, [line], False, LINE, max(1, round(side / 300)), cv2.LINE_AA, SUBPIXEL)
    opacity = float(np.clip(side / 400, 0.2, 0.8))
    part[:] = cv2.addWeighted(drawn, opacity, part, 1 - opacity, 0)


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _text_size(text: str, height: float) -> tuple[float, float]:
    """Return width and height in pixels of a text whose capital letters are `height` pixels high."""
    import cv2

    (width, tall), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, height / LETTER_AT_SCALE_1, 1)
    return width, tall


def _write(canvas: np.ndarray, text: str, left: float, bottom: float, height: float) -> None:
    """Write white text with a dark outline."""
    import cv2

    thickness = max(1, round(height / 12))
    for color, width in ((BLACK, thickness + 2), (WHITE, thickness)):
        place, scale = (round(left), round(bottom)), height / LETTER_AT_SCALE_1
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, color, width, cv2.LINE_AA)


def _draw_numbers(canvas: np.ndarray, faces: Sequence[Face]) -> None:
    height, width = canvas.shape[:2]
    taken: list[Rectangle] = []
    for face in faces:
        reach = _radius(face)
        taken += [(x - reach, y - reach, x + reach, y + reach) for x, y in face.points]
    for face in faces:
        side, few = float(face.box[2]), len(face.points) <= FEW
        letter = max(LETTER, side / (40 if few else 70))
        if letter > side / (10 if few else 20):  # the numbers would hide the face
            continue
        away = _radius(face) + 2
        for number, (x, y) in enumerate(face.points, 1):
            w, h = _text_size(str(number), letter)
            # right, left, above, below, then the four corners
            for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1)):
                left = x + dx * (away + w / 2) - w / 2
                top = y + dy * (away + h / 2) - h / 2
                place = (left - 1, top - 1, left + w + 1, top + h + 1)
                inside = place[0] >= 0 and place[1] >= 0 and place[2] <= width and place[3] <= height
                if inside and not any(_overlap(place, other) for other in taken):
                    taken.append(place)
                    _write(canvas, str(number), left, top + h, letter)
                    break


def _draw_legend(canvas: np.ndarray, faces: Sequence[Face]) -> None:
    import cv2

    height, width = canvas.shape[:2]
    letter = max(float(LETTER), min(height, width) / 55)
    text_width, _ = _text_size("confidence", letter)
    gap, bar = round(0.6 * letter), round(text_width * 1.1)
    digit = _text_size("0", letter)[0]
    full = (round(bar + 2 * digit + 4 * gap), round(2 * letter + 3 * gap))
    if full[0] > width / 2 or full[1] > height / 4:
        return
    keep_out = [(*face.points.min(axis=0) - 2 * gap, *face.points.max(axis=0) + 2 * gap) for face in faces]
    for left, top in (
        (0, height - full[1]), (width - full[0], height - full[1]), (0, 0), (width - full[0], 0),
    ):  # fmt: skip
        if not any(_overlap((left, top, left + full[0], top + full[1]), other) for other in keep_out):
            break
    else:
        return
    part = canvas[top : top + full[1], left : left + full[0]]
    part[:] = part // 3
    _write(canvas, "confidence", left + (full[0] - text_width) / 2, top + gap + letter, letter)
    baseline = top + 2 * gap + 2 * letter
    _write(canvas, "0", left + gap, baseline, letter)
    _write(canvas, "1", left + full[0] - gap - digit, baseline, letter)
    start = round(left + 2 * gap + digit)
    colors = np.array([_color(v) for v in np.linspace(0, 1, bar)])
    canvas[round(baseline - letter) : round(baseline), start : start + bar] = colors.astype(np.uint8)
    corners = (start, round(baseline - letter)), (start + bar, round(baseline))
    cv2.rectangle(canvas, *corners, WHITE, 1)
