"""The predictor: from images to keypoints in image coordinates. Tensors stay inside the engine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np

from recombinator.data.crops import RULES
from recombinator.data.images import MAX_PIXELS, Image
from recombinator.data.photograph import Photograph
from recombinator.keypoints import RADII, SURE
from recombinator.predict.crop import Crop, crop_face, rotated_covariance, rotation
from recombinator.predict.detect import Detection, Detector, WholeImage, as_detections, both, check_boxes
from recombinator.predict.engine import Engine, Predictions, load_engine
from recombinator.predict.finder import FinderDetector, face_finder
from recombinator.predict.five_points import SQUARES, FaceFramer
from recombinator.predict.result import Face, Faces
from recombinator.transforms.shapes import similarity
from recombinator.utils.errors import InputError

FACE_RULES = ("mtfl", "300w")
EASE = 6.0  # factor on the odds; of 3,000 faces that were found, none fell below the eased threshold in the first pass
PASSES = 2  # the second one crops around the points of the first, which pays (docs/results.md)
FRAMING = "rcn-6-mtfl-int8"  # whose five points give the square of a network with other points
TURNED = 10.0  # degrees: an object that is rotated by as much in its crop is cropped again at its own rotation
SAME_FACE = 0.5  # two results nearer than this share of the face's extent are one face


def _check_passes(passes: int) -> int:
    if passes < 1:
        raise InputError(f"passes={passes}: expected a number of 1 or more")
    return passes


class Predictor:
    """Predict the keypoints of faces in images. `recombinator.load` makes one.

    Coordinates are in pixels of the image, x to the right and y down; the center of the first pixel is at (0.5, 0.5).
    "left" and "right" in names of keypoints are the left and right of the image, not of the person.

    Args:
        engine: Runs the network on crops.
        detector: Finds objects; by default the model's own finder, or for faces the one that ships, with a FaceFramer
            if the network has 68 points.
        passes: Default number of passes of `predict`; None: the detector's, or else 2.
        max_pixels: Refuse larger image files before decoding. None: no limit.
    """

    def __init__(
        self,
        engine: Engine,
        detector: Detector | None = None,
        passes: int | None = None,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        self.max_pixels = max_pixels
        self.engine, self.about, self.keypoints = engine, engine.about, engine.about.keypoints
        self.rule = RULES[self.about.crop_rule]
        self.detector: Detector | None = detector
        if self.rule.whole:  # a network for whole images needs no detector
            self.detector = WholeImage()
        elif detector is None:
            own = getattr(engine, "finder", None)
            if own:
                self.detector = FinderDetector(own)
            elif self.rule.name in FACE_RULES:
                self.detector = self._face_detector(getattr(engine, "threads", 1))
        self._passes_of_boxes = _check_passes(PASSES if passes is None else passes)
        self.passes = getattr(self.detector, "passes", PASSES) if passes is None else passes
        self.min_confidence = float(self.about.calibration.get("least", self.rule.least))

    def _face_detector(self, threads: int) -> Detector:
        """Return the detector for a network of faces that has none of its own."""
        finder = face_finder(threads)
        if self.rule.name not in SQUARES:
            return finder
        five_points = Predictor(load_engine(FRAMING, threads=threads), finder)
        return FaceFramer(five_points, self.rule.name, np.array(self.about.template))

    @property
    def noun(self) -> str:
        """What messages call the model's object."""
        return "face" if self.rule.name in FACE_RULES else "object"

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
        self, image: Image | Photograph, boxes: Iterable[Any] | None = None, passes: int | None = None,
        min_confidence: float | None = None, search: bool = True,
    ) -> Faces: ...  # fmt: skip
    @overload
    def predict(
        self, image: list[Image] | tuple[Image, ...], boxes: None = None, passes: int | None = None,
        min_confidence: float | None = None, search: bool = True,
    ) -> list[Faces]: ...  # fmt: skip
    @overload
    def predict(
        self, image: Iterator[Image], boxes: None = None, passes: int | None = None,
        min_confidence: float | None = None, search: bool = True,
    ) -> Iterator[Faces]: ...  # fmt: skip
    def predict(
        self, image: Any, boxes: Iterable[Any] | None = None, passes: int | None = None,
        min_confidence: float | None = None, search: bool = True,
    ) -> Any:  # fmt: skip
        """Predict the keypoints of every face in an image.

        Args:
            image: A path, the bytes of an image file or a file object, a uint8 array (H, W) or (H, W, 3) RGB, a Pillow
                image, or a torch tensor (H, W), (H, W, 3) or (3, H, W), uint8 or float from 0 to 1. Also a list, tuple
                or iterator of these.
            boxes: Faces as (x, y, width, height) in pixels, or as `Detection` with a rotation, in place of the
                detector. One face is returned for each.
            passes: Number of passes; by default the predictor's. Each pass after the first crops again around the
                points of the last one, by the crop rule of the training, so that the result depends less on the box.
            min_confidence: Drop a detected face if it is less probable, by the mean confidence of its keypoints and the
                detector's score. By default the value of the calibration, or else of the crop rule. Given boxes are
                not filtered.
            search: If no face is found, let the detector search again, for smaller and less certain faces.

        Returns:
            Faces, a list with the largest face first, empty if there is no face. For a list of images, a list of such
            lists; for an iterator, an iterator that reads one image at a time.

        Raises:
            InputError: If the image, the boxes or an option cannot be used.
        """
        if passes is None:
            passes = self.passes if boxes is None else self._passes_of_boxes
        _check_passes(passes)
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise InputError(f"min_confidence={min_confidence}: expected a number from 0 to 1")
        if isinstance(image, list | tuple | Iterator) and not hasattr(image, "read"):  # a file yields its lines
            if boxes is not None:
                raise InputError("boxes belong to one image; give the images one by one")
            keep = not isinstance(image, Iterator)  # results of an iterator must not keep all its arrays in memory
            results = (self._predict_one(one, None, passes, min_confidence, search, keep) for one in image)
            return list(results) if keep else results
        return self._predict_one(image, boxes, passes, min_confidence, search, True)

    def _predict_one(
        self, image: Image | Photograph, boxes: Iterable[Any] | None, passes: int, min_confidence: float | None,
        search: bool, keep: bool,
    ) -> Faces:  # fmt: skip
        photograph = self.open(image)
        shown: Image | None = None
        if isinstance(image, str | os.PathLike):
            shown = image
        elif keep and not isinstance(image, Photograph):  # the results of an iterator must not keep its arrays
            shown = photograph.pixels if hasattr(image, "read") else image  # a file object can be read only once
        if boxes is not None:
            if self.rule.whole:
                raise InputError("this model finds its object in the whole image; leave the boxes out")
            given = self._predict_boxes(photograph, check_boxes(boxes, photograph), passes, self.rule.from_detector)
            for number, face in enumerate(given, 1):
                if face is None:
                    raise InputError(f"box {number}: the points found in it leave no crop; is there a face?")
            return Faces([face for face in given if face], shown)
        if self.detector is None:
            raise InputError("this model has no finder; give boxes, or a detector")
        certain = bool(getattr(self.detector, "certain", False))
        if min_confidence is None:
            min_confidence = 0.0 if certain else self.min_confidence
        relation = getattr(self.detector, "relation", {}).get(self.rule.name, self.rule.from_detector)
        pixels, thorough = photograph.pixels, getattr(self.detector, "search", None) if search else None
        for found in thorough(pixels) if thorough else [self.detector.detect(pixels)]:
            detections = [d.scaled(photograph.factor) for d in as_detections(found)]
            predicted = self._predict_boxes(photograph, detections, passes, relation, certain, min_confidence)
            faces = [face for face in predicted if face]
            if faces:
                return Faces(distinct(faces), shown)
        return Faces([], shown)

    def open(self, image: Image | Photograph, name: str = "the image") -> Photograph:
        """Decode an image as far as this predictor needs it; see data.photograph.

        Args:
            image: Anything that `predict` accepts for one image.
            name: What error messages call an image without a file name.
        """
        if isinstance(image, Photograph):
            return image
        return Photograph(image, getattr(self.detector, "longest", None), self.max_pixels, name)

    def _predict_boxes(
        self, photograph: Photograph, detections: list[Detection], passes: int, relation: tuple[float, float],
        certain: bool = False, min_confidence: float = 0.0,
    ) -> list[Face | None]:  # fmt: skip
        """Return one face for each detection, None where the points leave no crop or the face is too doubtful.

        The mean confidence of the points and the detector's score are two pieces of evidence: their log-odds are added
        before they are compared with `min_confidence`. If the detections are `certain`, the points of the last pass
        that had a crop are kept.
        """
        if not detections:
            return []
        angles, scores = [d.angle for d in detections], [d.score for d in detections]
        faces, moved = self._refine(photograph, self._points_from_boxes(detections, relation), angles)
        if self.rule.whole:  # a second pass would see the same
            passes = 1
        for _ in range(passes - 1):
            faces = _probable(faces, scores, eased(min_confidence))
            alive = [i for i, face in enumerate(faces) if face]
            points = np.array([face.points for face in faces if face])
            again, moved_again = self._refine(photograph, points, [angles[i] for i in alive])
            for i, face, was_moved in zip(alive, again, moved_again, strict=True):
                if face or not certain:
                    faces[i], moved[i] = face, was_moved
        faces = _probable(faces, scores, min_confidence)
        return self._doubt(photograph, self._at_own_angles(photograph, faces, moved) if passes > 1 else faces, moved)

    def follow(
        self, image: Image, points: Iterable[np.ndarray], angles: Sequence[float] | None = None
    ) -> list[Face | None]:
        """Predict faces whose keypoints are roughly known, for example from the last frame of a video.

        This takes one pass and no detector.

        Args:
            image: Anything that `predict` accepts for one image.
            points: One (K, 2) array for each face, x and y in image pixels.
            angles: Rotation of each face in degrees, clockwise on the screen; by default 0.

        Returns:
            One face for each array, in the same order; None where the points leave no crop.
        """
        rough, photograph = np.array(list(points), np.float64), Photograph(image, max_pixels=self.max_pixels)
        return self._doubt(photograph, *self._refine(photograph, rough, angles or [0.0] * len(rough)))

    def _points_from_boxes(self, detections: list[Detection], relation: tuple[float, float]) -> np.ndarray:
        """Return (N, K, 2) typical points for N detections."""
        scale, lower = relation
        boxes = np.array([d.box for d in detections])
        side = boxes[:, 2:].max(axis=1)[:, None, None]
        upright = side * (scale * (np.array(self.about.template) - 0.5) + [0, lower])
        turned = upright @ np.stack([rotation(d.angle).T for d in detections])
        return turned + (boxes[:, :2] + boxes[:, 2:] / 2)[:, None]

    def _refine(
        self, photograph: Photograph, points: np.ndarray, angles: Sequence[float], free: bool = False
    ) -> tuple[list[Face | None], list[bool]]:
        """Crop around (N, K, 2) rough points in image pixels and predict all crops in one batch.

        Returns one face for each, in the same order, None where the points leave no crop, as those of a false
        detection can; and whether the crop rule moved its square into the image.
        """
        size, channels = self.about.size, self.about.channels
        crops = [
            crop_face(photograph, p, self.rule, size, channels, angle, free)
            for p, angle in zip(points, angles, strict=True)
        ]
        moved = [bool(crop and crop.moved) for crop in crops]
        used = [crop for crop in crops if crop]
        if not used:
            return [None] * len(crops), moved
        predictions = self.engine.run(np.stack([crop.pixels for crop in used]))
        row = iter(range(len(used)))
        limits = np.array([photograph.width, photograph.height])
        faces = [
            self._face(crop, predictions, next(row), angle, limits) if crop else None
            for crop, angle in zip(crops, angles, strict=True)
        ]
        return faces, moved

    def _at_own_angles(self, photograph: Photograph, faces: list[Face | None], moved: list[bool]) -> list[Face | None]:
        """Predict those faces again whose points are TURNED in their crops.

        Points whose square the crop rule has `moved` into the image say little about the rotation.
        """
        kept = [(i, face) for i, face in enumerate(faces) if face and not moved[i]]
        if not kept:
            return faces
        points, angles = np.array([face.points for _, face in kept]), np.array([face.angle for _, face in kept])
        linear, _ = similarity(np.array(self.about.template), points, np.ones(points.shape[:2]))
        off = (np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0])) - angles + 180) % 360 - 180
        turned = np.abs(off) > TURNED
        again, _ = self._refine(photograph, points[turned], (angles + off)[turned].tolist())
        better = dict(zip(np.array([i for i, _ in kept])[turned].tolist(), again, strict=True))
        return [better.get(i) or face for i, face in enumerate(faces)]

    def _doubt(self, photograph: Photograph, faces: list[Face | None], moved: list[bool]) -> list[Face | None]:
        """Set the confidence and `within` to 0 where the border of the image has decided the answer.

        That is where a point is outside the image; and where the crop rule `moved` the square into the image, and the
        point changes by more than the confidence's own distance once the square is where the points ask for it.
        """
        checked = [face and _trusted(face, np.asarray(face.inside)) for face in faces]
        rows = [(i, face) for i, face in enumerate(checked) if face and moved[i]]
        again, _ = self._refine(
            photograph, np.array([face.points for _, face in rows]), [face.angle for _, face in rows], free=True
        )
        for (i, face), other in zip(rows, again, strict=True):
            if other:
                distance = np.linalg.norm(other.points - face.points, axis=1) * self.about.size / face.box[2]
                checked[i] = _trusted(face, distance <= RADII[SURE] + 0.5)
        return checked

    def _face(self, crop: Crop, predictions: Predictions, i: int, angle: float, limits: np.ndarray) -> Face:
        """Return one face in image pixels; `limits` are the image's width and height."""
        points = crop.apply(predictions.points[i])
        within, side = predictions.within[i], crop.pixel * self.about.size
        center = crop.apply(np.full((1, 2), self.about.size / 2))[0]
        calibrated: dict[str, Any] = {}
        below = self.about.calibration.get("covered_below")
        if below is not None:
            calibrated = {
                "within": within, "reach": (np.array(RADII) + 0.5) * crop.pixel,
                "covariance": rotated_covariance(predictions.covariance[i] * crop.pixel**2, angle),
                "occluded": within[:, SURE] < np.array(below),
            }  # fmt: skip
        return Face(
            points, within[:, SURE], np.array([*(center - side / 2), side]), self.keypoints,
            inside=np.all((points >= 0) & (points <= limits), axis=1), angle=angle, **calibrated,
        )  # fmt: skip


