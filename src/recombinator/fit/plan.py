"""Examine annotated images and decide how to fit a localizer to them. Every decision has a reason in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import read_image
from recombinator.fit.samples import Sample
from recombinator.keypoints import KeypointSet
from recombinator.training.recipe import PARSERS
from recombinator.transforms.shapes import ShapeModel, apply_similarity, similarity
from recombinator.utils.errors import InputError, check_choice
from recombinator.utils.files import read_file
from recombinator.utils.schema import decode, parse_json

SIZES = (80, 96, 128, 160)  # inputs of the coarse network, in pixels
OBJECT_CELLS = 16  # cells of the coarse map that the object must span: a quarter of a cell is then 1/64 of it
FINE_CELLS = 256  # cells of the fine maps that the object must span: a cell is then below half a percent of it
FACTORS = (2, 3, 4, 5, 6, 8)
PATCH = 64  # side of the fine network's input: at least 8 coarse cells, several times the coarse error
ANY_ANGLE = 60  # degrees: objects that turn by more than this can have any orientation
LOOKED_AT = 20  # images that are read, for their size and color
FINDER_OBJECT = 96  # pixels of an object in the images that a finder learns from: in training scenes most are smaller
FINDER_SIZES = (160, 480)  # sides of these images in pixels, smallest and largest
FINDER_SHIFT, FINDER_ZOOM = 0.15, 0.2  # smallest jitter of crops: the errors of a finder's squares are about as large


@dataclass(frozen=True)
class Examination:
    """What the annotations and some images show.

    Attributes:
        images: Number of images.
        objects: Number of objects.
        most_objects: Objects in the image with the most.
        side: Median longer side of the images in pixels.
        extent: Median longer side of the points' bounding boxes in pixels.
        share: Median of extent and side's ratio.
        rotation: 95th percentile of the objects' rotation against their mean shape, in degrees to either side of the
            middle orientation.
        scaling: 95th percentile of the ratio between an object's size and the median, or its inverse.
        missing: Share of the points that are missing.
        rarest: The keypoint that is known in the fewest objects.
        rarest_known: How many objects that is.
        symmetric: The names have mirror pairs, and a mirrored object looks like another object.
        chroma: Local contrast of color around the points, as a share of that of brightness.
    """

    images: int
    objects: int
    most_objects: int
    side: float
    extent: float
    share: float
    rotation: float
    scaling: float
    missing: float
    rarest: str
    rarest_known: int
    symmetric: bool
    chroma: float


@dataclass(frozen=True)
class Plan:
    """How a localizer is fitted.

    Attributes:
        where: Where the object is looked for: "image" (one object anywhere in the whole image), "finder" (in squares
            that a finder network gives, any number of them) or "box" (in boxes that are given at prediction).
        size: Side of the coarse network's input in pixels.
        factor: How many times finer the fine network sees; 1: there is no fine network.
        patch: Side of the fine network's input in pixels.
        model: Architecture of both networks.
        start: Shipped weights that training starts from; "" for random ones.
        channels: 1 for gray, 3 for color.
        degrees: Random rotation to each side; 180 is any angle.
        zoom: Random change of scale, as a share.
        shift: Random shift of the coarse input, as a share of its side.
        flip: Mirror half of the training images.
        batch: Images per step.
        finder_size: Side in pixels of the whole images that a finder learns from; 0: there is no finder.
        minutes: Time that the numbers of epochs were chosen for; 0: they were given.
        coarse_epochs, fine_epochs, finder_epochs: Epochs of each network; 0 until a training step has been timed.
        reasons: One line per decision.
    """

    where: str
    size: int
    factor: int
    patch: int
    model: str
    start: str
    channels: int
    degrees: int
    zoom: float
    shift: float
    flip: bool
    batch: int
    minutes: float = 0.0
    coarse_epochs: int = 0
    fine_epochs: int = 0
    finder_size: int = 0
    finder_epochs: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def rule(self) -> str:
        """Return the crop rule (`recombinator.data.crops.RULES`)."""
        return RULE[self.where]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: str = "plan") -> Plan:
        """Return the plan of a `to_dict` value. Raises InputError, starting with `where`, for any other value."""
        plan = decode(cls, value, where)
        check_choice(f"{where}: where", plan.where, RULE)
        return plan

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan from a JSON file with the value of `to_dict`.

        Raises:
            InputError: The file is damaged.
        """
        try:
            return cls.from_dict(parse_json(read_file(path), str(path)), str(path))
        except InputError as error:
            raise InputError(f"{error}: not a plan of `recombinator fit`; choose another --out") from None


RULE = {"image": "image", "finder": "object", "box": "object"}  # crop rule by `Plan.where`


