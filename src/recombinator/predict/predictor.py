"""The predictor: images and coordinates outside, tensors inside."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recombinator.data.crops import GRID, RULES
from recombinator.data.images import read_image, to_grey
from recombinator.errors import InputError
from recombinator.keypoints import KeypointSet
from recombinator.models import Denoiser
from recombinator.models.decode import decode
from recombinator.predict.detect import Detector, HaarDetector
from recombinator.transforms.affine import box_affine, warp
from recombinator.weights import Weights, load_weights

SAME_FACE = 0.5  # two results nearer than this share of the face's spread are one face


@dataclass(frozen=True)
class Face:
    """One face. points: (K, 2) x, y in image pixels, a pixel's centre at its integer + 0.5; confidence: (K,)
    probability that the network puts within 3 cells of its answer; box: x, y, side of the square it looked at."""

    points: np.ndarray
    confidence: np.ndarray
    box: np.ndarray
    keypoints: KeypointSet

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {
            "box": [round(float(v), 2) for v in self.box],
            "confidence": round(float(self.confidence.mean()), 4),
            "keypoints": [
                {"name": n, "x": round(float(x), 2), "y": round(float(y), 2), "confidence": round(float(c), 4)}
                for n, (x, y), c in zip(self.keypoints.names, self.points, self.confidence, strict=True)
            ],
        }


def as_image(image: np.ndarray | str | os.PathLike[str]) -> np.ndarray:
    """A path or an array -> (H, W) or (H, W, 3) uint8. Raises InputError saying what is wrong with the array."""
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    image = np.asarray(image)  # a PIL image too
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

    def __init__(self, weights: Weights, detector: Detector | None = None) -> None:
        if isinstance(weights.net, Denoiser):
            raise InputError("these weights are a denoiser's, which sees no image; give a network for images")
        self.weights, self.net, self.keypoints = weights, weights.net, weights.keypoints
        self.rule = RULES[weights.crop_rule]
        self.detector: Detector = detector or HaarDetector()
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(
        self, image: np.ndarray | str | os.PathLike[str], boxes: Iterable[Iterable[float]] | None = None,
        passes: int = 2, min_confidence: float | None = None,
    ) -> list[Face]:  # fmt: skip
        """Every face's keypoints, largest face first.

        image: a path, or (H, W), (H, W, 3) RGB uint8. boxes: faces as (x, y, width, height) in pixels, in place
        of the detector. passes: each pass after the first crops again from the last one's points by the training
        rule, so that the box's habits do not matter. min_confidence: a detected face whose keypoints' mean
        confidence is lower is taken for a false detection (by default
        the crop rule's figure). An image without a face gives an empty list.
        """
        pixels = as_image(image)
        if passes < 1:
            raise InputError(f"passes={passes} must be 1 or more")
        found = self.detector.detect(pixels) if boxes is None else checked_boxes(boxes, pixels)
        if found.size == 0:
            return []
        source = to_grey(pixels) if self.net.channels == 1 else np.atleast_3d(pixels)
        if self.net.channels == 3 and source.shape[2] == 1:
            source = np.repeat(source, 3, axis=2)
        points = self._from_boxes(found)
        for _ in range(passes):
            points, confidence, around = self._refine(source, points)
        faces = [Face(*one, self.keypoints) for one in zip(points, confidence, around, strict=True)]
        if boxes is not None:
            return faces
        least = self.rule.least if min_confidence is None else min_confidence
        return distinct([f for f in faces if float(f.confidence.mean()) >= least])

    def _from_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """(N, 4) detector boxes -> (N, K, 2) typical points in them."""
        scale, lower = self.rule.from_detector
        side = boxes[:, 2:].max(axis=1)
        centre = boxes[:, :2] + boxes[:, 2:] / 2 + np.stack([np.zeros_like(side), lower * side], axis=1)
        template = np.array(self.weights.template) - 0.5
        return centre[:, None] + scale * side[:, None, None] * template

    @torch.no_grad()
    def _refine(self, image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N, K, 2) rough points -> points, (N, K) confidences, (N, 3) boxes looked at, in image pixels."""
        crops, affines, boxes = [], [], []
        for p in points:
            crop, to_image, box = self.rule.crop(image, p, GRID)
            crops.append(torch.from_numpy(np.atleast_3d(crop).transpose(2, 0, 1).copy()))
            affines.append(to_image)
            boxes.append(box)
        looked_at = box_affine(torch.from_numpy(np.stack(boxes)), self.net.size)
        inputs = warp(torch.stack(crops), looked_at, self.net.size)
        found, _, confidence = decode(self.net(inputs))
        scale, corner = np.array([a[0, 0] for a in affines]), np.array([a[:, 2] for a in affines])
        square = np.stack(boxes).astype(np.float64)
        in_crop = found.double().numpy() * (square[:, 2] / self.net.size)[:, None, None] + square[:, None, :2]
        in_image = in_crop * scale[:, None, None] + corner[:, None]
        around = np.concatenate([square[:, :2] * scale[:, None] + corner, square[:, 2:] * scale[:, None]], axis=1)
        return in_image, confidence.numpy(), around


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


def load(name_or_path: str | os.PathLike[str], detector: Detector | None = None) -> Predictor:
    """Weights by name ("rcn-6-mtfl"), file or run folder -> a Predictor. Raises InputError if there are none."""
    return Predictor(load_weights(name_or_path), detector)
