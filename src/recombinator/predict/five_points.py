"""Place the crop of a 68-point network by the five points of another network.

The five points take the place of a first pass of the larger network. This is faster, above all where the finder has
false alarms, and the crops are placed better (docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from recombinator.predict.crop import rotation
from recombinator.predict.detect import Detection, both
from recombinator.predict.finder import FinderDetector
from recombinator.transforms.shapes import similarity

if TYPE_CHECKING:
    from recombinator.predict.predictor import Predictor

# Linear regressions, by crop rule. Rows: the five points (x and y in turn), then a constant 1. Columns: center x,
# center y and side of the bounding square of all points. Inputs and outputs are in the frame of the five typical
# points: the origin is the mean of the five, the unit is the side of their network's crop.
# `recombinator study framing --data out/300w` prints the numbers.
SQUARES = {
    "300w": (
        (0.4246, 0.1975, -0.3676),
        (0.1772, -0.0353, 0.1235),
        (0.3449, -0.2235, 0.3794),
        (-0.2005, 0.1026, 0.0268),
        (-1.3174, 0.0084, -0.0016),
        (0.0226, -0.1179, -0.2728),
        (0.2539, -0.2824, -0.0510),
        (0.0224, 0.0773, 0.0282),
        (0.2940, 0.2999, 0.0409),
        (-0.0217, -0.0266, 0.0944),
        (0.0045, 0.0411, 0.6075),
    ),
}


# Probability of a face whose five points were not accepted. With this stage, 4 more of 1,508 training faces are found,
# and no more false ones in 96 images without faces.
UNFRAMED = 1 / 3


def in_own_frame(points: np.ndarray, typical: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotate and scale five points to match the typical ones.

    Args:
        points: (N, 5, 2) x, y in image pixels.
        typical: (5, 2) x, y of an upright face.

    Returns:
        (N, 11) inputs of the regressions: x and y in turn of the upright points relative to their mean, in units of
        `typical`, and 1; and (N, 2, 2) linear parts of the transforms back to the image.
    """
    linear, _ = similarity(typical, points, np.ones(points.shape[:2]))
    centered = points - points.mean(axis=1, keepdims=True)
    upright = centered @ np.linalg.inv(linear).transpose(0, 2, 1)
    return np.concatenate([upright.reshape(len(points), -1), np.ones((len(points), 1))], axis=1), linear


class FaceFramer:
    """Detect faces with a five-point network, as the squares around all points of a larger network.

    Args:
        five_points: Predicts the eyes, the nose and the mouth corners.
        rule: Name of the crop rule, a key of SQUARES.
        template: (K, 2) typical points of the network in its crop.
    """

    passes = 1

    def __init__(self, five_points: Predictor, rule: str, template: np.ndarray) -> None:
        self.five_points, self.squares = five_points, np.array(SQUARES[rule])
        self.longest = getattr(five_points.detector, "longest", None)
        low, high = template.min(axis=0), template.max(axis=0)
        side = float((high - low).max())
        self.relation = {rule: (1 / side, float(0.5 - (low + high)[1] / 2) / side)}

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Find the faces of an image; see Detector.detect."""
        return self._framed(image, search=False)

    def search(self, image: np.ndarray) -> Iterator[list[Detection]]:
        """Yield the faces, then less certain ones; see Detector."""
        yield self._framed(image, search=True)
        yield self._unframed(image)

    def _framed(self, image: np.ndarray, search: bool) -> list[Detection]:
        faces = self.five_points.predict(image, search=search)
        if not faces:
            return []
        points = np.array([face.points for face in faces])
        inputs, linear = in_own_frame(points, np.array(self.five_points.about.template))
        detections = []
        for face, one, frame in zip(faces, inputs @ self.squares, linear, strict=True):
            x, y = face.points.mean(axis=0) + frame @ one[:2]
            side = float(one[2] * np.hypot(*frame[:, 0]))
            angle = float(np.degrees(np.arctan2(frame[1, 0], frame[0, 0])))
            detections.append(Detection((x - side / 2, y - side / 2, side, side), angle, face.score))
        return detections

    def _unframed(self, image: np.ndarray) -> list[Detection]:
        """Return the finder's squares. The larger network decides on faces whose five points were not accepted."""
        finder = self.five_points.detector
        assert isinstance(finder, FinderDetector)
        ((rule, (scale, lower)),) = self.relation.items()
        scale_found, lower_found = finder.relation[rule]
        detections = []
        for one in finder.detect(image):
            x, y, side, _ = one.box
            new = side * scale_found / scale
            below = rotation(one.angle) @ [0, lower_found * side - lower * new]
            x, y = np.array([x, y]) + side / 2 + below - new / 2
            detections.append(Detection((x, y, new, new), one.angle, both(one.score, UNFRAMED)))
        return detections
