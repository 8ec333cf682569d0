"""Results of a prediction: one face, and the list of the faces of one image."""

from __future__ import annotations

import csv
import difflib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import Image, as_image, encode_image
from recombinator.keypoints import KeypointSet
from recombinator.predict.drawing import draw_faces
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_file, plain_cell, write_json, write_text

NOTEBOOK_SIDE = 1024  # pixels of the longer side of the picture that a notebook shows
POINT_COLUMNS = ("keypoint", "x", "y", "confidence", "inside")  # of every CSV file of points
_NOT_CALIBRATED = "this face has only one confidence per point: its weights are not calibrated"


@dataclass(frozen=True, eq=False)
class Face:
    """Hold the keypoints of one face.

    `face["left_eye"]` and `face[0]` give the (x, y) of one keypoint. Coordinates are in pixels of the image, x to the
    right and y down; the center of the first pixel is at (0.5, 0.5). "left" and "right" in names of keypoints are the
    left and right of the image, not of the person.

    Args:
        points: (K, 2) keypoints x, y.
        confidence: (K,) probability that the true point lies in the square of 7x7 network pixels around the highest
            cell of the keypoint's score map. 0 for a point that the border of the image decided: one outside the image,
            or one that changes if the image is continued beyond its border.
        box: (3,) x, y and side of the square that the network saw.
        keypoints: The keypoint set, K names.
        within: (K, 5) probabilities of five squares around the highest cell, 0 where the confidence is 0 because of the
            border; None without calibrated weights.
        reach: (5,) half sides of these squares in image pixels; None without calibrated weights.
        covariance: (K, 3) covariance of the point's error in square pixels: xx, xy, yy; None without calibrated
            weights.
        occluded: (K,) True where the point is probably occluded; on validation images one visible point in twenty is
            called so. None without calibrated weights.
        inside: (K,) True where the point is inside the image; None if that is not known.
        angle: Rotation of the square about its center in degrees, clockwise on the screen; 0 for an upright face.
        score: Probability of the face by the detector; 0.5 for a given box, and for detectors without scores.
    """

    points: np.ndarray
    confidence: np.ndarray
    box: np.ndarray
    keypoints: KeypointSet
    within: np.ndarray | None = None
    reach: np.ndarray | None = None
    covariance: np.ndarray | None = None
    occluded: np.ndarray | None = None
    inside: np.ndarray | None = None
    angle: float = 0.0
    score: float = 0.5

    def __repr__(self) -> str:
        x, y, side = self.box
        return (
            f"Face({len(self.points)} keypoints, confidence {self.confidence.mean():.2f}, "
            f"box x={x:.0f} y={y:.0f} side={side:.0f})"
        )

    def __getitem__(self, key: str | int) -> np.ndarray:
        """Return one keypoint.

        Args:
            key: The keypoint's name, or its index from 0.

        Returns:
            (2,) x, y in image pixels.

        Raises:
            KeyError: If no keypoint has this name.
            IndexError: If the index is out of range.
        """
        if not isinstance(key, str):
            return self.points[key]
        names = self.keypoints.names
        if key not in names:
            near = difflib.get_close_matches(key, names, n=3)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"expected one of {', '.join(names)}"
            raise KeyError(f"unknown keypoint {key!r}; {hint}")
        return self.points[names.index(key)]

    def probability_within(self, pixels: float) -> np.ndarray:
        """Return the probability that each true point is near the highest cell of its score map.

        The network gives the probability for five squares. Between them it is interpolated linearly; beyond the
        largest square it is constant.

        Args:
            pixels: Largest distance in x and in y from the middle of the cell, in image pixels.

        Returns:
            (K,) probabilities.

        Raises:
            InputError: If the weights are not calibrated or the distance is negative.
        """
        if self.within is None or self.reach is None:
            raise InputError(_NOT_CALIBRATED)
        if not pixels >= 0:
            raise InputError(f"pixels={pixels}: expected a number of 0 or more")
        steps = np.concatenate([[0.0], self.reach])
        return np.array([np.interp(pixels, steps, [0.0, *row]) for row in self.within])

    def ellipses(self, deviations: float = 2.0) -> np.ndarray:
        """Return the error ellipse of each point.

        Args:
            deviations: Size of the ellipses in standard deviations.

        Returns:
            (K, 3) longer and shorter half axis in image pixels, and the angle of the longer one in degrees from x
            towards y.

        Raises:
            InputError: If the weights are not calibrated.
        """
        if self.covariance is None:
            raise InputError(_NOT_CALIBRATED)
        xx, xy, yy = self.covariance.T
        middle, gap = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
        axes = np.sqrt(np.maximum([middle + gap, middle - gap], 0)) * deviations
        return np.stack([*axes, np.degrees(np.arctan2(2 * xy, xx - yy) / 2)], axis=1)

    def draw(self, image: Image) -> np.ndarray:
        """Draw the face on a copy of its image.

        Args:
            image: Anything that `Predictor.predict` accepts.

        Returns:
            (H, W, 3) RGB, uint8. The color of a point shows its confidence.
        """
        return draw_faces(as_image(image), [self])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the face to a file.

        Args:
            path: A .json file, which gets `to_dict()`, or a .csv file, which gets one row per keypoint.

        Raises:
            InputError: If the name ends in something else.
        """
        path = Path(path)
        check_output_file(path, ".json", ".csv")
        if path.suffix.lower() == ".json":
            write_json(path, self.to_dict())
        else:
            write_text(path, _csv_text([self]))

    def to_dict(self) -> dict[str, Any]:
        """Return the face as plain numbers, ready for JSON."""
        return {
            "box": [round(float(v), 2) for v in self.box],
            "angle": round(float(self.angle), 2),
            "confidence": round(float(self.confidence.mean()), 4),
            "keypoints": [self._keypoint(i) for i in range(len(self.points))],
        }

    def _keypoint(self, i: int) -> dict[str, Any]:
        x, y = (round(float(v), 2) for v in self.points[i])
        row = {"name": self.keypoints.names[i], "x": x, "y": y, "confidence": round(float(self.confidence[i]), 4)}
        if self.occluded is not None and self.covariance is not None:
            covariance = [round(float(v), 3) for v in self.covariance[i]]
            row |= {"covered": bool(self.occluded[i]), "covariance": covariance}
        if self.inside is not None:
            row["inside"] = bool(self.inside[i])
        return row


class Faces(list[Face]):
    """List the faces of one image, largest face first. A notebook shows it as the annotated picture.

    Args:
        faces: The faces.
        image: The image that they were found in, as it was given to `Predictor.predict`. It is kept by reference.
    """

    def __init__(self, faces: Iterable[Face] = (), image: Image | None = None) -> None:
        super().__init__(faces)
        self.image = image

    def draw(self, numbers: bool = False) -> np.ndarray:
        """Draw all faces on a copy of their image.

        Args:
            numbers: Also draw the number of each keypoint, from 1, where there is room.

        Returns:
            (H, W, 3) RGB, uint8. The color of a point shows its confidence.

        Raises:
            InputError: If the list does not hold its image, as for arrays that came from an iterator.
        """
        if self.image is None:
            raise InputError("these faces do not hold their image; use face.draw(image) for each of them")
        return draw_faces(as_image(self.image), self, numbers=numbers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all faces to a file.

        Args:
            path: A .json file, which gets {"faces": [...]}, or a .csv file, which gets one row per keypoint.

        Raises:
            InputError: If the name ends in something else.
        """
        path = Path(path)
        check_output_file(path, ".json", ".csv")
        if path.suffix.lower() == ".json":
            write_json(path, {"faces": [face.to_dict() for face in self]})
        else:
            write_text(path, _csv_text(self))

    def _repr_png_(self) -> bytes | None:
        """Return the annotated picture as PNG for a notebook; None, for the plain list, without an image."""
        import cv2

        if self.image is None:
            return None
        picture = self.draw()
        scale = NOTEBOOK_SIDE / max(picture.shape[:2])
        if scale < 1:
            size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        return encode_image(picture, 0)


def point_cells(row: dict[str, Any]) -> list[Any]:
    """Return the cells of POINT_COLUMNS for one keypoint of `Face.to_dict`; `inside` is 1, 0 or, if unknown, empty."""
    inside = row.get("inside")
    return [plain_cell(row["name"]), row["x"], row["y"], row["confidence"], "" if inside is None else int(inside)]


def _csv_text(faces: Iterable[Face]) -> str:
    """Return one row per keypoint: face (from 1), keypoint, x, y, confidence, inside."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["face", *POINT_COLUMNS])
    for number, face in enumerate(faces, 1):
        writer.writerows([number, *point_cells(row)] for row in face.to_dict()["keypoints"])
    return text.getvalue()
