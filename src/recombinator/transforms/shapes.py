"""Shapes without images: similarity fits, and two simple models as baselines for a denoiser."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def similarity(shape: np.ndarray, points: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit rotation, scale and shift that bring a shape to points, by weighted least squares.

    Args:
        shape: (K, 2) or (N, K, 2) x, y.
        points: (N, K, 2) x, y.
        weight: (N, K) weight of each point, 0 or more.

    Returns:
        (N, 2, 2) linear parts and (N, 2) shifts such that shape @ linear.T + shift is near the points.

    Raises:
        ValueError: All weights of a set are 0.
    """
    total = weight.sum(axis=1)
    if (total <= 0).any():
        raise ValueError("expected a positive weight in every set of points")
    a, b = (x[..., 0] + 1j * x[..., 1] for x in (np.broadcast_to(shape, points.shape), points))
    mean_a, mean_b = (weight * a).sum(1) / total, (weight * b).sum(1) / total
    a, b = a - mean_a[:, None], b - mean_b[:, None]
    turn = (weight * a.conj() * b).sum(1) / np.maximum((weight * np.abs(a) ** 2).sum(1), 1e-12)
    shift = mean_b - turn * mean_a
    linear = np.stack([np.stack([turn.real, -turn.imag], 1), np.stack([turn.imag, turn.real], 1)], 1)
    return linear, np.stack([shift.real, shift.imag], 1)


def apply_similarity(shape: np.ndarray, linear: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Apply N similarities to a (K, 2) shape or to (N, K, 2) shapes; returns (N, K, 2)."""
    return shape @ linear.transpose(0, 2, 1) + shift[:, None]


@dataclass
class ShapeModel:
    """A point distribution model: the mean shape and the principal components of aligned shapes.

    Attributes:
        mean: (K, 2) mean of the aligned shapes, which have a size of about 1.
        modes: (M, K, 2) principal components, each scaled to one standard deviation; M = 0 is the mean shape alone.
        noise: Variance of a coordinate that the modes do not explain.
    """

    mean: np.ndarray
    modes: np.ndarray
    noise: float

    @classmethod
    def fit(cls, points: np.ndarray, mask: np.ndarray, modes: int) -> ShapeModel:
        """Fit the model.

        Args:
            points: (N, K, 2) x, y, in any frame; missing points are filled in from the mean shape.
            mask: (N, K) False where a point is missing.
            modes: Principal components to keep.
        """
        mean = points[mask.all(axis=1)][0] if mask.all(axis=1).any() else points[0]
        weight = mask.astype(float)
        for _ in range(5):
            linear, shift = similarity(mean, points, weight)
            back = np.linalg.inv(linear)
            aligned = np.where(
                mask[..., None], apply_similarity(points - shift[:, None], back, np.zeros_like(shift)), mean
            )
            mean = aligned.mean(axis=0)
            mean = (mean - mean.mean(axis=0)) / np.sqrt(((mean - mean.mean(axis=0)) ** 2).sum(1).mean())
        flat = (aligned - aligned.mean(axis=0)).reshape(len(points), -1)
        mean = aligned.mean(axis=0)
        _, spread, axes = np.linalg.svd(flat, full_matrices=False)
        variance = spread**2 / len(points)
        kept = axes[:modes] * np.sqrt(variance[:modes, None])
        # as many modes as faces leave no variance: then a thousandth of the face's size is assumed
        noise = max(float(variance[modes:].sum() / max(flat.shape[1] - modes, 1)), 1e-6)
        return cls(mean, kept.reshape(-1, *mean.shape), noise)

    def complete(self, points: np.ndarray, known: np.ndarray, rounds: int = 3) -> np.ndarray:
        """Compute the most probable shapes given some of their points.

        Args:
            points: (N, K, 2) x, y, in any frame; those that are not known have any finite value.
            known: (N, K) True where a point is given.
            rounds: Alternations between the fit of frame and modes.

        Returns:
            (N, K, 2) shapes in the frame of the points.
        """
        n, k, _ = points.shape
        shapes, weight = np.broadcast_to(self.mean, points.shape), known.astype(float)
        for _ in range(rounds if len(self.modes) else 1):
            linear, shift = similarity(shapes, points, weight)
            back = np.linalg.inv(linear)
            rest = apply_similarity(points - shift[:, None], back, np.zeros_like(shift)) - self.mean
            if len(self.modes):
                modes = self.modes.reshape(len(self.modes), -1)
                twice = np.repeat(weight, 2, axis=1)
                normal = np.einsum("mi,ni,li->nml", modes, twice, modes) + self.noise * np.eye(len(modes))
                right = np.einsum("mi,ni->nm", modes, twice * rest.reshape(n, -1))
                found = np.linalg.solve(normal, right[..., None])[..., 0]
                shapes = self.mean + (found @ modes).reshape(n, k, 2)
        return apply_similarity(shapes, *similarity(shapes, points, weight))
