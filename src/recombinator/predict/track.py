"""Track faces through a video: points of the last frame give the next crop, so the detector rarely runs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.predict.predictor import Predictor
from recombinator.predict.result import Face
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_regular

LOST_AFTER = 3  # frames without a confident prediction
REMEMBERED = 2.0  # seconds for which a lost face keeps its number
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
MAX_DAMAGED = 250  # frames in a row that cannot be decoded, after which the video counts as ended


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
        detect_every: Frames from one run of the detector to the next while faces are followed. Without faces it runs
            on every frame.
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
        followed = self.predictor.follow(image, [t.raw.points for t in self.tracks], [t.raw.angle for t in self.tracks])
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
            known = [t for t in self.tracks if _same(face, t.raw)]
            if known:
                for track in known:  # the head may have turned since it was found
                    track.raw = replace(track.raw, angle=face.angle)
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


class Video:
    """Read the frames of a video in order, past damaged ones.

    Args:
        source: A video file, or the number of a webcam.

    Attributes:
        rate: Frames per second; 25 if the video does not say.
        declared: Number of frames that the file claims to have; 0 if it does not say, and for a webcam.
        missing: Number of frames that the file claims to have after the last one that could be read. Known at the end.

    Raises:
        InputError: If there is no such video, or it cannot be read.
    """

    def __init__(self, source: str) -> None:
        import cv2

        self.source, self.camera, self.missing = source, source.isdigit(), 0
        if not self.camera:
            check_opencv_name(source)
            check_regular(source)
            if not os.path.isfile(source):
                raise InputError(f"{source}: no such file (a webcam is given by its number)")
        self._video = cv2.VideoCapture(int(source) if self.camera else source)
        if not self._video.isOpened():
            reason = "no webcam of that number" if self.camera else "not a video that OpenCV can read"
            raise InputError(f"{source}: {reason}")
        rate = self._video.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 1 <= rate <= 1000 else 25.0
        self.declared = 0 if self.camera else max(0, int(self._video.get(cv2.CAP_PROP_FRAME_COUNT)))

    def __iter__(self) -> Iterator[tuple[float, np.ndarray | None, float]]:
        """Yield time in seconds, the (H, W, 3) RGB uint8 frame, and the frame rate.

        The time is the container's, which need not be the frame's number over the rate. A frame that cannot be decoded
        is None.
        """
        import cv2

        number = failed = 0
        seconds, longest, began = 0.0, 1 / self.rate, time.monotonic()
        try:
            while True:
                ok, frame = self._video.read()
                if not ok:
                    failed += 1  # a damaged frame, unless no frame follows
                    ended = self.camera or failed > MAX_DAMAGED or 0 < self.declared <= number + failed
                    if ended:
                        break
                    continue
                for i in range(failed):
                    yield seconds + (i + 1) / self.rate, None, self.rate
                number, failed = number + failed, 0
                if self.camera:
                    now = time.monotonic() - began
                else:  # a container without times gives 0
                    now = self._video.get(cv2.CAP_PROP_POS_MSEC) / 1000 or number / self.rate
                longest, seconds = max(longest, now - seconds), max(now, seconds)
                yield seconds, np.ascontiguousarray(frame[..., ::-1]), self.rate
                number += 1
            if not number:
                raise InputError(f"{self.source}: holds no frame that OpenCV can read")
            # some containers give only a duration, from which OpenCV computes the number of frames
            if self.declared / self.rate - seconds > 1.5 * longest:
                self.missing = max(0, self.declared - number)
        finally:
            self._video.release()


def check_opencv_name(path: str | Path) -> None:
    """Raise InputError for a file name that is not UTF-8, with which OpenCV's video functions crash."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: the name is not UTF-8; rename the file or its folder") from None


def spaced_frames(source: str, most: int) -> Iterator[tuple[int, np.ndarray]]:
    """Read evenly spaced frames of a video file.

    Args:
        source: The video.
        most: Largest number of frames. A video that does not say how long it is gives its first ones.

    Yields:
        Number of the frame, from 0, and the (H, W, 3) RGB uint8 frame. Damaged frames are left out.
    """
    video = Video(source)
    step = max(1, -(-video.declared // most))
    for number, (_, image, _) in enumerate(video):
        if number // step >= most:
            return
        if image is not None and number % step == 0:
            yield number, image


def frames(source: str) -> Iterator[tuple[float, np.ndarray | None, float]]:
    """Read the frames of a video; see `Video`."""
    return iter(Video(source))
