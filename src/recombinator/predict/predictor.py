"""The predictor: from images to keypoints in image coordinates. Tensors stay inside the engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, overload

import numpy as np

from recombinator.data.crops import RULES
from recombinator.data.images import Image, as_image, to_gray
from recombinator.data.resample import square
from recombinator.keypoints import RADII, SURE
from recombinator.predict.detect import Detector, HaarDetector, WholeImage
from recombinator.predict.engine import Engine, load_engine
from recombinator.predict.result import Face, Faces
from recombinator.utils.errors import InputError

SAME_FACE = 0.5  # two results nearer than this share of the face's extent are one face


class Predictor:
    """Predict the keypoints of faces in images. `recombinator.load` makes one.

    Coordinates are in pixels of the image, x to the right and y down; the center of the first pixel is at (0.5, 0.5).
    "left" and "right" in names of keypoints are the left and right of the image, not of the person.

    Args:
        engine: Runs the network on crops.
        detector: Finds face boxes; OpenCV's Haar cascades by default.
    """

    def __init__(self, engine: Engine, detector: Detector | None = None) -> None:
        self.engine, self.about, self.keypoints = engine, engine.about, engine.about.keypoints
        self.rule = RULES[self.about.crop_rule]
        # a network for whole images needs no detector
        self.detector: Detector = WholeImage() if self.rule.whole else detector or HaarDetector()
        self.stored = self.rule.stored_size(self.about.size)
        self.min_confidence = float(self.about.calibration.get("least", self.rule.least))

    def __repr__(self) -> str:
        model, size = self.about.model.get("name", "unknown"), self.about.size
        engine = getattr(self.engine, "name", type(self.engine).__name__)
        color = "gray" if self.about.channels == 1 else "RGB"
        return (
            f"Predictor(model={model!r}, keypoints={len(self.keypoints)} ({self.keypoints.name}), engine={engine!r}, "
            f"device={getattr(self.engine, 'device', 'cpu')!r}, input={size}x{size} {color})"
        )

    @overload
    def predict(
        self, image: Image, boxes: Iterable[Iterable[float]] | None = None, passes: int = 2,
        min_confidence: float | None = None, search: bool = True,
    ) -> Faces: ...  # fmt: skip
    @overload
    def predict(
        self, image: list[Image] | tuple[Image, ...], boxes: None = None, passes: int = 2,
        min_confidence: float | None = None, search: bool = True,
    ) -> list[Faces]: ...  # fmt: skip
    @overload
    def predict(
        self, image: Iterator[Image], boxes: None = None, passes: int = 2, min_confidence: float | None = None,
        search: bool = True,
    ) -> Iterator[Faces]: ...  # fmt: skip
    def predict(
        self, image: Any, boxes: Iterable[Iterable[float]] | None = None, passes: int = 2,
        min_confidence: float | None = None, search: bool = True,
    ) -> Any:  # fmt: skip
        """Predict the keypoints of every face in an image.

        Args:
            image: A path, a uint8 array (H, W) or (H, W, 3) RGB, a Pillow image, or a torch tensor (H, W), (H, W, 3)
                or (3, H, W), uint8 or float from 0 to 1. Also a list, tuple or iterator of these.
            boxes: Faces as (x, y, width, height) in pixels, in place of the detector. One face is returned for each.
            passes: Number of passes. Each pass after the first crops again around the points of the last one, by the
                crop rule of the training, so that the result depends less on the box.
            min_confidence: Drop a detected face if the mean confidence of its keypoints is lower. By default the
                value of the calibration, or else of the crop rule. Given boxes are not filtered.
            search: If no upright face is found, also search for turned and tilted faces, which takes about eight times
                as long.

        Returns:
            Faces, a list with the largest face first, empty if there is no face. For a list of images, a list of such
            lists; for an iterator, an iterator that reads one image at a time.

        Raises:
            InputError: If the image, the boxes or an option cannot be used.
        """
        if passes < 1:
            raise InputError(f"passes={passes} must be 1 or more")
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise InputError(f"min_confidence={min_confidence} must lie between 0 and 1")
        if isinstance(image, list | tuple | Iterator):
            if boxes is not None:
                raise InputError("boxes belong to one image; give the images one by one")
            keep = not isinstance(image, Iterator)  # results of an iterator must not keep all its arrays in memory
            results = (self._predict_one(one, None, passes, min_confidence, search, keep) for one in image)
            return list(results) if keep else results
        return self._predict_one(image, boxes, passes, min_confidence, search, True)

    def _predict_one(
        self, image: Image, boxes: Iterable[Iterable[float]] | None, passes: int, min_confidence: float | None,
        search: bool, keep: bool,
    ) -> Faces:  # fmt: skip
        pixels = as_image(image)
        shown = image if keep or isinstance(image, str | os.PathLike) else None
        source = self._network_channels(pixels)
        if boxes is not None:
            if self.rule.whole:
                raise InputError("this model finds its object in the whole image; leave the boxes out")
            given = self._predict_boxes(source, check_boxes(boxes, pixels), passes)
            for number, face in enumerate(given, 1):
                if face is None:
                    raise InputError(f"box {number}: the points found in it leave no crop; is there a face?")
            return Faces([face for face in given if face], shown)
        min_confidence = self.min_confidence if min_confidence is None else min_confidence
        further = getattr(self.detector, "search", None) if search else None
        for detected in chain([self.detector.detect(pixels)], further(pixels) if further else []):
            faces = [
                face for face in self._predict_boxes(source, detected, passes)
                if face and float(face.confidence.mean()) >= min_confidence
            ]  # fmt: skip
            if faces:
                return Faces(distinct(faces), shown)
        return Faces([], shown)

    def _predict_boxes(self, source: np.ndarray, boxes: np.ndarray, passes: int) -> list[Face | None]:
        """Return one face for each of the (N, 4) boxes, None where the points leave no crop."""
        boxes = np.asarray(boxes, float).reshape(-1, 4)  # a detector of the user's may give lists
        if boxes.size == 0:
            return []
        faces = self._refine(source, self._points_from_boxes(boxes))
        if self.rule.whole:  # a second pass would see the same
            passes = 1
        for _ in range(passes - 1):
            alive = [i for i, face in enumerate(faces) if face]
            again = self._refine(source, np.array([face.points for face in faces if face]))
            for i, face in zip(alive, again, strict=True):
                faces[i] = face
        return faces

    def follow(self, image: Image, points: Iterable[np.ndarray]) -> list[Face | None]:
        """Predict faces whose keypoints are roughly known, for example from the last frame of a video.

        This takes one pass and no detector.

        Args:
            image: Anything that `predict` accepts for one image.
            points: One (K, 2) array for each face, x and y in image pixels.

        Returns:
            One face for each array, in the same order; None where the points leave no crop.
        """
        rough, pixels = np.array(list(points), np.float64), as_image(image)
        if not rough.size:
            return []
        return self._refine(self._network_channels(pixels), rough)

    def _network_channels(self, pixels: np.ndarray) -> np.ndarray:
        """Return the image as gray or as RGB, whichever the network takes."""
        if self.about.channels == 1:
            return to_gray(pixels)
        return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels

    def _points_from_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Return (N, K, 2) typical points for (N, 4) boxes of a detector."""
        scale, lower = self.rule.from_detector
        side = boxes[:, 2:].max(axis=1)
        center = boxes[:, :2] + boxes[:, 2:] / 2 + np.stack([np.zeros_like(side), lower * side], axis=1)
        template = np.array(self.about.template) - 0.5
        return center[:, None] + scale * side[:, None, None] * template

    def _refine(self, image: np.ndarray, points: np.ndarray) -> list[Face | None]:
        """Crop around (N, K, 2) rough points in image pixels and predict.

        Returns one face for each, in the same order; None where the points leave no crop, as those of a false
        detection can.
        """
        inputs, affines, boxes = [], [], []
        faces: list[Face | None] = [None] * len(points)
        kept = []
        for i, p in enumerate(points):
            try:
                crop, to_image, box = self.rule.crop(image, p, self.stored)
            except InputError:
                continue
            kept.append(i)
            inputs.append(np.round(square(crop, box, self.about.size)).clip(0, 255).astype(np.uint8))
            affines.append(to_image)
            boxes.append(box)
        if not kept:
            return faces
        predictions = self.engine.run(np.stack(inputs))
        # from the network's input to the stage-1 crop, then by the crop's affine to the image
        scale, corner = np.array([a[0, 0] for a in affines]), np.array([a[:, 2] for a in affines])
        inner = np.stack(boxes).astype(np.float64)
        in_crop = predictions.points * (inner[:, 2] / self.about.size)[:, None, None] + inner[:, None, :2]
        in_image = in_crop * scale[:, None, None] + corner[:, None]
        squares = np.concatenate([inner[:, :2] * scale[:, None] + corner, inner[:, 2:] * scale[:, None]], axis=1)
        pixel = squares[:, 2] / self.about.size  # side of one of the network's pixels in the image
        below = self.about.calibration.get("covered_below")
        for i, within in enumerate(predictions.within):
            calibrated: dict[str, Any] = {}
            if below is not None:
                calibrated = {
                    "within": within, "reach": (np.array(RADII) + 0.5) * pixel[i],
                    "covariance": predictions.covariance[i] * pixel[i] ** 2,
                    "covered": within[:, SURE] < np.array(below),
                }  # fmt: skip
            faces[kept[i]] = Face(in_image[i], within[:, SURE], squares[i], self.keypoints, **calibrated)
        return faces


