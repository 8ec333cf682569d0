"""What weights files and graphs say of a network, as typed structures (utils.schema)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from recombinator.data.crops import RULES
from recombinator.keypoints import KeypointSet
from recombinator.utils.errors import InputError
from recombinator.utils.schema import FileName, Finite, Positive, Share, decode

FORMAT = "recombinator-1"
LARGEST_SIZE = 1024  # pixels

Position = Annotated[list[Finite], Meta(min_length=2, max_length=2)]  # x, y
Size = Annotated[int, Meta(ge=1, le=LARGEST_SIZE)]
Channels = Literal[1, 3]


class Calibration(msgspec.Struct):
    """What `calibrate` fitted. Further fields name the data that it was fitted on.

    Attributes:
        temperature: Scores are divided by it.
        covered_below: K confidences; a point below its own is taken for occluded.
        least: Mean confidence below which a detection counts as false.
    """

    temperature: Positive
    covered_below: list[Finite]
    least: Share = 0.0


class FinderCalibration(msgspec.Struct):
    """What `calibrate` fitted for a finder.

    Attributes:
        relation: For other crop rules, the side of their square and how far its center is below, in sides.
    """

    relation: dict[str, tuple[Finite, Finite]]


class WeightsMetadata(msgspec.Struct):
    """The metadata of a weights file (see weights.files.Weights)."""

    format: Literal["recombinator-1"]
    model: dict[str, Any]
    keypoints: KeypointSet
    crop_rule: str
    template: list[Position]
    training: dict[str, Any]
    calibration: dict[str, Any] = {}

    def __post_init__(self) -> None:
        check_network(self.keypoints, self.crop_rule, self.template, self.calibration)
        named, expected = self.model.get("keypoints"), len(self.keypoints)
        if not isinstance(self.model.get("name"), str) or type(named) is not int or named != expected:
            raise InputError(f"model: expected a name and {expected} keypoints, got {str(self.model)[:60]}")


class Pair(msgspec.Struct):
    """A joint model, made of two weights files that are named relative to the JSON file."""

    image: FileName
    denoiser: FileName
    weight: Annotated[float, Meta(ge=0, le=1e6)]
    iterations: Annotated[int, Meta(ge=1, le=100)]
    calibration: dict[str, Any] = {}


class Shifted(msgspec.Struct):
    """A network derived by shifting the input of another, whose weights file is named relative to the JSON file."""

    shifted: FileName
    by: Annotated[int, Meta(ge=1, le=LARGEST_SIZE)]
    calibration: dict[str, Any]


def check_calibration(calibration: dict[str, Any], keypoints: int) -> None:
    """Check a calibration; an empty one is that of a network without.

    Args:
        calibration: The calibration.
        keypoints: K.

    Raises:
        InputError: A field is missing or has another type, range or length.
    """
    if not calibration:
        return
    try:
        if "relation" in calibration:
            decode(FinderCalibration, calibration, "calibration")
            return
        thresholds = len(decode(Calibration, calibration, "calibration").covered_below)
        if thresholds != keypoints:
            raise InputError(f"calibration: expected {keypoints} values in covered_below, got {thresholds}")
    except InputError as error:
        raise InputError(f"damaged {error}; `recombinator calibrate` makes a new one") from None


def check_network(
    keypoints: KeypointSet, crop_rule: str, template: list[list[float]], calibration: dict[str, Any]
) -> None:
    """Check that the parts of a network's metadata fit each other.

    Raises:
        InputError: An unknown crop rule, or template or calibration are of another number of keypoints.
    """
    if crop_rule not in RULES:
        raise InputError(f"crop_rule: expected one of {', '.join(RULES)}, got {crop_rule!r:.40}")
    if len(template) != len(keypoints):
        raise InputError(f"template: expected {len(keypoints)} points, got {len(template)}")
    check_calibration(calibration, len(keypoints))
