"""Faces through a video: the last frame's points give the next crop, so that the detector rarely runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.predict.predictor import Predictor
from recombinator.predict.result import Face
from recombinator.utils.errors import InputError

LOST_AFTER = 3  # frames without a confident answer
REMEMBERED = 2.0  # seconds for which a lost face keeps its number


class OneEuro:
    """The One-Euro filter (Casiez, Roussel, Vogel; CHI 2012): a low pass whose cut-off grows with speed, so that rest
    is steady and motion does not lag. Speed is in face sides a second, so that a face's size does not matter; a point
    of low confidence is held more firmly.

    slow: cut-off at rest in Hz; gain: Hz for each face side a second; derivative: cut-off of the speed itself.
    """

    def __init__(self, slow: float = 1.0, gain: float = 12.0, derivative: float = 1.0) -> None:
        self.slow, self.gain, self.derivative = slow, gain, derivative
        self.value: np.ndarray | None = None
        self.speed: np.ndarray | None = None

    def __call__(self, points: np.ndarray, side: float, seconds: float, confidence: np.ndarray) -> np.ndarray:
        """(K, 2) new points, the face's side in the same unit, seconds since the last ones, (K,) confidences."""
        if self.value is None or self.speed is None or seconds <= 0:
            self.value, self.speed = points, np.zeros_like(points)
            return points
        speed = (points - self.value) / (seconds * side)
        share = _share(self.derivative, seconds)
        self.speed = share * speed + (1 - share) * self.speed
        cutoff = self.slow + self.gain * np.linalg.norm(self.speed, axis=1, keepdims=True)
        share = _share(cutoff, seconds) * np.clip(confidence, 0.2, 1.0)[:, None]
        self.value = share * points + (1 - share) * self.value
        return self.value


def _share(cutoff: Any, seconds: float) -> Any:
    """What a new value counts in a first-order low pass of that cut-off in Hz."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * seconds))


@dataclass
class Track:
    """One face over time: `face` with the smoothed points, `raw` as the network found it."""

    number: int
    face: Face
    raw: Face
    smooth: OneEuro | None
    missed: int = 0
    seen: float = 0.0  # seconds


@dataclass
class Tracker:
    """Feed it frames in order; it gives the faces with lasting numbers.

    detect_every: frames between looks for new faces while some are followed (with none, every frame is looked at).
    smooth: the One-Euro filter on or off.
    """

    predictor: Predictor
    detect_every: int = 15
    smooth: bool = True
    tracks: list[Track] = field(default_factory=list)
    lost: list[Track] = field(default_factory=list)
    detections: int = 0
    _frames: int = 0
    _numbers: int = 0

    def update(self, image: np.ndarray, seconds: float) -> list[Track]:
        """(H, W[, 3]) RGB uint8 frame at `seconds` -> the faces in it, each with its number."""
        min_confidence = self.predictor.min_confidence
        followed = self.predictor.follow(image, [t.raw.points for t in self.tracks])
        kept: list[Track] = []
        for track, face in zip(self.tracks, followed, strict=True):
            elsewhere = face is not None and any(_same(face, other.raw) for other in kept)  # two tracks, one face
            if face is not None and float(face.confidence.mean()) >= min_confidence and not elsewhere:
                self._take(track, face, seconds)
                kept.append(track)
            else:
                track.missed += 1
                (kept if track.missed < LOST_AFTER and not elsewhere else self.lost).append(track)
        self.tracks = kept
        if not self.tracks or self._frames % self.detect_every == 0:
            self._look(image, seconds)
        self._frames += 1
        self.lost = [t for t in self.lost if seconds - t.seen <= REMEMBERED]
        return [replace(t) for t in self.tracks if not t.missed]  # as they are now

    def _take(self, track: Track, face: Face, seconds: float) -> None:
        since = seconds - track.seen
        track.raw, track.missed, track.seen = face, 0, seconds
        points = face.points
        if track.smooth is not None:
            points = track.smooth(points, float(face.box[2]), since, face.confidence)
        track.face = replace(face, points=points)

    def _look(self, image: np.ndarray, seconds: float) -> None:
        """New faces, and lost ones found again near where they were."""
        self.detections += 1
        for face in self.predictor.predict(image, search=False):
            if any(_same(face, t.raw) for t in self.tracks):
                continue
            near = [t for t in self.lost if np.linalg.norm(_center(t.raw) - _center(face)) < face.box[2]]
            if near:
                track = near[-1]
                self.lost.remove(track)
                track.smooth = OneEuro() if self.smooth else None
            else:
                self._numbers += 1
                track = Track(self._numbers, face, face, OneEuro() if self.smooth else None)
            self._take(track, face, seconds)
            self.tracks.append(track)


def _center(face: Face) -> np.ndarray:
    return face.points.mean(axis=0)


def _same(a: Face, b: Face) -> bool:
    return bool(np.linalg.norm(_center(a) - _center(b)) < 0.4 * min(a.box[2], b.box[2]))


def frames(source: str) -> Iterator[tuple[float, np.ndarray, float]]:
    """(seconds, RGB frame, frames a second) of a video file, or of a webcam given by its number. Raises InputError."""
    import cv2

    camera = source.isdigit()
    if not camera and not Path(source).is_file():
        raise InputError(f"{source}: no such file (a webcam is given by its number)")
    video = cv2.VideoCapture(int(source) if camera else source)
    if not video.isOpened():
        raise InputError(f"{source}: {'no webcam of that number' if camera else 'not a video that OpenCV can read'}")
    try:
        rate = video.get(cv2.CAP_PROP_FPS) or 25.0
        rate = rate if 1 <= rate <= 1000 else 25.0
        number, began = 0, time.monotonic()
        while True:
            ok, frame = video.read()
            if not ok:
                break
            seconds = time.monotonic() - began if camera else number / rate
            yield seconds, np.ascontiguousarray(frame[..., ::-1]), rate
            number += 1
        if not number:
            raise InputError(f"{source}: holds no frame that OpenCV can read")
    finally:
        video.release()


def count_frames(source: str) -> int:
    """How many frames the container claims; 0 where it does not say."""
    import cv2

    if source.isdigit():
        return 0
    video = cv2.VideoCapture(source)
    try:
        return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        video.release()
