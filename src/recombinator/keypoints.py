"""What a set of keypoints is: names, mirror pairs, the distance that normalizes errors, lines to draw."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recombinator.utils.files import from_file_keys, to_file_keys

RADII = (1, 2, 3, 5, 8)  # cells to each side of the highest one: probabilities are told for these squares


SURE = RADII.index(3)  # the one that is called confidence


@dataclass(frozen=True)
class KeypointSet:
    """An ordered set of K named keypoints.

    `mirror` holds the index pairs that change places when an image is flipped left to right.
    `normalizer` holds two groups of indices: errors are divided by the distance between the
    groups' mean positions (one index a group: the distance of two points). Empty groups mean
    "no pair": the side of the points' bounding box is used. `normalizers` are further ones by name, `parts`
    named subsets of the points that are reported apart.
    """

    name: str
    names: tuple[str, ...]
    mirror: tuple[tuple[int, int], ...] = ()
    normalizer: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    lines: tuple[tuple[int, ...], ...] = ()
    normalizers: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    parts: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def mirrored(self) -> list[int]:
        """Permutation p with flipped_points = points[p]."""
        order = list(range(len(self.names)))
        for a, b in self.mirror:
            order[a], order[b] = b, a
        return order

    def scale(self, points: np.ndarray, normalizer: str | None = None) -> np.ndarray:
        """Normalizing distance of (..., K, 2) points, shape (...): D of the paper's Eq. 4; by name one of
        `normalizers`."""
        a, b = self.normalizer if normalizer is None else {n: (a, b) for n, a, b in self.normalizers}[normalizer]
        if not a or not b:
            extent = points.max(axis=-2) - points.min(axis=-2)
            return np.sqrt(extent[..., 0] * extent[..., 1])
        gap = points[..., list(a), :].mean(axis=-2) - points[..., list(b), :].mean(axis=-2)
        return np.linalg.norm(gap, axis=-1)

    def to_dict(self) -> dict[str, Any]:
        return to_file_keys(asdict(self))

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> KeypointSet:
        def frozen(x: Any) -> Any:
            return tuple(frozen(y) for y in x) if isinstance(x, list | tuple) else x

        return cls(**{k: frozen(v) for k, v in from_file_keys(value).items()})


# "left" is the left of the image, as in MTFL's files.
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
    normalizer=((36, 39), (42, 45)),  # eye center = mean of its two corners (SPEC 4)
    lines=(
        tuple(range(17)), tuple(range(17, 22)), tuple(range(22, 27)), tuple(range(27, 31)),
        tuple(range(31, 36)), (*range(36, 42), 36), (*range(42, 48), 42), (*range(48, 60), 48),
        (*range(60, 68), 60),
    ),
    normalizers=(("outer", (36,), (45,)),),
    parts=(("49", tuple(i for i in range(17, 68) if i not in (60, 64))),),  # no jaw, no inner mouth corners
)  # fmt: skip

KEYPOINT_SETS = {s.name: s for s in (FACE_5, FACE_68)}
