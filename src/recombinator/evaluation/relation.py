"""Relate the squares of a finder to those of another crop rule, on annotated faces."""

from __future__ import annotations

import numpy as np

from recombinator.data.crops import RULES
from recombinator.data.squares import oriented_squares
from recombinator.data.table import FaceTable
from recombinator.keypoints import FACE_5, FACE_68, KeypointSet
from recombinator.utils.errors import InputError

FIVE_OF_68 = ((36, 39), (42, 45), (30,), (48,), (54,))  # corners of each eye, tip of the nose, corners of the mouth


def relation(finder_rule: str, keypoints: KeypointSet, table: FaceTable) -> tuple[float, float]:
    """Measure where a crop rule's square is relative to the finder's, by medians over a table.

    Args:
        finder_rule: The crop rule that the finder was trained with.
        keypoints: The keypoints that the finder was trained with.
        table: Crops by another rule, with 68 points.

    Returns:
        The side of the table's square and how far its center is below, both in sides of the finder's square.

    Raises:
        InputError: The finder's keypoints cannot be taken from the table's.
    """
    if keypoints.names != FACE_5.names or table.info.keypoints.names != FACE_68.names:
        raise InputError(
            f"{table.info.dataset}: a finder of {keypoints.name} can be related to tables of {FACE_68.name}, not of "
            f"{table.info.keypoints.name}"
        )
    rows = table.mask.all(axis=1)
    points = table.points[rows].astype(float)
    five = np.stack([points[:, list(indices)].mean(axis=1) for indices in FIVE_OF_68], axis=1)
    found = oriented_squares(five, np.ones(five.shape[:2], bool), RULES[finder_rule])
    wanted = oriented_squares(points, table.mask[rows], RULES[table.info.crop_rule])
    turn = np.radians(found[:, 3])
    gap = wanted[:, :2] - found[:, :2]
    below = gap[:, 1] * np.cos(turn) - gap[:, 0] * np.sin(turn)
    sides = np.nanmedian(wanted[:, 2] / found[:, 2]), np.nanmedian(below / found[:, 2])
    return round(float(sides[0]), 4), round(float(sides[1]), 4)
