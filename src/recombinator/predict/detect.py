"""Face detectors. A detector is any object with `detect(image) -> boxes`; OpenCV's Haar cascades are the default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recombinator.data.images import to_gray
from recombinator.utils.errors import InputError, unknown

LONGEST = 1024  # pixels; larger photographs are scaled down for detection


class Detector(Protocol):
    """What a Predictor needs of a detector."""

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Find faces in an image.

        Args:
            image: (H, W) gray or (H, W, 3) RGB, uint8.

        Returns:
            (N, 4) boxes x, y, width, height in pixels, largest first.
        """
        ...


@cache
def _cascade(name: str) -> Any:
    import cv2
    import cv2.data

    if not hasattr(cv2, "CascadeClassifier"):
        raise InputError(f"OpenCV {cv2.__version__} has no Haar cascade; install opencv-python-headless>=4.10,<5")
    return cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / f"haarcascade_{name}.xml"))


@dataclass(frozen=True)
class CascadePass:
    """Configure one pass of a cascade over the photograph.

    Args:
        cascade: Which of OpenCV's cascades.
        degrees: Rotate the photograph by this angle first, counterclockwise.
        mirrored: Mirror the photograph first.
        neighbors: How many overlapping hits make a face.
    """

    cascade: str = "frontalface_alt2"
    degrees: float = 0.0
    mirrored: bool = False
    neighbors: int = 3


# if no upright frontal face is found: turned heads, tilted ones, then anything that faintly resembles a face
SEARCH = (
    CascadePass("profileface"), CascadePass("profileface", mirrored=True), CascadePass(degrees=35),
    CascadePass(degrees=-35), CascadePass(neighbors=1), CascadePass(degrees=90), CascadePass(degrees=-90),
    CascadePass(degrees=180),
)  # fmt: skip


class HaarDetector:
    """Detect upright, roughly frontal faces with OpenCV's `frontalface_alt2` cascade.

    The smallest face is 24 pixels wide, or 1/43 of the longer side of a photograph larger than `LONGEST`.
    """

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Find upright, roughly frontal faces; see Detector.detect."""
        return self._run(image, CascadePass())

    def search(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Search a photograph in which `detect` led to no face.

        Args:
            image: (H, W) gray or (H, W, 3) RGB, uint8.

        Yields:
            (N, 4) boxes, one array for each pass that finds any. The last array is one box for the whole photograph.
        """
        for settings in SEARCH:
            boxes = self._run(image, settings)
            if len(boxes):
                yield boxes
        yield WholeImage().detect(image)

    def _run(self, image: np.ndarray, settings: CascadePass) -> np.ndarray:
        """Return the (N, 4) boxes of one pass in pixels of the image, largest first."""
        import cv2

        gray, scale = _shrink(to_gray(image))
        # the cascade only finds faces with some room around them, so a face that fills the picture needs a border
        border = max(gray.shape) // 8
        gray = cv2.copyMakeBorder(gray, border, border, border, border, cv2.BORDER_REPLICATE)
        height, width = gray.shape
        # the rotated picture is large enough for its corners; the inverse transform leads back to the upright one
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), settings.degrees, 1.0)
        reach = np.abs(turn[:, :2]) @ [width, height]
        turn[:, 2] += (reach - [width, height]) / 2
        seen = gray
        if settings.degrees:
            seen = cv2.warpAffine(gray, turn, [int(v) for v in np.ceil(reach)], borderMode=cv2.BORDER_REPLICATE)
        if settings.mirrored:
            seen = np.ascontiguousarray(seen[:, ::-1])
        hits = _cascade(settings.cascade).detectMultiScale(
            seen, scaleFactor=1.1, minNeighbors=settings.neighbors, minSize=(24, 24)
        )
        boxes = np.array(hits, np.float64).reshape(-1, 4)
        center = boxes[:, :2] + boxes[:, 2:] / 2
        if settings.mirrored:
            center[:, 0] = seen.shape[1] - center[:, 0]
        if settings.degrees:
            back = cv2.invertAffineTransform(turn)
            center = center @ back[:, :2].T + back[:, 2]
        boxes[:, :2] = center - boxes[:, 2:] / 2 - border
        return boxes[np.argsort(-boxes[:, 2])] / scale


def _shrink(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the image with no side longer than LONGEST, which is enough for detection, and the factor of scaling."""
    import cv2

    scale = min(1.0, LONGEST / max(image.shape[:2]))
    if scale == 1:
        return image, scale
    smaller = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, smaller, interpolation=cv2.INTER_AREA), scale


class WholeImage:
    """Take each image for one face: for images that are cropped already."""

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Return one box in the middle of the image; see Detector.detect."""
        height, width = image.shape[:2]
        side = 0.8 * min(height, width)
        return np.array([[(width - side) / 2, (height - side) / 2, side, side]])


class YuNetDetector:
    """Detect faces with OpenCV's YuNet. Not thread-safe.

    Args:
        path: The model file, which is not part of this package: face_detection_yunet_*.onnx of OpenCV's model zoo.
        min_confidence: Smallest score of a face, from 0 to 1.

    Raises:
        InputError: If the file is missing or is not such a model.
    """

    def __init__(self, path: str, min_confidence: float = 0.6) -> None:
        import cv2

        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; yunet:FILE needs OpenCV's face_detection_yunet ONNX file")
        try:
            self.net = cv2.FaceDetectorYN.create(path, "", (320, 320), min_confidence)
        except cv2.error as error:
            raise InputError(f"{path}: OpenCV cannot read it as a YuNet model ({error.err})") from None

    def detect(self, image: np.ndarray) -> np.ndarray:
        """Find faces in any pose; see Detector.detect."""
        import cv2

        bgr = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
        bgr, scale = _shrink(bgr)
        self.net.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, rows = self.net.detect(bgr)
        boxes = np.array([] if rows is None else rows[:, :4], np.float64).reshape(-1, 4)
        # its boxes are tight; crop rules expect the cascade's squares, which are a little wider
        side = boxes[:, 2] * 1.15
        center = boxes[:, :2] + boxes[:, 2:] / 2
        squares = np.concatenate([center - side[:, None] / 2, side[:, None], side[:, None]], axis=1)
        return squares[np.argsort(-squares[:, 2])] / scale


def detector_by_name(name: str) -> Detector:
    """Return a detector by its name.

    Args:
        name: "haar", "none" (each image is one face) or "yunet:FILE".

    Raises:
        InputError: For any other name.
    """
    if name.startswith("yunet:"):
        return YuNetDetector(name[6:])
    known: dict[str, Callable[[], Detector]] = {"haar": HaarDetector, "none": WholeImage}
    if name not in known:
        raise unknown("detector", name, ("haar", "none", "yunet:FILE"))
    return known[name]()