def check_boxes(boxes: Iterable[Iterable[float]], image: np.ndarray) -> np.ndarray:
    """Return face boxes as an array.

    Args:
        boxes: N boxes x, y, width, height in pixels.
        image: (H, W[, 3]) image that they belong to.

    Returns:
        (N, 4) floats.

    Raises:
        InputError: If they are not such boxes, or one of them does not overlap the image.
    """
    try:
        array = np.array([[float(v) for v in box] for box in boxes], np.float64)
    except (TypeError, ValueError):
        raise InputError("boxes must be a list of (x, y, width, height)") from None
    if array.size == 0:
        return array
    height, width = image.shape[:2]
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all() or (array[:, 2:] <= 0).any():
        raise InputError("boxes must be (x, y, width, height) each, finite, with positive width and height")
    for x, y, w, h in array:
        if x >= width or y >= height or x + w <= 0 or y + h <= 0 or max(w, h) > 100 * max(width, height):
            raise InputError(f"box {x:g},{y:g},{w:g},{h:g} does not overlap the {width}x{height} image")
    return array


def distinct(faces: list[Face]) -> list[Face]:
    """Drop each face that coincides with a more confident one, and sort the rest by size, largest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -float(f.confidence.mean())):
        extent = np.linalg.norm(np.ptp(face.points, axis=0))
        if all(np.linalg.norm(face.points - k.points, axis=1).mean() > SAME_FACE * extent for k in kept):
            kept.append(face)
    return sorted(kept, key=lambda f: -f.box[2])


def load(
    name_or_path: str | os.PathLike[str],
    detector: Detector | None = None,
    *,
    engine: str | None = None,
    threads: int = 0,
    device: str = "cpu",
) -> Predictor:
    """Load a model for prediction.

    Args:
        name_or_path: A shipped name ("rcn-6-mtfl"; `shipped_models()` lists them), an exported .onnx file, a weights
            file or a run's folder.
        detector: Finds face boxes; OpenCV's Haar cascades by default.
        engine: "onnx" or "torch". By default ONNX Runtime, which needs no torch, if there is a graph and `device` is
            "cpu"; torch otherwise.
        threads: Number of CPU threads of the engine; 0 leaves the choice to it.
        device: "cpu", or for the torch engine "cuda" or "cuda:N".

    Returns:
        A Predictor.

    Raises:
        InputError: If there is no such model, or not for this engine or device.
    """
    return Predictor(load_engine(name_or_path, engine, threads, device), detector)
