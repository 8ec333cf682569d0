"""Face boxes from OpenCV's cascades. A detector is anything with `detect(image) -> boxes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recombinator.data.images import to_gray
from recombinator.utils.errors import InputError

LONGEST = 1024  # pixels; larger photographs are scaled down for detection


class Detector(Protocol):
    def detect(self, image: np.ndarray) -> np.ndarray:
        """(H, W[, 3]) uint8 -> (N, 4) boxes x, y, width, height in its pixels, largest first."""
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
    """One way to look with a cascade: the photograph turned by `degrees` or mirrored before, how many overlapping
    hits a face needs."""

    cascade: str = "frontalface_alt2"
    degrees: float = 0.0
    mirrored: bool = False
    neighbors: int = 3


# where an upright frontal face is not found: turned heads, tilted ones, then anything that faintly resembles a face
SEARCH = (
    CascadePass("profileface"), CascadePass("profileface", mirrored=True), CascadePass(degrees=35),
    CascadePass(degrees=-35), CascadePass(neighbors=1), CascadePass(degrees=90), CascadePass(degrees=-90),
    CascadePass(degrees=180),
)  # fmt: skip


class HaarDetector:
    """OpenCV's cascades: `frontalface_alt2` for upright, roughly frontal faces of 24 pixels or more, or 1/43 of the
    longer side of a photograph larger than `LONGEST`."""

    def detect(self, image: np.ndarray) -> np.ndarray:
        return self._look(image, CascadePass())

    def search(self, image: np.ndarray) -> Iterator[np.ndarray]:
        """Further boxes, one way of looking after the other, for a photograph where `detect` led to no face; the last
        one is that the whole photograph is a face."""
        for look in SEARCH:
            boxes = self._look(image, look)
            if len(boxes):
                yield boxes
        yield WholeImage().detect(image)

    def _look(self, image: np.ndarray, look: CascadePass) -> np.ndarray:
        import cv2

        gray, scale = _shrunk(to_gray(image))
        # a face that fills the picture needs room around it; the cascade slides only inside
        border = max(gray.shape) // 8
        gray = cv2.copyMakeBorder(gray, border, border, border, border, cv2.BORDER_REPLICATE)
        height, width = gray.shape
        # the turned photograph has room for its corners; `back` leads from it to the upright one
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), look.degrees, 1.0)
        reach = np.abs(turn[:, :2]) @ [width, height]
        turn[:, 2] += (reach - [width, height]) / 2
        seen = gray
        if look.degrees:
            seen = cv2.warpAffine(gray, turn, [int(v) for v in np.ceil(reach)], borderMode=cv2.BORDER_REPLICATE)
        if look.mirrored:
            seen = np.ascontiguousarray(seen[:, ::-1])
        found = _cascade(look.cascade).detectMultiScale(
            seen, scaleFactor=1.1, minNeighbors=look.neighbors, minSize=(24, 24)
        )
        boxes = np.array(found, np.float64).reshape(-1, 4)
        center = boxes[:, :2] + boxes[:, 2:] / 2
        if look.mirrored:
            center[:, 0] = seen.shape[1] - center[:, 0]
        if look.degrees:
            back = cv2.invertAffineTransform(turn)
            center = center @ back[:, :2].T + back[:, 2]
        boxes[:, :2] = center - boxes[:, 2:] / 2 - border
        return boxes[np.argsort(-boxes[:, 2])] / scale


def _shrunk(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The image with no side longer than LONGEST, and by what factor it shrank: detectors need no more."""
    import cv2

    scale = min(1.0, LONGEST / max(image.shape[:2]))
    if scale == 1:
        return image, scale
    smaller = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, smaller, interpolation=cv2.INTER_AREA), scale


class WholeImage:
    """Each image is one face: for crops that are cut already."""

    def detect(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        side = 0.8 * min(height, width)
        return np.array([[(width - side) / 2, (height - side) / 2, side, side]])


class YuNetDetector:
    """OpenCV's YuNet, from a model file that the user has (face_detection_yunet_*.onnx). Not thread-safe."""

    def __init__(self, path: str, min_confidence: float = 0.6) -> None:
        import cv2

        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; yunet:PATH wants OpenCV's face_detection_yunet ONNX file")
        try:
            self.net = cv2.FaceDetectorYN.create(path, "", (320, 320), min_confidence)
        except cv2.error as error:
            raise InputError(f"{path}: OpenCV cannot read it as a YuNet model ({error.err})") from None

    def detect(self, image: np.ndarray) -> np.ndarray:
        import cv2

        bgr = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
        bgr, scale = _shrunk(bgr)
        self.net.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, found = self.net.detect(bgr)
        boxes = np.array([] if found is None else found[:, :4], np.float64).reshape(-1, 4)
        # its boxes hug the face; crop rules know the cascade's squares, a little wider (the second pass forgives)
        side = boxes[:, 2] * 1.15
        center = boxes[:, :2] + boxes[:, 2:] / 2
        squares = np.concatenate([center - side[:, None] / 2, side[:, None], side[:, None]], axis=1)
        return squares[np.argsort(-squares[:, 2])] / scale


def detector_by_name(name: str) -> Detector:
    """ "haar", "none" (each image is a face) or "yunet:PATH". Raises InputError for anything else."""
    if name.startswith("yunet:"):
        return YuNetDetector(name[6:])
    known: dict[str, Callable[[], Detector]] = {"haar": HaarDetector, "none": WholeImage}
    if name not in known:
        raise InputError(f"detector {name!r} is not known: use haar, none or yunet:PATH")
    return known[name]()
