"""Detectors: any object with `detect(image)`. `predict.finder` has the default one, a finder network."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recombinator.data.images import to_gray
from recombinator.data.photograph import Photograph
from recombinator.utils.errors import InputError, unknown
from recombinator.utils.files import check_regular, read_file

LONGEST = 1024  # pixels; larger photographs are scaled down for detection


@dataclass(frozen=True)
class Detection:
    """Hold one detected object as an oriented box.

    Args:
        box: x, y, width and height in pixels of the image. x and y are those of the corner before the rotation: the
            center is at (x + width / 2, y + height / 2), and the box is rotated about it.
        angle: Rotation of the object in degrees, clockwise on the screen, as in transforms.affine; 0 is upright.
        score: Probability that there is an object, by the detector; 0.5 if it gives none.
    """

    box: tuple[float, float, float, float]
    angle: float = 0.0
    score: float = 0.5

    def scaled(self, factor: float) -> Detection:
        """Return the detection in an image that is `factor` times as large."""
        x, y, width, height = self.box
        return replace(self, box=(x * factor, y * factor, width * factor, height * factor))


class Detector(Protocol):
    """What a Predictor needs of a detector.

    A detector must be thread-safe, since photographs of a folder are predicted in several threads. It may also have:

    - `search(image)`, which yields what `detect` returns, then further lists from a more thorough search; the predictor
      stops at the first list that leads to a face;
    - `longest`, the longest side in pixels that it looks at: larger JPEG files are then decoded at reduced size;
    - `relation`, for each name of a crop rule the side of the network's square and how far its center is below the
      box's center, both in box sides; by default CropRule.from_detector, which fits OpenCV's cascade;
    - `passes`, the number of passes that its boxes need;
    - `certain`, True if every box is a face, whatever the confidence of its points.
    """

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Find faces in an image.

        Args:
            image: (H, W) gray or (H, W, 3) RGB, uint8.

        Returns:
            One detection per face, largest first.
        """
        ...


def as_detections(found: Iterable[Any]) -> list[Detection]:
    """Return what a detector gave as detections.

    Args:
        found: Detections, or boxes (x, y, width, height), such as the rows of an (N, 4) array.
    """
    return [one if isinstance(one, Detection) else Detection(_four(one)) for one in found]


def _four(box: Iterable[float]) -> tuple[float, float, float, float]:
    x, y, width, height = (float(v) for v in box)
    return x, y, width, height


def both(confidence: float, score: float) -> float:
    """Return the probability from two independent ones, by adding their log-odds."""
    yes, no = confidence * score, (1 - confidence) * (1 - score)
    return yes / (yes + no) if yes + no else confidence


def check_boxes(boxes: Iterable[Any], photograph: Photograph) -> list[Detection]:
    """Check face boxes that a user gave.

    Args:
        boxes: Boxes (x, y, width, height) in pixels, or detections.
        photograph: The image that they belong to.

    Returns:
        One detection per box.

    Raises:
        InputError: If they are not such boxes, or one of them does not overlap the image.
    """
    try:
        detections = as_detections(boxes)
    except (TypeError, ValueError):
        raise InputError("boxes must be a list of (x, y, width, height)") from None
    width, height = photograph.width, photograph.height
    for one in detections:
        x, y, w, h = one.box
        if not np.isfinite([*one.box, one.angle]).all() or min(w, h) <= 0:
            raise InputError("boxes must be (x, y, width, height) each, finite, with positive width and height")
        reach = 0.0 if one.angle == 0 else (np.hypot(w, h) - min(w, h)) / 2  # a rotated box reaches farther
        outside = x - reach >= width or y - reach >= height or x + w + reach <= 0 or y + h + reach <= 0
        if outside or max(w, h) > 100 * max(width, height):
            raise InputError(f"box {x:g},{y:g},{w:g},{h:g} does not overlap the {width}x{height} image")
    return detections


_LOCAL = threading.local()  # OpenCV's cascades are not thread-safe: each thread has its own