def examine(samples: Sequence[Sample], keypoints: KeypointSet) -> Examination:
    """Examine annotated objects.

    Args:
        samples: The objects.
        keypoints: Their keypoint set.
    """
    per_file: dict[str, int] = {}
    for sample in samples:
        per_file[sample.file] = per_file.get(sample.file, 0) + 1
    known = np.stack([s.known for s in samples])
    extent = np.array([max(np.ptp(s.points[s.known], axis=0)) for s in samples])
    looked_at = [samples[i] for i in np.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).astype(int)]
    images = [read_image(s.path) for s in looked_at]
    sides = np.array([max(i.shape[:2]) for i in images])
    shares = [max(np.ptp(s.points[s.known], axis=0)) / side for s, side in zip(looked_at, sides, strict=True)]
    rotation, scaling, symmetric = _pose(samples, known, keypoints)
    counts = known.sum(axis=0)
    return Examination(
        images=len(per_file), objects=len(samples), most_objects=max(per_file.values()), side=float(np.median(sides)),
        extent=float(np.median(extent)), share=float(np.median(shares)), rotation=rotation, scaling=scaling,
        missing=float(1 - known.mean()), rarest=keypoints.names[int(counts.argmin())], rarest_known=int(counts.min()),
        symmetric=symmetric,
        chroma=float(np.median([_chroma(i, s) for i, s in zip(images, looked_at, strict=True)])),
    )  # fmt: skip


def _pose(samples: Sequence[Sample], known: np.ndarray, keypoints: KeypointSet) -> tuple[float, float, bool]:
    """Return rotation in degrees, scaling and symmetry, as `Examination` has them, by Procrustes fits."""
    usable = known.sum(axis=1) >= 2
    if not usable.any() or len(keypoints) < 2:
        return 0.0, 1.0, False
    points, mask = np.stack([s.filled for s in samples])[usable], known[usable]
    mean = ShapeModel.fit(points, mask, 0).mean
    linear, _ = similarity(mean, points, mask.astype(float))
    turn = linear[:, 0, 0] + 1j * linear[:, 1, 0]
    middle = np.mean(turn / np.maximum(np.abs(turn), 1e-9))
    angles = np.degrees(np.abs(np.angle(turn * np.conj(middle))))
    size = np.abs(turn) / np.median(np.abs(turn))
    scaling = float(np.quantile(np.maximum(size, 1 / np.maximum(size, 1e-9)), 0.95))

    def misfit(shape: np.ndarray) -> float:
        gap = apply_similarity(shape, *similarity(shape, points, mask.astype(float))) - points
        return float(np.sqrt((gap**2).sum(axis=2))[mask].mean() / np.median(np.abs(turn)))

    # a mirrored object must fit the mean shape about as well as the objects themselves do
    mirrored = (mean * [-1, 1])[keypoints.mirrored]
    symmetric = bool(keypoints.mirror) and misfit(mirrored) <= 1.5 * misfit(mean)
    return float(np.quantile(angles, 0.95)), scaling, symmetric


def _chroma(image: np.ndarray, sample: Sample) -> float:
    """Return the contrast of color as a share of that of brightness, around the known points of one image."""
    if image.ndim == 2:
        return 0.0
    reach = max(8, round(0.1 * max(np.ptp(sample.points[sample.known], axis=0))))
    bright, color = [], []
    for x, y in sample.points[sample.known]:
        part = image[max(int(y) - reach, 0) : int(y) + reach, max(int(x) - reach, 0) : int(x) + reach].astype(float)
        if part.size:
            gray = part.mean(axis=2, keepdims=True)
            bright.append(gray.std())
            color.append((part - gray).std(axis=(0, 1)).mean())
    return float(np.sum(color) / max(np.sum(bright), 1e-9)) if bright else 0.0


def choose_where(seen: Examination, boxes: bool, given: str) -> tuple[str, str]:
    """Return `Plan.where`, and its reason.

    Args:
        seen: What the data show.
        boxes: Boxes will be given at prediction.
        given: The user's choice; "": none.

    Raises:
        InputError: The choice is unknown, or does not fit the data.
    """
    if given and given not in RULE:
        raise InputError(f"where={given!r}: expected one of {', '.join(RULE)}")
    if boxes and given not in ("", "box"):
        raise InputError(f"--boxes: excludes where={given}; leave one of them out")
    if given == "image" and seen.most_objects > 1:
        raise InputError(
            f"where=image: an image has {seen.most_objects} objects, and a model of whole images locates one; use "
            "where=finder"
        )
    smallest = OBJECT_CELLS / SIZES[-1]
    spans = f"it spans {100 * seen.share:.0f} % of the longer side"
    if boxes or given == "box":
        return "box", "in boxes that you give at prediction"
    if given == "finder" or seen.most_objects > 1:
        return "finder", f"a finder network finds the objects; an image has up to {seen.most_objects}"
    if not given and seen.share < smallest:
        return "finder", (
            f"a finder network finds the object; {spans}, and below {100 * smallest:.0f} % the network for the whole "
            f"image, {SIZES[-1]}x{SIZES[-1]} at most, sees fewer than {OBJECT_CELLS} pixels of it"
        )
    return "image", f"one object anywhere in the image; {spans}"


