"""Points of different tools: mapping to five, constant offsets, matching with annotations, errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recombinator.evaluation.metrics import bootstrap_ci
from recombinator.evaluation.relation import FIVE_OF_68
from recombinator.keypoints import FACE_5
from recombinator.utils.errors import InputError

# frame of a face: eye centers, tip of the nose, corners of the mouth, in eye distances
TEMPLATE = np.array([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.6], [-0.4, 1.1], [0.4, 1.1]])
# by the number of a tool's points: those whose mean is each of the five
MAPPINGS: dict[int, tuple[tuple[int, ...], ...]] = {
    5: ((0,), (1,), (2,), (3,), (4,)),
    68: FIVE_OF_68,
    468: ((33, 133), (362, 263), (1,), (61,), (291,)),  # corners of each eye, as for 68 points
}


def to_five(points: np.ndarray, tool: str = "tool") -> np.ndarray:
    """Map the points of a face to five: eye centers, tip of the nose, corners of the mouth.

    Args:
        points: (K, 2), K one of MAPPINGS.
        tool: Name of the tool, for the message.

    Returns:
        (5, 2).

    Raises:
        InputError: There is no mapping for this number of points.
    """
    if len(points) not in MAPPINGS:
        raise InputError(f"{tool}: expected {', '.join(map(str, MAPPINGS))} points, got {len(points)}")
    return np.stack([points[list(indices)].mean(axis=0) for indices in MAPPINGS[len(points)]])


def _frame(five: np.ndarray) -> complex:
    """Fit TEMPLATE to five points by a similarity; returns scale and rotation as a complex number."""
    template = (TEMPLATE - TEMPLATE.mean(axis=0)) @ [1, 1j]
    points = (five - five.mean(axis=0)) @ [1, 1j]
    return complex(np.vdot(template, points) / np.vdot(template, template).real)


def offsets(predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> np.ndarray:
    """Estimate a tool's constant offset per keypoint, in the frame of the predicted face.

    Args:
        predicted: (5, 2) each.
        true: (5, 2) each, in the same order; NaN for a point that is not annotated.

    Returns:
        (5, 2) median of true minus predicted points, in units of TEMPLATE; 0 where there is nothing to estimate from.
    """
    result = np.zeros((5, 2))
    frames = [_frame(p) for p in predicted]
    rows = [((t - p) @ [1, 1j]) / f for p, t, f in zip(predicted, true, frames, strict=True) if abs(f) > 0]
    for k, values in enumerate(np.array(rows).reshape(-1, 5).T):
        known = values[np.isfinite(values)]
        if len(known):
            result[k] = np.median(known.real), np.median(known.imag)
    return result


def correct(five: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Add an offset of `offsets` to the (5, 2) predicted points of a face."""
    moved = (offset @ [1, 1j]) * _frame(five)
    result: np.ndarray = five + np.stack([moved.real, moved.imag], axis=1)
    return result


@dataclass
class Found:
    """What one tool found of the faces of a table; None for a face that it did not find."""

    five: list[np.ndarray | None] = field(default_factory=list)
    errors_all: list[float] = field(default_factory=list)  # of all points, where they are those of the table
    others: int = 0

    def offsets(self, five: np.ndarray) -> np.ndarray:
        """Estimate the tool's (5, 2) offsets from the faces that it found; `five` holds the annotations."""
        pairs = [(p, t) for p, t in zip(self.five, five, strict=True) if p is not None]
        return offsets([p for p, _ in pairs], [t for _, t in pairs])


def _mean(errors: np.ndarray, key: str) -> dict[str, Any]:
    """Return a mean error in percent with its interval, None where there is none."""
    if not len(errors):
        return {key: None, f"{key}_ci95": None}
    return {key: 100 * float(errors.mean()), f"{key}_ci95": [100 * v for v in bootstrap_ci(errors)]}


def summarize(
    titles: Sequence[str], founds: Sequence[Found], five: np.ndarray, corrections: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Compute the rows of a report for one set of photographs.

    Args:
        titles: Names of the tools.
        founds: What each tool found.
        five: (N, 5, 2) annotations in the order of `founds`.
        corrections: (5, 2) offsets of each tool, from `offsets`.

    Returns:
        One row per tool.
    """
    eyes = FACE_5.scale(five)
    shared = np.array([all(f.five[i] is not None for f in founds) for i in range(len(five))], bool)
    rows = []
    for title, found, offset in zip(titles, founds, corrections, strict=True):
        plain, corrected = np.full(len(five), np.nan), np.full(len(five), np.nan)
        for i, points in enumerate(found.five):
            if points is not None:
                plain[i] = np.nanmean(np.linalg.norm(points - five[i], axis=1)) / eyes[i]
                corrected[i] = np.nanmean(np.linalg.norm(correct(points, offset) - five[i], axis=1)) / eyes[i]
        hit = np.isfinite(plain)
        rows.append({
            "tool": title, "faces": len(five), "found": int(hit.sum()), "others": found.others,
            "shared": int(shared.sum()), **_mean(plain[hit], "nme"), **_mean(plain[shared], "nme_shared"),
            **_mean(corrected[shared], "nme_corrected"), **_mean(np.array(found.errors_all), "nme_68"),
        })  # fmt: skip
    return rows
