"""Errors of keypoints: one value a sample everywhere; averages only at the edge."""

from __future__ import annotations

import numpy as np


def point_errors(predicted: np.ndarray, true: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(N, K, 2), (N, K, 2), (N,) -> (N, K) Euclidean distances divided by each image's scale: the terms of
    Eq. 4."""
    return np.linalg.norm(predicted - true, axis=-1) / scale[:, None]


def image_errors(errors: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """(N, K) -> (N,) means over the points that `mask` (N, K) keeps; NaN where it keeps none."""
    if mask is None:
        return errors.mean(axis=1)
    kept = mask.sum(axis=1)
    return np.where(kept > 0, np.where(mask, errors, 0).sum(axis=1) / np.maximum(kept, 1), np.nan)


def failure_rate(errors: np.ndarray, threshold: float = 0.1) -> float:
    """Share of (N,) image errors above `threshold`."""
    return float(np.mean(errors > threshold))


def cumulative(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of (N,) image errors at or below each threshold: the cumulative error distribution."""
    return np.searchsorted(np.sort(errors), thresholds, side="right") / len(errors)


def auc(errors: np.ndarray, threshold: float = 0.1) -> float:
    """Area under the cumulative error distribution up to `threshold`, divided by it (1 is perfect).

    Exact for the step curve: an image with error e adds max(0, threshold - e).
    """
    return float(np.mean(np.clip(threshold - errors, 0, None)) / threshold)


def bootstrap_ci(errors: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean of (N,) image errors, resampling images."""
    rng = np.random.default_rng(seed)
    means = [errors[rng.integers(0, len(errors), len(errors))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> tuple[list[dict[str, float]], float]:
    """(N,) probabilities and whether each came true -> equally full bins (mean probability, share that came true,
    count), least sure first, and the expected calibration error: the bins' mean absolute difference, weighted by
    count."""
    order = np.argsort(confidence, kind="stable")
    rows = [
        {"confidence": float(confidence[part].mean()), "right": float(right[part].mean()), "points": len(part)}
        for part in np.array_split(order, bins)
        if len(part)
    ]
    return rows, sum(abs(r["confidence"] - r["right"]) * r["points"] for r in rows) / max(len(order), 1)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a (N,) score is higher where `positive` than where not, ties counted half; NaN without both."""
    low, high = np.sort(score[~positive]), score[positive]
    if not len(low) or not len(high):
        return float("nan")
    below = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(below.mean() / 2 / len(low))