def decide(seen: Examination, keypoints: KeypointSet, *, boxes: bool = False, where: str = "") -> Plan:
    """Decide how to fit a localizer.

    Args:
        seen: What the data show.
        keypoints: The keypoint set.
        boxes: Boxes will be given at prediction.
        where: `Plan.where`, if the user has chosen it.

    Raises:
        InputError: The choice does not fit the data, or a finder would have to find single keypoints.
    """
    reasons = [
        f"data: {seen.images} images of {seen.side:.0f} pixels, {seen.objects} objects of {len(keypoints)} keypoints"
        + (f", {100 * seen.missing:.0f} % missing ({seen.rarest}: {seen.rarest_known} known)" if seen.missing else "")
    ]
    where, reason = choose_where(seen, boxes, where)
    if where == "finder" and len(keypoints) < 2:
        raise InputError(
            "a single keypoint has no size, so no finder can learn it; annotate two or more keypoints per object"
        )
    reasons.append(f"where: {reason}")
    share = seen.share if where == "image" else 0.75  # the crop is 1.3 times the object
    size = next((s for s in SIZES if s * share >= OBJECT_CELLS), SIZES[-1])
    reasons.append(f"coarse network: {size}x{size} pixels, in which the object spans {size * share:.0f}")
    pixels = seen.side if where == "image" else seen.extent * 4 / 3  # of the file along the input
    usable = [f for f in FACTORS if size * f <= max(pixels, 1) * 1.1]
    factor = next((f for f in usable if size * f * share >= FINE_CELLS), max(usable, default=1))
    if factor == 1:
        reasons.append("fine network: none; the coarse one sees all pixels that the images have")
    else:
        reasons.append(
            f"fine network: {PATCH}x{PATCH} patches, {factor} times finer, {pixels / (size * factor):.1f} image pixels "
            "per cell; kept only if held-out images show that it helps"
        )
    if seen.rotation > ANY_ANGLE:
        degrees = 180
        reasons.append(f"rotation: any angle; the objects turn by up to {seen.rotation:.0f} degrees")
    else:
        degrees = int(min(max(10, round(1.5 * seen.rotation)), 180))
        reasons.append(f"rotation: +-{degrees} degrees; the objects turn by up to {seen.rotation:.0f}")
    shift, least = (FINDER_SHIFT, FINDER_ZOOM) if where == "finder" else (0.1, 0.1)
    zoom = round(float(np.clip(1.2 * (seen.scaling - 1), least, 0.4)), 2)
    reasons.append(f"scale: +-{100 * zoom:.0f} %; the objects' sizes differ by up to {100 * (seen.scaling - 1):.0f} %")
    finder_size = _finder_size(seen) if where == "finder" else 0
    if finder_size:
        reasons.append(
            f"finder: it learns from whole images of {finder_size} pixels and starts from the face finder; the crops "
            "are shifted and scaled by more, because its squares are inexact"
        )
    if not keypoints.mirror:
        why = "no flips: no two names differ in left and right"
    elif seen.symmetric:
        why = f"flips: yes, {len(keypoints.mirror)} mirror pairs, and mirrored objects have the same shape"
    else:
        why = "no flips: a mirrored object has another shape"
    reasons.append(why)
    channels = 3 if seen.chroma > 0.3 else 1
    reasons.append(
        f"{'color' if channels == 3 else 'gray'}: color contrast around the points is {100 * seen.chroma:.0f} % of "
        "that of brightness"
    )
    return Plan(
        where=where, size=size, factor=factor, patch=PATCH, model="rcn-6", start="",
        channels=channels, degrees=degrees, zoom=zoom, shift=shift, flip=seen.symmetric, batch=32,
        finder_size=finder_size, reasons=tuple(reasons),
    )  # fmt: skip


def _finder_size(seen: Examination) -> int:
    """Return the side of a finder's images: an object's square has FINDER_OBJECT pixels, or all that the files have."""
    smallest, largest = FINDER_SIZES
    wanted = min(FINDER_OBJECT / (1.3 * max(seen.share, 0.01)), seen.side, largest)
    return 32 * math.ceil(max(wanted, smallest) / 32)


def changed(plan: Plan, **values: Any) -> Plan:
    """Return the plan with some decisions replaced by the user's.

    Raises:
        InputError: A plan has no such field, or its value has another type.
    """
    known = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name not in ("reasons", "minutes")}
    merged = plan.to_dict()
    for name, value in values.items():
        if name not in known:
            raise InputError(f"unknown setting {name!r}; expected one of {', '.join(known)}")
        kind = type(known[name]).__name__
        expected, parse = PARSERS[kind]
        try:
            merged[name] = parse(str(value))
        except (KeyError, ValueError):
            raise InputError(f"{name}={value!r}: expected a value of type {kind}: {expected}") from None
        merged["reasons"] = (*merged["reasons"], f"{name}: {merged[name]}, as you set it")
    return Plan(**merged)
