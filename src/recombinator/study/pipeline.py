"""Benchmark prediction from an image to points, part by part, in milliseconds and relative to a fixed operation.

The fixed operation, one of OpenCV, is timed in the same round. It makes runs on different machines and under different
load comparable.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recombinator.data.images import SAMPLE_PHOTOGRAPH, encode_image, read_image
from recombinator.predict.crop import crop_face
from recombinator.predict.predictor import Predictor, load
from recombinator.predict.track import Tracker
from recombinator.study.bench import Job, measure, summary
from recombinator.utils.errors import InputError

MODELS = ("rcn-6-fast-mtfl-int8", "rcn-6-mtfl", "rcn-68-300w-int8", "joint-68-300w-int8")
SMALL = 350  # pixels: longer side of a photograph as they are in MTFL
REFERENCE = "reference: cv2.GaussianBlur, sigma 5, 1280x720 gray"
FRAMES = 30  # of the video; the detector runs on every 15th frame


def _reference() -> Job:
    import cv2

    image = np.random.default_rng(0).integers(0, 256, (720, 1280), dtype=np.uint8)
    return Job(lambda: cv2.GaussianBlur(image, (0, 0), 5.0), 1, repeats=5)


def landscape(height: int = 3000, width: int = 2000, seed: int = 0) -> np.ndarray:
    """Make a photograph without a face: smooth noise of several sizes.

    Returns:
        (height, width, 3) RGB, uint8.
    """
    import cv2

    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for cells in (4, 16, 64, 256):
        noise = rng.normal(0, 1 / np.log2(cells), (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 60 * image, 0, 255).astype(np.uint8)


def video_frames(count: int = FRAMES) -> list[np.ndarray]:
    """Make frames of 1280x720 pixels in which the sample portrait moves to the right by 4 pixels per frame."""
    import cv2

    portrait = cv2.resize(read_image(SAMPLE_PHOTOGRAPH), (614, 720), interpolation=cv2.INTER_AREA)
    frames = []
    for i in range(count):
        frame = np.full((720, 1280, 3), 96, np.uint8)
        frame[:, 200 + 4 * i : 814 + 4 * i] = portrait
        frames.append(frame)
    return frames


def _jobs(name: str, predictor: Predictor, frames: list[np.ndarray]) -> dict[str, Job]:
    """Return the parts of one network's prediction, on a photograph and on a video frame."""
    import cv2

    image = read_image(SAMPLE_PHOTOGRAPH)
    scale = SMALL / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    faces = predictor.predict(image)
    if not faces:
        raise InputError(f"{name}: finds no face in the sample photograph")
    about, points, photograph = predictor.about, faces[0].points, predictor.open(image)
    crop = crop_face(photograph, points, predictor.rule, about.size, about.channels)
    assert crop is not None  # the face was predicted from one
    pixels = crop.pixels[None]

    def video() -> None:
        tracker = Tracker(predictor)
        for i, frame in enumerate(frames):
            tracker.update(frame, i / 25)

    return {
        f"{name}: photograph of {SMALL} pixels, without decoding": Job(lambda: predictor.predict(small), 1),
        f"{name}: photograph, without decoding": Job(lambda: predictor.predict(image), 1),
        f"{name}: photograph on its side, without decoding": Job(lambda: predictor.predict(np.rot90(image).copy()), 1),
        f"{name}: photograph, from the file": Job(lambda: predictor.predict(SAMPLE_PHOTOGRAPH), 1),
        f"{name}: crop, per pass": Job(
            lambda: crop_face(photograph, points, predictor.rule, about.size, about.channels), 1, repeats=20
        ),
        f"{name}: network, per pass": Job(lambda: predictor.engine.run(pixels), 1, repeats=10),
        f"{name}: video frame, 1280x720": Job(video, len(frames)),
    }


def run(
    models: Sequence[str], rounds: int, threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Time the parts of prediction, from an image to points, on this machine.

    Args:
        models: Names of shipped networks, or files; MODELS if empty.
        rounds: Rounds in which every part is timed once.
        threads: CPU threads of ONNX Runtime and OpenCV.
        progress: Called with (rounds done, rounds in all).

    Returns:
        A report: for each part the median, the lowest and the highest time in milliseconds, and the median ratio to the
        fixed operation of the same round.

    Raises:
        InputError: There is no such network, or a face is found where there is none.
    """
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        image, empty, frames = read_image(SAMPLE_PHOTOGRAPH), landscape(), video_frames()
        data = encode_image(empty, 95)
        loaded = {name: load(name, threads=threads) for name in models or MODELS}
        first = next(iter(loaded.values()))
        detector = first.detector
        if detector is None:
            raise InputError(f"{next(iter(loaded))}: has no detector; name a network for faces first")
        if first.predict(empty):
            raise InputError("the detector finds a face in noise; the photograph without a face needs another seed")
        jobs = {
            REFERENCE: _reference(),
            "decode the sample photograph, 512x600": Job(lambda: read_image(SAMPLE_PHOTOGRAPH), 1, repeats=3),
            "decode 2000x3000, as far as needed": Job(lambda: first.open(data), 1),
            "find, 512x600": Job(lambda: detector.detect(image), 1),
            "find, 1280x720": Job(lambda: detector.detect(frames[0]), 1),
            "find, 2000x3000 without a face": Job(lambda: detector.detect(empty), 1),
            "photograph without a face, 2000x3000, without decoding": Job(lambda: first.predict(empty), 1),
        }
        for name, predictor in loaded.items():
            jobs |= _jobs(name, predictor, frames)
        times = measure(jobs, rounds, progress)
    finally:
        cv2.setNumThreads(before)
    rows = {}
    for name, job in jobs.items():
        values = [1000 * seconds / job.work for seconds in times[name]]
        ratios = [seconds / job.work / fixed for seconds, fixed in zip(times[name], times[REFERENCE], strict=True)]
        rows[name] = {**summary(values, "ms"), "times_reference": statistics.median(ratios)}
    return {"rounds": rounds, "threads": threads, "reference": REFERENCE, "passes": first.passes, "rows": rows}
