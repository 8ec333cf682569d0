"""Keypoint sets: names, mirror pairs, the distance that errors are divided by, lines to draw."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeAlias, TypeVar

import numpy as np
from msgspec import Meta

from recombinator.utils.errors import InputError
from recombinator.utils.files import from_file_keys, to_file_keys
from recombinator.utils.schema import Name, decode

Indices: TypeAlias = tuple[int, ...]

# Half sides of the squares around a score map's highest cell, in cells, for which a probability is reported: within r
# cells to each side, (2 r + 1) x (2 r + 1) cells. Calibration and reliability are measured for each.
RADII = (1, 2, 3, 5, 8)

# Index into RADII of the probability that is reported as a keypoint's confidence: the 7x7 cells whose mean is the
# sub-pixel position.
SURE = RADII.index(3)


@dataclass(frozen=True)
class KeypointSet:
    """An ordered set of K named keypoints.

    "left" and "right" in names are those of the image, not of the person or animal in it.

    Attributes:
        name: Name of the set, such as "face-5".
        names: The K names, in the order of every (K, 2) array.
        mirror: Index pairs that change places when an image is mirrored left to right.
        normalizer: Two groups of indices. Errors are divided by the distance between the groups' mean positions (one
            index per group: the distance between two points). Empty groups: the square root of the area of the
            points' bounding box.
        lines: Index sequences to draw as connected lines.
        normalizers: Further normalizers as (name, group, group).
        parts: Named subsets of the points that are reported separately, as (name, indices).

    Raises:
        InputError: Names repeat, an index is not that of a keypoint, or a keypoint is in two mirror pairs.
    """

    name: Name
    names: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=10_000)]
    mirror: tuple[tuple[int, int], ...] = ()
    normalizer: tuple[Indices, Indices] = ((), ())
    lines: tuple[Indices, ...] = ()
    normalizers: tuple[tuple[Name, Indices, Indices], ...] = ()
    parts: tuple[tuple[Name, Indices], ...] = ()

    def __post_init__(self) -> None:
        k = len(self.names)
        if len(set(self.names)) != k:
            raise InputError(f"names: expected {k} different names, got {len(set(self.names))}")
        named = [*(g for _, *groups in self.normalizers for g in groups), *(group for _, group in self.parts)]
        groups: list[Indices] = [*self.mirror, *self.normalizer, *self.lines, *named]
        for group in groups:
            if not all(0 <= i < k for i in group):
                raise InputError(f"expected indices from 0 to {k - 1}, got {list(group)}")
        if not all(named):
            raise InputError("expected one index or more in each normalizer and part, got none")
        paired = [i for pair in self.mirror for i in pair]
        if len(set(paired)) != len(paired):
            raise InputError("mirror: expected each keypoint in one pair at most")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mirrored(self) -> list[int]:
        """Permutation p of the indices such that mirrored_points = points[p]."""
        order = list(range(len(self.names)))
        for a, b in self.mirror:
            order[a], order[b] = b, a
        return order

    def scale(self, points: np.ndarray, normalizer: str | None = None) -> np.ndarray:
        """Compute the distance that errors are divided by: D of the paper's Eq. 4.

        Args:
            points: (..., K, 2) x, y.
            normalizer: Name of one of `normalizers`; without it `normalizer` is used.

        Returns:
            (...) distances, in the unit of the points.
        """
        named = {name: (a, b) for name, a, b in self.normalizers}
        a, b = self.normalizer if normalizer is None else named[normalizer]
        if not a or not b:
            extent = points.max(axis=-2) - points.min(axis=-2)
            return np.sqrt(extent[..., 0] * extent[..., 1])
        gap = points[..., list(a), :].mean(axis=-2) - points[..., list(b), :].mean(axis=-2)
        return np.linalg.norm(gap, axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """Return the set as JSON-compatible values, with the keys that files have."""
        return to_file_keys(asdict(self))

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> KeypointSet:
        """Return the set that `to_dict` was called on.

        Raises:
            InputError: A field is missing or has another type or range.
        """
        return decode(cls, from_file_keys(value), "keypoint set")


T = TypeVar("T")


def decode_described(kind: type[T], value: Any, where: str) -> T:
    """Decode metadata that has a keypoint set in its field `keypoints`; its keys may have a file's spelling.

    Args:
        kind: The structure (utils.schema), with a field `keypoints` of type KeypointSet.
        value: The metadata.
        where: The start of the message, such as the file.

    Raises:
        InputError: "WHERE: FIELD: expected X, got Y" for the first field that differs from the structure.
    """
    if isinstance(value, dict):
        value = from_file_keys(value)
        if isinstance(value.get("keypoints"), dict):
            value["keypoints"] = from_file_keys(value["keypoints"])
    return decode(kind, value, where)


def _described(keypoints: KeypointSet) -> str:
    shown = ", ".join(keypoints.names[:5])
    return f"{keypoints.name}: {shown}{', ...' if len(keypoints) > 5 else ''}"


def check_same_keypoints(expected: KeypointSet, actual: KeypointSet, where: str) -> None:
    """Check that two keypoint sets have the same names in the same order.

    Args:
        expected: The set that is needed.
        actual: The set that was given.
        where: The start of the message: the file or field that `actual` comes from.

    Raises:
        InputError: The names differ, in number, spelling or order.
    """
    if expected.names == actual.names:
        return
    message = f"{where}: expected {len(expected)} keypoints ({_described(expected)}), got "
    message += f"{len(actual)} ({_described(actual)})"
    if len(expected) == len(actual):
        i = next(i for i, (a, b) in enumerate(zip(expected.names, actual.names, strict=True)) if a != b)
        message += f"; keypoint {i + 1} must be {expected.names[i]}, got {actual.names[i]}"
    raise InputError(message)


FACE_5 = KeypointSet(
    name="face-5",
    names=("left_eye", "right_eye", "nose", "left_mouth", "right_mouth"),
    mirror=((0, 1), (3, 4)),
    normalizer=((0,), (1,)),
    lines=((0, 2, 1), (3, 2, 4)),
)

_PARTS_68 = (
    ("jaw", 17), ("left_brow", 5), ("right_brow", 5), ("nose_bridge", 4), ("nostrils", 5),
    ("left_eye", 6), ("right_eye", 6), ("outer_lip", 12), ("inner_lip", 8),
)  # fmt: skip
_MIRROR_68 = (
    *((i, 16 - i) for i in range(8)), *((17 + i, 26 - i) for i in range(5)), (31, 35), (32, 34),
    (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46),
    (48, 54), (49, 53), (50, 52), (59, 55), (58, 56), (60, 64), (61, 63), (67, 65),
)  # fmt: skip
FACE_68 = KeypointSet(
    name="face-68",
    names=tuple(f"{part}_{i + 1}" for part, n in _PARTS_68 for i in range(n)),
    mirror=_MIRROR_68,
    normalizer=((36, 39), (42, 45)),  # eye center = mean of its two corners (docs/protocol.md)
    lines=(
        tuple(range(17)), tuple(range(17, 22)), tuple(range(22, 27)), tuple(range(27, 31)),
        tuple(range(31, 36)), (*range(36, 42), 36), (*range(42, 48), 42), (*range(48, 60), 48),
        (*range(60, 68), 60),
    ),
    normalizers=(("outer", (36,), (45,)),),
    parts=(("49", tuple(i for i in range(17, 68) if i not in (60, 64))),),  # no jaw, no inner mouth corners
)  # fmt: skip

KEYPOINT_SETS = {s.name: s for s in (FACE_5, FACE_68)}
