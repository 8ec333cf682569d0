"""Errors of keypoints and quality of probabilities: one value per sample, averaged only where a report is made."""

from __future__ import annotations

import numpy as np


def point_errors(predicted: np.ndarray, true: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Compute the terms of Eq. 4: distances divided by a normalizing distance.

    Args:
        predicted: (N, K, 2) points.
        true: (N, K, 2) points in the same coordinates.
        scale: (N,) normalizing distance of each image, D in Eq. 4, in the same unit.

    Returns:
        (N, K) errors as shares of the normalizing distance.
    """
    return np.linalg.norm(predicted - true, axis=-1) / scale[:, None]


def image_errors(errors: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Average errors over the keypoints of each image.

    Args:
        errors: (N, K) errors.
        mask: (N, K), True for the keypoints that count; by default all.

    Returns:
        (N,) means; NaN for an image without a keypoint that counts.
    """
    if mask is None:
        return errors.mean(axis=1)
    counts = mask.sum(axis=1)
    return np.where(counts > 0, np.where(mask, errors, 0).sum(axis=1) / np.maximum(counts, 1), np.nan)


def failure_rate(errors: np.ndarray, threshold: float = 0.1) -> float:
    """Return the share of (N,) image errors above `threshold`."""
    return float(np.mean(errors > threshold))


def cumulative(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Compute the cumulative error distribution (CED).

    Args:
        errors: (N,) image errors.
        thresholds: (T,) errors at which the distribution is computed.

    Returns:
        (T,) shares of the images with an error at or below each threshold.
    """
    return np.searchsorted(np.sort(errors), thresholds, side="right") / len(errors)


def auc(errors: np.ndarray, threshold: float = 0.1) -> float:
    """Compute the area under the cumulative error distribution up to `threshold`, divided by it (1 is perfect).

    Exact for the step curve: an image with error e adds max(0, threshold - e).

    Args:
        errors: (N,) image errors.
        threshold: Largest error that counts.
    """
    return float(np.mean(np.clip(threshold - errors, 0, None)) / threshold)


def bootstrap_ci(errors: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0) -> tuple[float, float]:
    """Compute the bootstrap percentile interval of a mean, resampling images.

    Args:
        errors: (N,) image errors, or differences of them.
        level: Confidence level.
        draws: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        Lower and upper end.
    """
    rng = np.random.default_rng(seed)
    means = [errors[rng.integers(0, len(errors), len(errors))].mean() for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 10) -> tuple[list[dict[str, float]], float]:
    """Compute a reliability curve and the expected calibration error.

    Args:
        confidence: (N,) predicted probabilities.
        correct: (N,) whether each predicted event came true.
        bins: Number of bins with equal counts.

    Returns:
        One row per bin, lowest confidence first: mean probability (`confidence`), share that came true (`right`) and
        count (`points`); and the mean absolute difference of the two over the bins, weighted by count.
    """
    order = np.argsort(confidence, kind="stable")
    rows = [
        {"confidence": float(confidence[part].mean()), "right": float(correct[part].mean()), "points": len(part)}
        for part in np.array_split(order, bins)
        if len(part)
    ]
    return rows, sum(abs(r["confidence"] - r["right"]) * r["points"] for r in rows) / max(len(order), 1)


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Compute the area under the ROC curve: the probability that a positive has the higher score, ties count half.

    Args:
        score: (N,) scores.
        positive: (N,) whether each sample is a positive.

    Returns:
        The area, in [0, 1]; NaN without samples of both kinds.
    """
    negatives, positives = np.sort(score[~positive]), score[positive]
    if not len(negatives) or not len(positives):
        return float("nan")
    below = np.searchsorted(negatives, positives, "left") + np.searchsorted(negatives, positives, "right")
    return float(below.mean() / 2 / len(negatives))
