"""Errors of a fitted model in pixels of the original images, and in millimeters where a pixel's size is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from recombinator.data.table import FaceTable
from recombinator.evaluation import metrics
from recombinator.evaluation.tables import evaluate_table
from recombinator.keypoints import RADII, SURE
from recombinator.models import KeypointNet

RADII_PIXELS = (2, 4, 8, 16)  # of the original images, for success rates
RADII_MM = (2.0, 2.5, 3.0, 4.0)  # the usual ones for cephalograms
SUSPICIOUS = 4.0  # times the keypoint's median error


@dataclass(frozen=True)
class Finding:
    """What a finder and its localizer found in whole images.

    Attributes:
        images: Number of images.
        objects: Annotated objects in them.
        found: Objects that were found.
        false: Detections that are no annotated object.
        missed: The places of the other objects in the points file.
    """

    images: int
    objects: int
    found: int
    false: int
    missed: list[str]

    @classmethod
    def joined(cls, parts: Sequence[Finding]) -> Finding:
        """Return the results on different images as one."""
        images, objects, found, false = (
            sum(getattr(p, name) for p in parts) for name in ("images", "objects", "found", "false")
        )
        return cls(images, objects, found, false, [where for p in parts for where in p.missed])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.found / self.objects, "false_per_image": self.false / self.images}

    def sentence(self) -> str:
        """Return the results in one line."""
        return finding_sentence(self.to_dict())


def finding_sentence(row: dict[str, Any]) -> str:
    """Return the values of `Finding.to_dict` in one line."""
    return (
        f"found {row['found']} of {row['objects']} objects ({100 * row['share']:.1f} %), "
        f"{row['false_per_image']:.2f} false detections per image"
    )


@dataclass
class Measured:
    """Predictions for N objects, in pixels of the original images.

    Attributes:
        true: (N, K, 2) annotated points; any value where `known` is False.
        predicted: (N, K, 2) predicted points.
        known: (N, K) whether a point is annotated.
        confidence: (N, K) confidence of each point.
        correct: (N, K) whether the annotated point is in the 7x7 network pixels around the prediction. The confidence
            is the probability of this.
        pixel: (N,) image pixels per pixel of the network's input.
        files: Names of the images.
        mm: (N,) millimeters per image pixel, NaN where not known.
        finding: For a model with a finder: counts of all objects. The N objects are those that were found.
    """

    true: np.ndarray
    predicted: np.ndarray
    known: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    pixel: np.ndarray
    files: list[str]
    mm: np.ndarray
    finding: Finding | None = None

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """Return the results of several models on different images as one."""
        names = ("true", "predicted", "known", "confidence", "correct", "pixel", "mm")
        arrays: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}
        finding = [p.finding for p in parts if p.finding]
        return cls(
            **arrays, files=[f for p in parts for f in p.files], finding=Finding.joined(finding) if finding else None
        )

    @property
    def errors(self) -> np.ndarray:
        """(N, K) distances between predicted and annotated points, NaN where not known."""
        return np.where(self.known, np.linalg.norm(self.predicted - self.true, axis=2), np.nan)

    @property
    def known_errors(self) -> np.ndarray:
        """(P,) distances of all known points."""
        return self.errors[self.known]

    def summary(self) -> dict[str, Any]:
        """Return errors in pixels of the original images, and shares of points within RADII_PIXELS.

        The errors are left out if there is no object, for example because a finder found none.
        """
        finding = {"finding": self.finding.to_dict()} if self.finding else {}
        errors = self.known_errors
        if not len(errors):
            return {"objects": 0, "points": 0, **finding}
        low, high = metrics.bootstrap_ci(np.nanmean(self.errors, axis=1))
        _, gap = metrics.reliability(self.confidence[self.known], self.correct[self.known])
        return {
            "objects": len(self.files), "points": len(errors), "median": float(np.median(errors)),
            "mean": float(errors.mean()), "mean_ci95": [low, high], "p95": float(np.quantile(errors, 0.95)),
            "largest": float(errors.max()),
            "within": {str(r): float((errors <= r).mean()) for r in RADII_PIXELS},
            "calibration_error": gap, **self._in_mm(), **finding,
        }  # fmt: skip

    def _in_mm(self) -> dict[str, Any]:
        """Return errors in millimeters, where the size of every pixel is known."""
        if not np.isfinite(self.mm).all():
            return {}
        errors = (self.errors * self.mm[:, None])[self.known]
        shares = {f"{r:g}": float((errors <= r).mean()) for r in RADII_MM}
        return {"mean_mm": float(errors.mean()), "median_mm": float(np.median(errors)), "within_mm": shares}

    def per_keypoint(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return one row per keypoint: name, known points, median and mean error, share within RADII_PIXELS."""
        rows = []
        for k, name in enumerate(names):
            errors = self.errors[self.known[:, k], k]
            row: dict[str, Any] = {"keypoint": name, "points": len(errors)}
            if len(errors):
                row |= {"median": float(np.median(errors)), "mean": float(errors.mean())}
                row |= {"within": {str(r): float((errors <= r).mean()) for r in RADII_PIXELS}}
            rows.append(row)
        return rows

    def sentence(self) -> str:
        """Return the errors in one line."""
        row = self.summary()
        finding = f"{self.finding.sentence()}, " if self.finding else ""
        if not row["points"]:
            return f"{finding}no errors to report"
        return finding + (
            f"median error {row['median']:.2f} pixels, mean {row['mean']:.2f}, "
            + ", ".join(f"{100 * v:.0f} % within {r}" for r, v in row["within"].items())
            + (f", mean {row['mean_mm']:.2f} mm" if "mean_mm" in row else "")
            + f" ({row['points']} points)"
        )

    def suspicion(self) -> tuple[np.ndarray, np.ndarray]:
        """Score how probably each point is a label error.

        Returns:
            (N, K) ratios of the error to the keypoint's median error, and (N, K) scores: the ratio times the
            confidence, 0 where the model is not sure or the point is not known.
        """
        errors = self.errors
        middle = np.array([np.nanmedian(e) if np.isfinite(e).any() else np.nan for e in errors.T])
        ratio = np.nan_to_num(errors / np.maximum(middle, 0.5))
        return ratio, np.where(self.confidence >= 0.5, ratio, 0) * self.confidence

    def suspects(self, names: Sequence[str], count: int = 20) -> list[dict[str, Any]]:
        """Rank probable label errors: points far from a prediction that the model is sure of.

        Args:
            names: The keypoints.
            count: Largest number of rows.

        Returns:
            One row per point, the most suspicious first: object (its index), file, keypoint, error in pixels, ratio to
            the keypoint's median error, and confidence.
        """
        errors, (ratio, score) = self.errors, self.suspicion()
        order = np.argsort(-score, axis=None)[:count]
        rows = []
        for i, k in zip(*np.unravel_index(order, score.shape), strict=True):
            if score[i, k] >= SUSPICIOUS:
                rows.append({
                    "object": int(i), "file": self.files[i], "keypoint": names[k], "error": float(errors[i, k]),
                    "ratio": float(ratio[i, k]), "confidence": float(self.confidence[i, k]),
                })  # fmt: skip
        return rows


def measure(net: KeypointNet, table: FaceTable, mm: np.ndarray | None = None) -> Measured:
    """Predict the objects of a table.

    Args:
        net: A network.
        table: The objects.
        mm: (N,) millimeters per image pixel; None: not known.
    """
    result = evaluate_table(net, table)
    corner, side = table.boxes[:, :2], table.boxes[:, 2:]

    def to_file(points: np.ndarray) -> np.ndarray:
        inside = points * (side / result.size)[:, None] + corner[:, None]
        return inside * table.to_file[:, 0, 0][:, None, None] + table.to_file[:, None, :, 2]

    near = np.abs(result.highest - result.true).max(axis=2) <= RADII[SURE] + 0.5
    return Measured(
        to_file(result.true), to_file(result.predicted), result.mask, result.within[..., SURE], near,
        result.file_pixels, list(result.files), np.full(len(table), np.nan) if mm is None else mm,
    )  # fmt: skip
