"""Face boxes from OpenCV's frontal cascade. A detector is anything with `detect(image) -> boxes`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recombinator.data.images import to_grey
from recombinator.errors import InputError

LONGEST = 1024  # pixels; larger photographs are scaled down for detection


class Detector(Protocol):
    def detect(self, image: np.ndarray) -> np.ndarray:
        """(H, W[, 3]) uint8 -> (N, 4) boxes x, y, width, height in its pixels, largest first."""
        ...


@cache
def _cascade() -> Any:
    import cv2
    import cv2.data

    if not hasattr(cv2, "CascadeClassifier"):
        raise InputError(f"OpenCV {cv2.__version__} has no Haar cascade; install opencv-python-headless>=4.10,<5")
    return cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"))


class HaarDetector:
    """`haarcascade_frontalface_alt2`; upright, roughly frontal faces of 24 pixels or more, or 1/43 of
    the longer side of a photograph larger than `LONGEST`."""

    def detect(self, image: np.ndarray) -> np.ndarray:
        import cv2

        grey = to_grey(image)
        scale = min(1.0, LONGEST / max(grey.shape))
        if scale < 1:
            smaller = [max(1, round(side * scale)) for side in grey.shape[::-1]]
            grey = cv2.resize(grey, smaller, interpolation=cv2.INTER_AREA)
        # a face that fills the picture needs room around it; the cascade slides only inside
        border = max(grey.shape) // 8
        grey = cv2.copyMakeBorder(grey, border, border, border, border, cv2.BORDER_REPLICATE)
        found = _cascade().detectMultiScale(grey, scaleFactor=1.1, minNeighbors=3, minSize=(24, 24))
        boxes = np.array(found, np.float64).reshape(-1, 4)
        boxes[:, :2] -= border
        return boxes[np.argsort(-boxes[:, 2])] / scale