def _cascade(name: str) -> Any:
    import cv2
    import cv2.data

    if not hasattr(cv2, "CascadeClassifier"):
        raise InputError(f"OpenCV {cv2.__version__} has no Haar cascade; install opencv-python-headless>=4.10,<5")
    loaded = _LOCAL.__dict__
    if name not in loaded:
        loaded[name] = cv2.CascadeClassifier(str(Path(cv2.data.haarcascades) / f"haarcascade_{name}.xml"))
    return loaded[name]


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

    longest = LONGEST

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Find upright, roughly frontal faces; see Detector.detect."""
        return self._run(image, CascadePass())

    def search(self, image: np.ndarray) -> Iterator[list[Detection]]:
        """Look for faces ever more thoroughly; see Detector.

        Yields:
            What `detect` finds, then what each further pass finds. The last is one box for the whole photograph.
        """
        for settings in (CascadePass(), *SEARCH):
            yield self._run(image, settings)
        yield WholeImage().detect(image)

    def _run(self, image: np.ndarray, settings: CascadePass) -> list[Detection]:
        """Return the upright boxes of one pass in pixels of the image, largest first."""
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
        return as_detections(boxes[np.argsort(-boxes[:, 2])] / scale)


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

    certain = True  # the predictor then drops no answer for its confidence

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Return one box in the middle of the image; see Detector.detect."""
        height, width = image.shape[:2]
        side = 0.8 * min(height, width)
        return [Detection(((width - side) / 2, (height - side) / 2, side, side))]


class YuNetDetector:
    """Detect faces with OpenCV's YuNet. Each thread has its own copy of the network, which is not thread-safe.

    Args:
        path: The model file, which is not part of this package: face_detection_yunet_*.onnx of OpenCV's model zoo.
        min_confidence: Smallest score of a face, from 0 to 1.

    Raises:
        InputError: If the file is missing or is not such a model.
    """

    longest = LONGEST

    def __init__(self, path: str, min_confidence: float = 0.6) -> None:
        check_regular(path)
        if not os.path.isfile(path):
            raise InputError(f"{path}: no such file; yunet:FILE needs OpenCV's face_detection_yunet ONNX file")
        # bytes in place of the name: OpenCV crashes on names that are not UTF-8
        self.__setstate__((path, read_file(path), min_confidence))
        self._net()

    def __getstate__(self) -> tuple[str, bytes, float]:
        return self.path, self._model, self.min_confidence

    def __setstate__(self, state: tuple[str, bytes, float]) -> None:
        self.path, self._model, self.min_confidence = state
        self._local = threading.local()

    def _net(self) -> Any:
        import cv2

        if not hasattr(self._local, "net"):
            model, none = np.frombuffer(self._model, np.uint8), np.zeros(0, np.uint8)
            try:
                self._local.net = cv2.FaceDetectorYN.create("onnx", model, none, (320, 320), self.min_confidence)
            except cv2.error as error:
                raise InputError(f"{self.path}: OpenCV cannot read it as a YuNet model ({error.err})") from None
        return self._local.net

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Find faces in any pose; see Detector.detect."""
        import cv2

        bgr = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1])
        bgr, scale = _shrink(bgr)
        net = self._net()
        net.setInputSize((bgr.shape[1], bgr.shape[0]))
        _, rows = net.detect(bgr)
        rows = np.zeros((0, 15)) if rows is None else rows.astype(np.float64)
        # its boxes are tight; crop rules expect the cascade's squares, which are a little wider
        side = rows[:, 2] * 1.15
        corner = rows[:, :2] + rows[:, 2:4] / 2 - side[:, None] / 2
        return [Detection((*(corner[i] / scale).tolist(), side[i] / scale, side[i] / scale)) for i in np.argsort(-side)]


def detector_by_name(name: str) -> Detector | None:
    """Return a detector by its name.

    Args:
        name: "auto" (the model's own), "faces" (the face finder), "haar", "none" (each image is one object),
            "yunet:FILE" or "finder:FILE" (an exported finder).

    Returns:
        The detector; None for "auto".

    Raises:
        InputError: For any other name.
    """
    from recombinator.predict.finder import FinderDetector, OnnxFinder, face_finder

    if name == "auto":
        return None
    if name.startswith("yunet:"):
        return YuNetDetector(name[6:])
    if name.startswith("finder:"):
        return FinderDetector(OnnxFinder(name[7:]))
    known: dict[str, Callable[[], Detector]] = {"faces": face_finder, "haar": HaarDetector, "none": WholeImage}
    if name not in known:
        raise unknown("detector", name, ("auto", "faces", "haar", "none", "yunet:FILE", "finder:FILE"))
    return known[name]()
