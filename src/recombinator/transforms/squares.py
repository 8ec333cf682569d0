"""Squares around objects: what a crop rule cuts after the rotation to upright. A finder learns them."""

from __future__ import annotations

import numpy as np

from recombinator.data.crops import CropRule
from recombinator.transforms.shapes import ShapeModel, similarity

FINE = 100.0  # the rules cut whole pixels; points are scaled up by this, so that a hundredth of a pixel counts
FAR = 1e7  # a frame so large that no rule moves a square back inside it


def oriented_squares(points: np.ndarray, mask: np.ndarray, rule: CropRule) -> np.ndarray:
    """Return the squares that a crop rule cuts around objects after their rotation to upright.

    An object is upright where it has the mean orientation of all objects.

    Args:
        points: (N, K, 2) x, y in pixels, K at least 2.
        mask: (N, K) False where a point is unknown; at least two are known in each row.
        rule: The crop rule of the localizer.

    Returns:
        (N, 4) center x, y and side in pixels, and rotation in degrees, clockwise on the screen, from -180 to 180. A
        row is NaN where the rule gives no square.
    """
    mean = ShapeModel.fit(points, mask, 0).mean
    linear, shift = similarity(mean, points, mask.astype(float))
    turn = linear[:, 0, 0] + 1j * linear[:, 1, 0]
    middle = np.mean(turn / np.maximum(np.abs(turn), 1e-9))
    angle = np.angle(turn * np.conj(middle))
    filled = np.where(mask[..., None], points, mean @ linear.transpose(0, 2, 1) + shift[:, None])
    out = np.full((len(points), 4), np.nan)
    for i, (one, a) in enumerate(zip(filled, angle, strict=True)):
        back = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
        origin = one.mean(axis=0)
        x, y, side = rule.box((one - origin) @ back.T * FINE + FAR / 2, rule.stage2, int(FAR), int(FAR))
        if side > 0:
            center = (np.array([x, y]) + side / 2 - FAR / 2) / FINE
            out[i] = [*(center @ back + origin), side / FINE, np.degrees(a)]
    return out
