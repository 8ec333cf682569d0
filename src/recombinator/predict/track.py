"""Track faces through a video: points of the last frame give the next crop, so the detector rarely runs."""

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

LOST_AFTER = 3  # frames without a confident prediction
REMEMBERED = 2.0  # seconds for which a lost face keeps its number


class OneEuro:
    """Smooth points with the One-Euro filter (Casiez, Roussel, Vogel; CHI 2012).

    It is a low-pass filter whose cut-off frequency grows with speed: points at rest are steady, and moving points do
    not lag. Speed is measured in face sides per second, so it does not depend on the size of the face. Points of low
    confidence are smoothed more.

    Args:
        slow: Cut-off frequency at rest, in Hz.
        gain: Increase of the cut-off frequency, in Hz for each face side per second.
        derivative: Cut-off frequency for the speed itself, in Hz.
    """

    def __init__(self, slow: float = 1.0, gain: float = 12.0, derivative: float = 1.0) -> None:
        self.slow, self.gain, self.derivative = slow, gain, derivative
        self.value: np.ndarray | None = None
        self.speed: np.ndarray | None = None

    def __call__(self, points: np.ndarray, side: float, seconds: float, confidence: np.ndarray) -> np.ndarray:
        """Filter the points of the next frame.

        Args:
            points: (K, 2) x, y in pixels.
            side: Side of the face in pixels.
            seconds: Time since the last call.
            confidence: (K,) confidences.

        Returns:
            (K, 2) smoothed points.
        """
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
    """Return the weight of a new value in a first-order low-pass filter with this cut-off frequency in Hz."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * seconds))


@dataclass
class Track:
    """Hold one face over time.

    Args:
        number: The number that the face keeps.
        face: The face with smoothed points.
        raw: The face as the network predicted it.
        smooth: The filter; None without smoothing.
        missed: Frames since the last confident prediction.
        seen: Time of the last confident prediction, in seconds.
    """

    number: int
    face: Face
    raw: Face
    smooth: OneEuro | None
    missed: int = 0
    seen: float = 0.0


@dataclass
class Tracker:
    """Follow faces through frames that are given in order, and number them.

    Args:
        predictor: The predictor.
        detect_every: Run the detector every this many frames while faces are followed. Without faces it runs on
            every frame.
        smooth: Smooth the points with the One-Euro filter.
        tracks: Faces that are followed now.
        lost: Faces that were lost a short time ago.
        detections: How many times the detector ran.
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
        """Process the next frame.

        Args:
            image: (H, W) gray or (H, W, 3) RGB, uint8.
            seconds: Time of the frame.

        Returns:
            The faces in this frame.
        """
        min_confidence = self.predictor.min_confidence
        followed = self.predictor.follow(image, [t.raw.points for t in self.tracks])
        kept: list[Track] = []
        for track, face in zip(self.tracks, followed, strict=True):
            # two tracks can converge on one face; the second one is dropped
            duplicate = face is not None and any(_same(face, other.raw) for other in kept)
            if face is not None and float(face.confidence.mean()) >= min_confidence and not duplicate:
                self._take(track, face, seconds)
                kept.append(track)
            else:
                track.missed += 1
                (kept if track.missed < LOST_AFTER and not duplicate else self.lost).append(track)
        self.tracks = kept
        if not self.tracks or self._frames % self.detect_every == 0:
            self._detect(image, seconds)
        self._frames += 1
        self.lost = [t for t in self.lost if seconds - t.seen <= REMEMBERED]
        return [replace(t) for t in self.tracks if not t.missed]  # copies, which later frames do not change

    def _take(self, track: Track, face: Face, seconds: float) -> None:
        """Give a track its face in the current frame."""
        since = seconds - track.seen
        track.raw, track.missed, track.seen = face, 0, seconds
        points = face.points
        if track.smooth is not None:
            points = track.smooth(points, float(face.box[2]), since, face.confidence)
        track.face = replace(face, points=points)

    def _detect(self, image: np.ndarray, seconds: float) -> None:
        """Add new faces. A face near a lost one continues its track."""
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
    """Read the frames of a video.

    Args:
        source: A video file, or the number of a webcam.

    Yields:
        Time in seconds, the (H, W, 3) RGB uint8 frame, and the frame rate in frames per second.

    Raises:
        InputError: If there is no such video, or it cannot be read.
    """
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
    """Return the number of frames that a video file claims to have; 0 if it does not say, and for a webcam."""
    import cv2

    if source.isdigit():
        return 0
    video = cv2.VideoCapture(source)
    try:
        return max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        video.release()
