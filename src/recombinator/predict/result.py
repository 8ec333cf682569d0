"""What is found of one face, and its picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recombinator.keypoints import KeypointSet
from recombinator.utils.errors import InputError

_LOW, _HIGH = np.array([213, 94, 0]), np.array([0, 158, 115])  # vermilion to green, told apart by the color-blind


@dataclass(frozen=True)
class Face:
    """One face. points: (K, 2) x, y in image pixels, a pixel's center at its integer + 0.5; confidence: (K,)
    probability that the true point lies in the square of 7x7 network pixels around the network's highest cell, where
    the answer lies too; box: x, y, side of the square it looked at.

    Where the weights are calibrated: within, (K, 5) probabilities of the squares that reach `reach` (5,) image pixels
    each way from the middle of the highest cell; covariance, (K, 3) of the answer's error in square pixels: xx, xy, yy;
    covered, (K,) whether the point is probably hidden (a visible one is called so one time in twenty).
    """

    points: np.ndarray
    confidence: np.ndarray
    box: np.ndarray
    keypoints: KeypointSet
    within: np.ndarray | None = None
    reach: np.ndarray | None = None
    covariance: np.ndarray | None = None
    covered: np.ndarray | None = None

    def probability_within(self, pixels: float) -> np.ndarray:
        """(K,) probability that the true point lies within so many image pixels of the highest cell, left or right and
        up or down: between the known squares a straight line, beyond the largest its own. Raises InputError without
        them, and for a negative distance."""
        if self.within is None or self.reach is None:
            raise InputError("this face has one confidence a point only: its weights are not calibrated")
        if not pixels >= 0:
            raise InputError(f"pixels={pixels} must be 0 or more")
        steps = np.concatenate([[0.0], self.reach])
        return np.array([np.interp(pixels, steps, [0.0, *row]) for row in self.within])

    def draw(self, image: np.ndarray) -> np.ndarray:
        """A copy of the (H, W[, 3 or 4]) uint8 image as RGB with the points on it, colored by confidence."""
        return draw_faces(np.asarray(image)[..., :3] if np.ndim(image) == 3 else image, [self])

    def ellipses(self, deviations: float = 2.0) -> np.ndarray:
        """(K, 3) error ellipses: longer and shorter half axis in image pixels, angle of the longer one in degrees
        from x towards y. Raises InputError where the weights are not calibrated."""
        if self.covariance is None:
            raise InputError("this face has one confidence a point only: its weights are not calibrated")
        xx, xy, yy = self.covariance.T
        middle, gap = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
        axes = np.sqrt(np.maximum([middle + gap, middle - gap], 0)) * deviations
        return np.stack([*axes, np.degrees(np.arctan2(2 * xy, xx - yy) / 2)], axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {
            "box": [round(float(v), 2) for v in self.box],
            "confidence": round(float(self.confidence.mean()), 4),
            "keypoints": [self._keypoint(i) for i in range(len(self.points))],
        }

    def _keypoint(self, i: int) -> dict[str, Any]:
        x, y = (round(float(v), 2) for v in self.points[i])
        told = {"name": self.keypoints.names[i], "x": x, "y": y, "confidence": round(float(self.confidence[i]), 4)}
        if self.covered is not None and self.covariance is not None:
            covariance = [round(float(v), 3) for v in self.covariance[i]]
            told |= {"covered": bool(self.covered[i]), "covariance": covariance}
        return told


def draw_faces(image: np.ndarray, faces: list[Face], box: bool = True, numbers: bool = False) -> np.ndarray:
    """(H, W[, 3]) uint8 -> an RGB copy with every face's box, lines and points; a point's color is its
    confidence, its size follows the face's. numbers: each point's number beside it, from 1."""
    import cv2

    canvas = np.ascontiguousarray(np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image.copy())

    def at(p: np.ndarray) -> tuple[int, int]:  # 1/16 pixel; OpenCV counts a pixel's center at its integer
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
            color = tuple(float(v) for v in _LOW + (_HIGH - _LOW) * float(confidence))
            cv2.circle(canvas, at(point), round(radius * 16), color, -1, cv2.LINE_AA, 4)
            cv2.circle(canvas, at(point), round(radius * 16), (255, 255, 255), thickness, cv2.LINE_AA, 4)
        letters = side / (500 if len(face.points) <= 10 else 1000)
        for number, (x, y) in enumerate(face.points, 1) if numbers else ():
            place = (round(x + radius), round(y - radius))
            cv2.putText(canvas, str(number), place, cv2.FONT_HERSHEY_SIMPLEX, letters, (255, 255, 255), thickness)
    return canvas
