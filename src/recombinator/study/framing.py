"""How five points of a face place the bounding square of all 68."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recombinator.evaluation.relation import FIVE_OF_68
from recombinator.predict.five_points import in_own_frame

NOISE = (0.0, 0.03)  # of the five points, in eye distances: about the error of the network that gives them
PENALTY = 1e-5  # ridge regression


def square_regression(points: np.ndarray, typical: Sequence[Sequence[float]] | np.ndarray, seed: int = 0) -> np.ndarray:
    """Fit the prediction that `FaceFramer` uses.

    Args:
        points: (N, 68, 2) annotated x, y of the faces.
        typical: (5, 2) typical points of the network that gives five points, in its crop.
        seed: Seed of the noise.

    Returns:
        (11, 3) matrix; see predict.five_points.SQUARES.
    """
    typical, rng = np.asarray(typical, np.float64), np.random.default_rng(seed)
    five = np.stack([points[:, list(group)].mean(axis=1) for group in FIVE_OF_68], axis=1).astype(np.float64)
    eyes = np.linalg.norm(five[:, 0] - five[:, 1], axis=1)[:, None, None]
    inputs, squares = [], []
    for noise in NOISE:
        noisy = five + noise * eyes * rng.normal(size=five.shape)
        row, linear = in_own_frame(noisy, typical)
        everything = (points - noisy.mean(axis=1, keepdims=True)) @ np.linalg.inv(linear).transpose(0, 2, 1)
        low, high = everything.min(axis=1), everything.max(axis=1)
        inputs.append(row)
        squares.append(np.concatenate([(low + high) / 2, (high - low).max(axis=1, keepdims=True)], axis=1))
    x, y = np.concatenate(inputs), np.concatenate(squares)
    fitted: np.ndarray = np.linalg.solve(x.T @ x + PENALTY * len(x) * np.eye(x.shape[1]), x.T @ y)
    return fitted
