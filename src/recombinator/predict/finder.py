"""Find objects with a finder network: image pyramid, decoding of its maps, non-maximum suppression."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import numpy as np
from msgspec import Meta

from recombinator.data.crops import RULES
from recombinator.data.images import to_gray
from recombinator.predict.detect import Detection
from recombinator.predict.session import ForkCheck, Session, check_finite
from recombinator.utils.errors import InputError, check_choice
from recombinator.utils.schema import Finite, decode
from recombinator.weights.schema import Channels
from recombinator.weights.shipped import FOLDER

FACE_FINDER = FOLDER / "finders" / "faces.onnx"
FORMAT = "recombinator-finder-1"
MAPS = 6  # maps in the network's output
STRIDE, COARSEST, REFERENCE = 4, 32, 32.0  # as in models.finder, which prediction does not import
SIDES = (128, 400, 1250)  # longer sides in pixels at which an image is seen; objects from 14 to 140 pixels are found
# Steps of `search` where nothing was accepted: less certain detections, then a smaller image (for an object that fills
# the image), then a larger one.
DOUBTFUL, MOST_DOUBTFUL = 0.5, 4  # factor on the threshold; largest number of such detections
COARSER = (64,)
FINEST = (2000,)
LEAST_STEP = 1.4  # smallest ratio between two sizes at which an image is seen
SMALLEST, LARGEST = 11.0, 1.5  # side of an object in pixels, and in shorter sides of the image as it is seen
SAME = 0.4  # intersection over union above which two squares are one object
MOST = 300  # objects per image
GRAY = 128  # gray level of the padding


@dataclass(frozen=True)
class Found:
    """Hold the objects in one image, most certain first.

    Args:
        squares: (N, 4) center x, y and side in pixels of the image, and rotation in degrees, clockwise on the screen.
        scores: (N,) probabilities.
    """

    squares: np.ndarray
    scores: np.ndarray


def decode_maps(maps: np.ndarray, threshold: float) -> Found:
    """Decode a finder's maps for one image.

    Args:
        maps: (6, h, w), the output of models.finder.Finder.
        threshold: Smallest probability of an object.

    Returns:
        One object per local maximum of the probability, in pixels of the network's input.
    """
    logits = maps[0]
    padded = np.pad(logits, 1, constant_values=-np.inf)
    h, w = logits.shape
    highest = np.max([padded[i : i + h, j : j + w] for i in range(3) for j in range(3)], axis=0)
    y, x = np.nonzero((logits == highest) & (logits >= np.log(threshold / (1 - threshold))))
    order = np.argsort(-logits[y, x], kind="stable")[:MOST]
    y, x = y[order], x[order]
    _, dx, dy, size, cosine, sine = maps[:, y, x].astype(np.float64)
    squares = np.stack(
        [
            (x + 0.5 + dx) * STRIDE,
            (y + 0.5 + dy) * STRIDE,
            REFERENCE * np.exp(np.clip(size, -5, 5)),
            np.degrees(np.arctan2(sine, cosine)),
        ],
        axis=1,
    )
    return Found(squares, 1 / (1 + np.exp(-logits[y, x].astype(np.float64))))


def suppressed(found: Found) -> Found:
    """Keep the most certain of the squares that overlap by more than `SAME`. Rotations are ignored."""
    order = np.argsort(-found.scores, kind="stable")
    squares, kept = found.squares[order], np.ones(len(order), bool)
    low, high = squares[:, :2] - squares[:, 2:3] / 2, squares[:, :2] + squares[:, 2:3] / 2
    area = squares[:, 2] ** 2
    for i in range(len(order)):
        if kept[i]:
            shared = np.clip(np.minimum(high[i], high[i + 1 :]) - np.maximum(low[i], low[i + 1 :]), 0, None).prod(
                axis=1
            )
            kept[i + 1 :] &= shared <= SAME * (area[i] + area[i + 1 :] - shared)
    return Found(squares[kept], found.scores[order][kept])


@dataclass(frozen=True)
class FinderDescription:
    """Describe a finder.

    Args:
        rule: Name of the crop rule whose squares it predicts.
        channels: 1 for gray, 3 for RGB.
        threshold: Probability from which a maximum is an object.
        relation: For other crop rules: the side of their square, and how far its center is below the finder's, both in
            sides of the finder's square.
        training: How the finder was trained.
    """

    rule: str
    channels: Channels
    threshold: Annotated[float, Meta(gt=0, lt=1)]
    relation: dict[str, tuple[Finite, Finite]] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, list(RULES))


class FinderEngine(Protocol):
    """What a FinderDetector needs of an engine."""

    about: FinderDescription

    def run(self, images: np.ndarray) -> np.ndarray:
        """Compute the (B, 6, H / 4, W / 4) maps of (B, channels, H, W) float32 images. Thread-safe."""
        ...


class OnnxFinder:
    """Run an exported finder with ONNX Runtime.

    Args:
        path: The .onnx file.
        packed: The finder's graph in base64, if it is stored in its localizer's file.
        threads: Number of threads; 0 leaves the choice to ONNX Runtime.

    Raises:
        InputError: The file cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], packed: str | None = None, threads: int = 1) -> None:
        try:
            content = None if packed is None else base64.b64decode(packed, validate=True)
        except ValueError:
            raise InputError(f"{path}: damaged: its finder cannot be read") from None
        self.session = Session(path, threads, FORMAT, content)
        self.about = decode(FinderDescription, self.session.metadata, f"{path}: finder")
        shapes = {"image": (self.about.channels, COARSEST, COARSEST), "maps": (MAPS, *(COARSEST // STRIDE,) * 2)}
        self.session.check_interface({name: ("tensor(float)", shape) for name, shape in shapes.items()})
        found = self.run(np.zeros((1, *shapes["image"]), np.float32)).shape
        if found != (1, *shapes["maps"]):
            raise InputError(f"{path}: maps: expected shape {(1, *shapes['maps'])}, got {found}")

    def run(self, images: np.ndarray) -> np.ndarray:
        """Compute the maps of (B, channels, H, W) float32 images."""
        return self.session.run(["maps"], images)[0]


class TorchFinder:
    """Run a finder with torch.

    Args:
        weights: Weights of a finder (weights.files.Weights).
    """

    def __init__(self, weights: Any) -> None:
        self.net, self._check_process = weights.net.eval(), ForkCheck()
        self.about = FinderDescription(
            weights.crop_rule, self.net.channels, float(self.net.threshold),
            weights.calibration.get("relation", {}), weights.training,
        )  # fmt: skip

    def run(self, images: np.ndarray) -> np.ndarray:
        """Compute the maps of (B, channels, H, W) float32 images."""
        import torch

        self._check_process()
        with torch.inference_mode():
            maps: np.ndarray = self.net(torch.from_numpy(images)).numpy()
        check_finite([maps], "the finder")
        return maps


def as_input(image: np.ndarray, channels: int) -> np.ndarray:
    """Return a finder's input of one image.

    Args:
        image: (H, W) gray or (H, W, 3) RGB, uint8.
        channels: 1 for gray, 3 for RGB.

    Returns:
        (1, channels, h, w) float32 with gray borders at the right and at the bottom.
    """
    pixels = (to_gray(image) if channels == 1 else image).reshape(*image.shape[:2], -1)
    out = np.full((1, channels, *(-(-s // COARSEST) * COARSEST for s in image.shape[:2])), GRAY, np.float32)
    out[0, :, : image.shape[0], : image.shape[1]] = pixels.transpose(2, 0, 1)  # one gray plane fills all channels
    return out


def shrunk(image: np.ndarray, longest: int) -> tuple[np.ndarray, int]:
    """Return an image at 1/8, 1/4, 1/2 or all of its size, its longer side not below `longest`, and the factor.

    JPEG decoders offer the same factors. Averaging by whole factors is fast. Rows at the bottom and columns at the
    right that do not fill a pixel are left out.
    """
    import cv2

    factor = next(f for f in (8, 4, 2, 1) if max(image.shape[:2]) >= f * longest or f == 1)
    height, width = (side // factor for side in image.shape[:2])
    if factor == 1 or min(height, width) == 0:
        return image, 1
    whole = image[: height * factor, : width * factor]
    return cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), factor


def resized(image: np.ndarray, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Return an image of `shape`, or a smaller one made of it, at `scale` times that shape."""
    import cv2

    height, width = (max(1, round(s * scale)) for s in shape[:2])
    if image.shape[:2] == (height, width):
        return image
    method = cv2.INTER_AREA if height <= image.shape[0] else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


class FinderDetector:
    """Detect objects of any size and rotation with a finder network.

    Args:
        engine: Runs the network.
        threshold: Smallest probability of an object; by default the finder's own.
    """

    longest = max(SIDES)

    def __init__(self, engine: FinderEngine, threshold: float | None = None) -> None:
        self.engine = engine
        self.threshold = engine.about.threshold if threshold is None else threshold
        self.relation = {engine.about.rule: (1.0, 0.0), **{k: tuple(v) for k, v in engine.about.relation.items()}}

    def detect(self, image: np.ndarray) -> list[Detection]:
        """Find the objects of an image; see Detector.detect."""
        view, factor = self._view(image)
        return self._decoded(view, self._maps(view, SIDES), self.threshold, factor)

    def search(self, image: np.ndarray) -> Iterator[list[Detection]]:
        """Yield what `detect` finds, then less certain, larger and smaller objects; see Detector."""
        view, factor = self._view(image)
        maps, doubtful = self._maps(view, SIDES), DOUBTFUL * self.threshold
        yield self._decoded(view, maps, self.threshold, factor)
        further = self._decoded(view, [*maps, *self._maps(view, COARSER)], doubtful, factor)
        yield sorted(further, key=lambda d: -d.score)[:MOST_DOUBTFUL]
        if max(view.shape[:2]) >= LEAST_STEP * max(SIDES):
            yield self._decoded(view, self._maps(view, FINEST), self.threshold, factor)

    def _view(self, image: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the image no larger than needed, gray for a gray finder, and by which factor it was shrunk."""
        view, factor = shrunk(image, self.longest)
        return (to_gray(view) if self.engine.about.channels == 1 else view), factor

    def _maps(self, image: np.ndarray, sides: tuple[int, ...]) -> list[tuple[float, np.ndarray]]:
        """Return the scale and the maps of each size at which the image is seen."""
        longest, steps = max(image.shape[:2]), list[float]()
        for wanted in sides:
            side = float(min(wanted, longest) if steps else wanted)
            if steps and side < LEAST_STEP * steps[-1]:
                break
            steps.append(side)
        pixels, maps = image, []
        for side in reversed(steps):  # each is made of the one before, which is larger
            pixels = resized(pixels, image.shape, side / longest)
            maps.append((side / longest, self.engine.run(as_input(pixels, self.engine.about.channels))[0]))
        return maps

    def _decoded(
        self, image: np.ndarray, maps: list[tuple[float, np.ndarray]], threshold: float, factor: int
    ) -> list[Detection]:
        """Return the objects of all sizes in an image that is `factor` times as large, largest first."""
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        for scale, one in maps:
            found = decode_maps(one, threshold)
            limit = LARGEST * min(image.shape[:2]) * scale
            kept = (found.squares[:, 2] >= SMALLEST) & (found.squares[:, 2] <= limit)
            parts.append((found.squares[kept] / [scale, scale, scale, 1], found.scores[kept]))
        found = suppressed(Found(*(np.concatenate(p) for p in zip(*parts, strict=True))))
        order = np.argsort(-found.squares[:, 2], kind="stable")
        return [
            Detection((x - side / 2, y - side / 2, side, side), angle, score=float(found.scores[i])).scaled(factor)
            for i, (x, y, side, angle) in zip(order, found.squares[order].tolist(), strict=True)
        ]


def face_finder(threads: int = 1) -> FinderDetector:
    """Return the face finder that ships with the package; see OnnxFinder."""
    return FinderDetector(OnnxFinder(FACE_FINDER, threads=threads))