def _probable(faces: list[Face | None], scores: Sequence[float], least: float) -> list[Face | None]:
    """Set the detector's score of each face; return None in place of one that is less probable than `least`."""
    return [
        replace(f, score=s) if f and both(float(f.confidence.mean()), s) >= least else None
        for f, s in zip(faces, scores, strict=True)
    ]


def eased(least: float) -> float:
    """Return the probability that a face must have after a pass that is not the last."""
    return both(least, 1 / (1 + EASE))


def _trusted(face: Face, sure: np.ndarray) -> Face:
    """Return the face with probabilities of 0 for the points that are not `sure`, (K,) bools."""
    within = None if face.within is None else np.where(sure[:, None], face.within, 0.0)
    return replace(face, confidence=np.where(sure, face.confidence, 0.0), within=within)


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
    passes: int | None = None,
    max_pixels: int | None = MAX_PIXELS,
) -> Predictor:
    """Load a model for prediction.

    Args:
        name_or_path: A shipped name ("rcn-6-mtfl"; `shipped_models()` lists them), an exported .onnx file, a weights
            file or a run's folder.
        detector: Finds objects; by default as in `Predictor`.
        engine: "onnx" or "torch". By default ONNX Runtime, which needs no torch, if there is a graph and `device` is
            "cpu"; torch otherwise.
        threads: Number of CPU threads of the engine; 0 leaves the choice to it.
        device: "cpu", or for the torch engine "cuda" or "cuda:N".
        passes: Default number of passes of `Predictor.predict`; None: the detector's, or else 2.
        max_pixels: Refuse larger image files before decoding. None: no limit.

    Returns:
        A Predictor.

    Raises:
        InputError: If there is no such model, or not for this engine or device.
    """
    return Predictor(load_engine(name_or_path, engine, threads, device), detector, passes, max_pixels)
