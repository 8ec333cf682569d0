"""Results of a network on a table, one per image, and their summary in both protocols (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from recombinator.data.table import FaceTable
from recombinator.evaluation import metrics
from recombinator.keypoints import KeypointSet
from recombinator.transforms.augment import Augment
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError

PAPER_GRID = 80  # side of the paper's score maps in cells (section 3.1)


@dataclass
class Evaluation:
    """Results of a network, one per image. Points are in network input pixels, x right, y down, 0 to `size`.

    Attributes:
        size: Side of the network's input in pixels.
        keypoints: The keypoint set.
        files: N file names of the images.
        subsets: N names of the part of the dataset that each image belongs to, "" where it has no named parts.
        true: (N, K, 2) true points.
        mask: (N, K), False for a point that must not be used.
        predicted: (N, K, 2) predicted points, sub-pixel.
        highest: (N, K, 2) centers of the highest cells.
        within: (N, K, 5) probabilities of the squares keypoints.RADII around the highest cells.
        limits: (N, 4) left, top, right and bottom edge of the photograph; predictions are clamped to it.
        at_border: (N, K, 4), FaceTable.at_border.
        file_pixels: (N,) pixels of the image's file per network pixel.
        attributes: (N,) classes by the attribute's name.
        table: The table; None for results from elsewhere.
        augment: How the crops were changed before the network saw them.
    """

    size: int
    keypoints: KeypointSet
    files: list[str]
    subsets: list[str]
    true: np.ndarray
    mask: np.ndarray
    predicted: np.ndarray
    highest: np.ndarray
    within: np.ndarray
    limits: np.ndarray
    at_border: np.ndarray
    file_pixels: np.ndarray
    attributes: dict[str, np.ndarray]
    table: FaceTable | None = field(default=None, repr=False)
    augment: Augment | None = None

    def inputs(self, rows: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return images as the network saw them, cut from the table again.

        Args:
            rows: R indices of images; by default all.

        Returns:
            (R, C, size, size) float32, values 0 to 255, in the order of `rows`.

        Raises:
            InputError: These results come without a table.
        """
        if self.table is None:
            raise InputError("these results have no table to cut the images from")
        chosen = np.arange(len(self.files)) if rows is None else np.asarray(rows)
        images = np.empty((len(chosen), self.table.images.shape[1], self.size, self.size), np.float32)
        start = 0
        for batch, _ in fixed_samples(self.table, self.size, self.augment, torch.device("cpu")):
            here = (chosen >= start) & (chosen < start + len(batch))
            images[here] = batch.numpy()[chosen[here] - start]
            start += len(batch)
        return images

    def errors(self, protocol: str, normalizer: str | None = None, oracle: bool = False) -> np.ndarray:
        """Compute the error of each keypoint: a term of Eq. 4.

        Args:
            protocol: "continuous": the sub-pixel prediction against the true position. "paper": the highest cell
                against the true cell, both whole numbers on the 80x80 grid, divided by the continuous distance.
            normalizer: One of the keypoint set's `normalizers`; by default its usual one.
            oracle: Move predictions of points that the truth has at the photograph's edge onto that edge, as the
                authors' 300-W code does.

        Returns:
            (N, K) errors as shares of the normalizing distance.
        """
        scale = self.keypoints.scale(self.true, normalizer)
        true, predicted, limits = self.true, self.predicted, self.limits
        if protocol == "paper":
            k = PAPER_GRID / self.size
            true = np.clip(np.floor(true * k), 0, PAPER_GRID - 1)
            predicted, scale, limits = np.floor(self.highest * k), scale * k, np.round(limits * k)
        low, high = limits[:, None, :2], limits[:, None, 2:]
        if oracle:
            predicted = np.where(self.at_border[..., :2], low, np.where(self.at_border[..., 2:], high, predicted))
        return metrics.point_errors(np.clip(predicted, low, high), true, scale)

    def image_errors(
        self, protocol: str, normalizer: str | None = None, part: tuple[int, ...] | None = None, oracle: bool = False
    ) -> np.ndarray:
        """Compute the mean error of each image.

        Args:
            protocol: "paper" or "continuous"; see `errors`.
            normalizer: One of the keypoint set's `normalizers`; by default its usual one.
            part: Indices of the keypoints that count; by default all.
            oracle: See `errors`.

        Returns:
            (N,) means over the keypoints; NaN for an image without a usable one.
        """
        chosen = list(part or range(len(self.keypoints)))
        return metrics.image_errors(self.errors(protocol, normalizer, oracle)[:, chosen], self.mask[:, chosen])

    def summary(self) -> dict[str, Any]:
        """Summarize the errors: over all images, per keypoint, per subset and per class of each attribute.

        Returns:
            Errors in percent of the normalizing distance; rates and areas in [0, 1].
        """
        names = sorted(set(self.subsets) - {""})
        counts = np.maximum(self.mask.sum(axis=0), 1)
        return {
            **self._statistics(np.ones(len(self.files), bool)),
            "per_keypoint": (100 * (self.errors("continuous") * self.mask).sum(axis=0) / counts).tolist(),
            **({"subsets": {n: self._statistics(np.array(self.subsets) == n) for n in names}} if names else {}),
            **({"by": {a: self._by_class(values) for a, values in self.attributes.items()}} if self.attributes else {}),
        }

    def _by_class(self, values: np.ndarray) -> list[dict[str, float]]:
        """Return the mean errors in percent for each class of an attribute: (N,) classes as the table numbers them."""
        paper, continuous = (self.image_errors(p) for p in ("paper", "continuous"))
        usable = np.isfinite(continuous)
        classes = [(c, usable & (values == c)) for c in np.unique(values[usable]).tolist()]
        return [
            {"class": c, "images": int(m.sum()), "nme_paper": 100 * float(paper[m].mean()),
             "nme": 100 * float(continuous[m].mean())} for c, m in classes
        ]  # fmt: skip

    def _statistics(self, chosen: np.ndarray) -> dict[str, Any]:
        """Return the summary over the images that the (N,) mask `chosen` includes."""
        chosen = chosen & self.mask.any(axis=1)

        def percent(errors: np.ndarray) -> float:
            return 100 * float(errors[chosen].mean())

        by_protocol = {"nme_paper": "paper", "nme": "continuous"}
        row: dict[str, Any] = {"images": int(chosen.sum())}
        for key, protocol in by_protocol.items():
            errors = self.image_errors(protocol)
            row[key] = percent(errors)
            row[f"{key}_ci95"] = [100 * v for v in metrics.bootstrap_ci(errors[chosen])]
        for name, _, _ in self.keypoints.normalizers:
            row[f"nme_{name}"] = percent(self.image_errors("continuous", name))
        for name, part in self.keypoints.parts:
            for key, protocol in by_protocol.items():
                row[f"{key}_{name}"] = percent(self.image_errors(protocol, part=part))
        row |= self._offset(chosen)
        if self.at_border.any():
            row["nme_paper_oracle"] = percent(self.image_errors("paper", oracle=True))
        continuous = self.image_errors("continuous")[chosen]
        return row | {"failure_rate_10": metrics.failure_rate(continuous), "auc_10": metrics.auc(continuous)}

    def _offset(self, chosen: np.ndarray) -> dict[str, Any]:
        """Measure how much of the continuous error is one constant offset, which comes from how points are annotated.

        Args:
            chosen: (N,) mask of the images that count.

        Returns:
            The median of (predicted - true), x and y in percent of the normalizing distance, and the mean error without
            it; the same median in the files' pixels for the quarters of small and of large faces.
        """
        scale = self.keypoints.scale(self.true)[:, None, None]
        signed = ((self.predicted - self.true) / scale)[chosen]
        mask = self.mask[chosen]
        constant = np.median(signed[mask], axis=0)
        rest = metrics.image_errors(np.linalg.norm(signed - constant, axis=2), mask)
        row = {"offset": (100 * constant).tolist(), "nme_without_offset": 100 * float(rest.mean())}
        # A list whose pixel coordinates start elsewhere shifts small and large faces by the same number of pixels;
        # another habit of annotation grows with the face.
        pixels = (self.predicted - self.true)[chosen] * self.file_pixels[chosen, None, None]
        faces = scale[chosen, 0, 0] * self.file_pixels[chosen]
        quarters = np.quantile(faces, (0.25, 0.75))
        for name, part in (("small", faces <= quarters[0]), ("large", faces >= quarters[1])):
            row[f"offset_file_pixels_{name}_quarter"] = np.median(pixels[part][mask[part]], axis=0).tolist()
            row[f"normaliser_file_pixels_{name}_quarter"] = float(np.median(faces[part]))
        return row
