"""The predictor: images and coordinates outside, tensors inside."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, overload

import numpy as np

from recombinator.data.crops import GRID, RULES
from recombinator.data.images import read_image, to_gray
from recombinator.data.resample import square
from recombinator.keypoints import RADII, SURE
from recombinator.predict.detect import Detector, HaarDetector
from recombinator.predict.engine import Engine, load_engine
from recombinator.predict.result import Face
from recombinator.utils.errors import InputError

Image = np.ndarray | str | os.PathLike[str]
SAME_FACE = 0.5  # two results nearer than this share of the face's spread are one face


def as_image(image: Image) -> np.ndarray:
    """A path or an array -> (H, W) or (H, W, 3) uint8. Raises InputError saying what is wrong with the array."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if getattr(image, "mode", "L") not in ("L", "RGB", "RGBA", "I;16"):  # a PIL image of another kind
        image = image.convert("RGB")  # type: ignore[attr-defined]
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 3 and image.shape[2] == 4:
        image = image[..., :3]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or 0 in image.shape:
        raise InputError(f"an image must be (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, got shape {image.shape}")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise InputError(f"an image must be uint8 (or uint16) with values from 0, got {image.dtype}")
    return np.ascontiguousarray(image)


class Predictor:
    """A network with the crop rule it was trained on. `recombinator.load` makes one."""

    def __init__(self, engine: Engine, detector: Detector | None = None) -> None:
        self.engine, self.about, self.keypoints = engine, engine.about, engine.about.keypoints
        self.rule = RULES[self.about.crop_rule]
        self.detector: Detector = detector or HaarDetector()
        self.min_confidence = float(self.about.calibration.get("least", self.rule.least))

    @overload
    def predict(
        self, image: Image, boxes: Iterable[Iterable[float]] | None = None, passes: int = 2,
        min_confidence: float | None = None, search: bool = True,
    ) -> list[Face]: ...  # fmt: skip
    @overload
    def predict(
        self, image: list[Image] | tuple[Image, ...], boxes: None = None, passes: int = 2,
        min_confidence: float | None = None, search: bool = True,
    ) -> list[list[Face]]: ...  # fmt: skip
    @overload
    def predict(
        self, image: Iterator[Image], boxes: None = None, passes: int = 2, min_confidence: float | None = None,
        search: bool = True,
    ) -> Iterator[list[Face]]: ...  # fmt: skip
    def predict(
        self, image: Any, boxes: Iterable[Iterable[float]] | None = None, passes: int = 2,
        min_confidence: float | None = None, search: bool = True,
    ) -> Any:  # fmt: skip
        """Every face's keypoints, largest face first; for a list of images a list of such lists, for an iterator an
        iterator that holds one image at a time.

        image: a path, or (H, W), (H, W, 3) RGB uint8. boxes: faces as (x, y, width, height) in pixels, in place
        of the detector. passes: each pass after the first crops again from the last one's points by the training
        rule, so that the box's habits do not matter. min_confidence: a detected face whose keypoints' mean
        confidence is lower is taken for a false detection (by default
        what the calibration found, else the crop rule's figure). search: where no face is found at
        once, look for turned and tilted ones, eight times as long. An image without a face gives an empty list.
        """
        if passes < 1:
            raise InputError(f"passes={passes} must be 1 or more")
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise InputError(f"min_confidence={min_confidence} must lie between 0 and 1")
        if isinstance(image, list | tuple | Iterator):
            if boxes is not None:
                raise InputError("boxes belong to one image; give the images one by one")
            answers = (self.predict(one, None, passes, min_confidence, search) for one in image)
            return answers if isinstance(image, Iterator) else list(answers)
        pixels = as_image(image)
        source = self._as_network_wants(pixels)
        if boxes is not None:
            given = self._found(source, checked_boxes(boxes, pixels), passes)
            if None in given:
                raise InputError(f"box {given.index(None) + 1}: the points found in it leave no crop; is there a face?")
            return given
        min_confidence = self.min_confidence if min_confidence is None else min_confidence
        further = getattr(self.detector, "search", None) if search else None
        for found in chain([self.detector.detect(pixels)], further(pixels) if further else []):
            faces = [
                f for f in self._found(source, found, passes) if f and float(f.confidence.mean()) >= min_confidence
            ]
            if faces:
                return distinct(faces)
        return []

    def _found(self, source: np.ndarray, boxes: np.ndarray, passes: int) -> list[Face | None]:
        """One face for each of the (N, 4) boxes, None where its points leave no crop."""
        boxes = np.asarray(boxes, float).reshape(-1, 4)  # a detector of the user's may give lists
        if boxes.size == 0:
            return []
        faces = self._refine(source, self._from_boxes(boxes))
        for _ in range(passes - 1):
            alive = [i for i, f in enumerate(faces) if f]
            again = self._refine(source, np.array([f.points for f in faces if f]))
            for i, face in zip(alive, again, strict=True):
                faces[i] = face
        return faces

    def follow(self, image: np.ndarray, points: Iterable[np.ndarray]) -> list[Face | None]:
        """Faces whose (K, 2) points are roughly known, from the last frame of a video say: one pass, no detector. None
        for points that leave no crop."""
        rough, pixels = np.array(list(points), np.float64), as_image(image)
        if not rough.size:
            return []
        return self._refine(self._as_network_wants(pixels), rough)

    def _as_network_wants(self, pixels: np.ndarray) -> np.ndarray:
        """Gray, or RGB also where the photograph is gray."""
        if self.about.channels == 1:
            return to_gray(pixels)
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels

    def _from_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(N, 4) detector boxes -> (N, K, 2) typical points in them."""
        scale, lower = self.rule.from_detector
        side = boxes[:, 2:].max(axis=1)
        center = boxes[:, :2] + boxes[:, 2:] / 2 + np.stack([np.zeros_like(side), lower * side], axis=1)
        template = np.array(self.about.template) - 0.5
        return center[:, None] + scale * side[:, None, None] * template

    def _refine(self, image: np.ndarray, points: np.ndarray) -> list[Face | None]:
        """(N, K, 2) rough points in image pixels -> the faces found around them, in the same order; None for points
        that leave no crop, as those of a false detection can."""
        inputs, affines, boxes = [], [], []
        faces: list[Face | None] = [None] * len(points)
        kept = []
        for i, p in enumerate(points):
            try:
                crop, to_image, box = self.rule.crop(image, p, GRID)
            except InputError:
                continue
            kept.append(i)
            inputs.append(np.round(square(crop, box, self.about.size)).clip(0, 255).astype(np.uint8))
            affines.append(to_image)
            boxes.append(box)
        if not kept:
            return faces
        found = self.engine.run(np.stack(inputs))
        scale, corner = np.array([a[0, 0] for a in affines]), np.array([a[:, 2] for a in affines])
        looked_at = np.stack(boxes).astype(np.float64)
        in_crop = found.points * (looked_at[:, 2] / self.about.size)[:, None, None] + looked_at[:, None, :2]
        in_image = in_crop * scale[:, None, None] + corner[:, None]
        around = np.concatenate([looked_at[:, :2] * scale[:, None] + corner, looked_at[:, 2:] * scale[:, None]], axis=1)
        pixel = around[:, 2] / self.about.size  # side of one of the network's pixels in the image
        below = self.about.calibration.get("covered_below")
        for i, within in enumerate(found.within):
            sure: dict[str, Any] = {}
            if below is not None:
                sure = {
                    "within": within, "reach": (np.array(RADII) + 0.5) * pixel[i],
                    "covariance": found.covariance[i] * pixel[i] ** 2, "covered": within[:, SURE] < np.array(below),
                }  # fmt: skip
            faces[kept[i]] = Face(in_image[i], within[:, SURE], around[i], self.keypoints, **sure)
        return faces


def checked_boxes(boxes: Iterable[Iterable[float]], image: np.ndarray) -> np.ndarray:
    """(N, 4) floats. Raises InputError for anything but boxes x, y, width, height that meet the image."""
    try:
        found = np.array([[float(v) for v in box] for box in boxes], np.float64)
    except (TypeError, ValueError):
        raise InputError("boxes must be a list of (x, y, width, height)") from None
    if found.size == 0:
        return found
    height, width = image.shape[:2]
    if found.ndim != 2 or found.shape[1] != 4 or not np.isfinite(found).all() or (found[:, 2:] <= 0).any():
        raise InputError("boxes must be (x, y, width, height) each, finite, with positive width and height")
    for x, y, w, h in found:
        if x >= width or y >= height or x + w <= 0 or y + h <= 0 or max(w, h) > 100 * max(width, height):
            raise InputError(f"box {x:g},{y:g},{w:g},{h:g} does not lie on the {width}x{height} image")
    return found


def distinct(faces: list[Face]) -> list[Face]:
    """Drops a face that lies on a more confident one."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -float(f.confidence.mean())):
        spread = np.linalg.norm(np.ptp(face.points, axis=0))
        if all(np.linalg.norm(face.points - k.points, axis=1).mean() > SAME_FACE * spread for k in kept):
            kept.append(face)
    return sorted(kept, key=lambda f: -f.box[2])


def load(
    name_or_path: str | os.PathLike[str],
    detector: Detector | None = None,
    *,
    engine: str | None = None,
    threads: int = 0,
) -> Predictor:
    """A shipped name ("rcn-6-mtfl"), an exported .onnx file, weights or a run folder -> a Predictor.

    engine: "onnx" or "torch"; by default ONNX Runtime where there is a graph, which needs no torch. threads: of the
    engine, 0 for its own choice. Raises InputError if there is nothing of that name or form.
    """
    return Predictor(load_engine(name_or_path, engine, threads), detector)
