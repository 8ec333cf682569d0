"""A network on a table: points, confidences and errors in both protocols."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombinator.data.table import FaceTable, load_table
from recombinator.evaluation import metrics
from recombinator.keypoints import SURE, KeypointSet
from recombinator.models import Joint, KeypointNet
from recombinator.models.decode import answers
from recombinator.predict.engine import ENGINES, Engine, load_engine
from recombinator.transforms.augment import COVERED, Augment
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError
from recombinator.utils.files import write_atomically
from recombinator.weights.files import Weights
from recombinator.weights.shipped import is_graph

PAPER_GRID = 80


@dataclass
class Evaluation:
    """Per-sample results. All points in network input pixels (0..size); errors are shares of the normalizer."""

    size: int
    keypoints: KeypointSet
    files: list[str]
    subsets: list[str]  # the part of the dataset each image belongs to
    true: np.ndarray  # (N, K, 2)
    mask: np.ndarray  # (N, K)
    predicted: np.ndarray  # (N, K, 2), sub-pixel
    highest: np.ndarray  # (N, K, 2), center of the highest cell
    within: np.ndarray  # (N, K, 5), probabilities of the squares metrics.RADII around the highest cells
    limits: np.ndarray  # (N, 4) the photograph's left, top, right and bottom edge; predictions are clamped to it
    at_border: np.ndarray  # (N, K, 4), FaceTable.at_border
    file_pixels: np.ndarray  # (N,) pixels of the image's file that one network pixel spans
    attributes: dict[str, np.ndarray]  # FaceTable.attributes

    def errors(self, protocol: str, normalizer: str | None = None, oracle: bool = False) -> np.ndarray:
        """(N, K). "continuous": the sub-pixel prediction against the true position. "paper": highest cell against
        true cell, both whole numbers on the 80x80 grid, divided by the continuous distance (SPEC 4). `oracle`
        moves predictions of points that the truth has at the photograph's edge onto that edge."""
        scale = self.keypoints.scale(self.true, normalizer)
        true, found, limits = self.true, self.predicted, self.limits
        if protocol == "paper":
            k = PAPER_GRID / self.size
            true = np.clip(np.floor(true * k), 0, PAPER_GRID - 1)
            found, scale, limits = np.floor(self.highest * k), scale * k, np.round(limits * k)
        low, high = limits[:, None, :2], limits[:, None, 2:]
        if oracle:
            found = np.where(self.at_border[..., :2], low, np.where(self.at_border[..., 2:], high, found))
        return metrics.point_errors(np.clip(found, low, high), true, scale)

    def image_errors(
        self, protocol: str, normalizer: str | None = None, part: tuple[int, ...] | None = None, oracle: bool = False
    ) -> np.ndarray:
        """(N,) means over the keypoints, or over those of `part`; NaN for an image without a usable point."""
        chosen = list(part or range(len(self.keypoints)))
        return metrics.image_errors(self.errors(protocol, normalizer, oracle)[:, chosen], self.mask[:, chosen])

    def summary(self) -> dict[str, Any]:
        """Errors in percent, rates and areas in [0, 1]; per part of the dataset too where it has named parts."""
        names = sorted(set(self.subsets) - {""})
        kept = np.maximum(self.mask.sum(axis=0), 1)
        return {
            **self._figures(np.ones(len(self.files), bool)),
            "per_keypoint": (100 * (self.errors("continuous") * self.mask).sum(axis=0) / kept).tolist(),
            **({"subsets": {n: self._figures(np.array(self.subsets) == n) for n in names}} if names else {}),
            **({"by": {a: self._by_class(values) for a, values in self.attributes.items()}} if self.attributes else {}),
        }

    def _by_class(self, values: np.ndarray) -> list[dict[str, float]]:
        """Mean errors in percent of the images of each class of an attribute, as the table numbers them."""
        paper, continuous = (self.image_errors(p) for p in ("paper", "continuous"))
        usable = np.isfinite(continuous)
        parts = [(c, usable & (values == c)) for c in np.unique(values[usable]).tolist()]
        return [
            {"class": c, "images": int(m.sum()), "nme_paper": 100 * float(paper[m].mean()),
             "nme": 100 * float(continuous[m].mean())} for c, m in parts
        ]  # fmt: skip

    def _figures(self, which: np.ndarray) -> dict[str, Any]:
        which = which & self.mask.any(axis=1)

        def usable(errors: np.ndarray) -> np.ndarray:
            return errors[which]

        paper, continuous = (usable(self.image_errors(p)) for p in ("paper", "continuous"))
        found: dict[str, Any] = {"images": len(continuous)}
        for key, errors in (("nme_paper", paper), ("nme", continuous)):
            found[key] = 100 * float(errors.mean())
            found[f"{key}_ci95"] = [100 * v for v in metrics.bootstrap_ci(errors)]
        for name, _, _ in self.keypoints.normalizers:
            found[f"nme_{name}"] = 100 * float(usable(self.image_errors("continuous", name)).mean())
        for name, part in self.keypoints.parts:
            for key, protocol in (("nme_paper", "paper"), ("nme", "continuous")):
                found[f"{key}_{name}"] = 100 * float(usable(self.image_errors(protocol, part=part)).mean())
        found |= self._offset(which)
        if self.at_border.any():
            found["nme_paper_oracle"] = 100 * float(usable(self.image_errors("paper", oracle=True)).mean())
        return found | {"failure_rate_10": metrics.failure_rate(continuous), "auc_10": metrics.auc(continuous)}

    def _offset(self, which: np.ndarray) -> dict[str, Any]:
        """What of the continuous error is one constant: the median of (found - true), x and y in percent of the
        normalizer, and the mean error once it is taken off. It tells of the two sets' annotation, not of the faces."""
        scale = self.keypoints.scale(self.true)[:, None, None]
        signed = ((self.predicted - self.true) / scale)[which]
        kept = self.mask[which]
        constant = np.median(signed[kept], axis=0)
        rest = metrics.image_errors(np.linalg.norm(signed - constant, axis=2), kept)
        told = {"offset": (100 * constant).tolist(), "nme_without_offset": 100 * float(rest.mean())}
        # the same in the files' pixels, for small and large faces: a list whose numbers start elsewhere moves both by
        # as much, another habit of placing points grows with the face
        pixels = (self.predicted - self.true)[which] * self.file_pixels[which, None, None]
        faces = scale[which, 0, 0] * self.file_pixels[which]
        quarters = np.quantile(faces, (0.25, 0.75))
        for name, part in (("small", faces <= quarters[0]), ("large", faces >= quarters[1])):
            told[f"offset_file_pixels_{name}_quarter"] = np.median(pixels[part][kept[part]], axis=0).tolist()
            told[f"normaliser_file_pixels_{name}_quarter"] = float(np.median(faces[part]))
        return told


PROTOCOLS = {
    "paper": "highest cell against true cell on the 80x80 grid, divided by the normalizer, mean over keypoints "
    "and images; crop from the ground-truth keypoints, predictions clamped to the photograph, as the authors do",
    "continuous": "sub-pixel prediction against the true position, same normalizer, crop and clamping",
}


@torch.no_grad()
def evaluate_table(
    net: KeypointNet | Engine, table: FaceTable, augment: Augment | None = None, batch: int = 64
) -> Evaluation:
    """Runs `net` over the table; `augment` jitters every sample once, from seed 0 (the authors' validation)."""
    if isinstance(net, torch.nn.Module):
        device, size = next(net.parameters()).device, net.size
        net.eval()
    else:
        device, size = torch.device("cpu"), net.about.size
    parts = []
    for inputs, points in fixed_samples(table, size, augment, device, batch):
        if isinstance(net, torch.nn.Module):
            found: Any = answers(net, inputs)
        else:  # a graph takes whole gray levels
            found = net.run(inputs.round().clamp(0, 255).byte().numpy())
        told = (points, found.points, found.highest, found.within)
        parts.append([x.cpu().numpy() if isinstance(x, torch.Tensor) else x for x in told])
    true, predicted, highest, within = (np.concatenate(x) for x in zip(*parts, strict=True))
    corner, scale = np.tile(table.boxes[:, :2], 2), size / table.boxes[:, 2:]
    # a jittered crop is turned: its photograph's edges are no rectangle to clamp to
    limits = (
        (table.limits - corner) * scale
        if augment is None or not augment.moves
        else np.tile([-np.inf, -np.inf, np.inf, np.inf], (len(table), 1))
    )
    return Evaluation(
        size, table.info.keypoints, table.files, table.subsets, true.astype(float), table.mask,
        predicted.astype(float), highest.astype(float), within, limits, table.at_border,
        np.linalg.norm(table.to_file[:, :, 0], axis=1) / scale[:, 0], table.attributes,
    )  # fmt: skip


def evaluate(
    weights: str | os.PathLike[str], data: str | os.PathLike[str], *, limit: int | None = None, occlude: bool = False,
    engine: str = "torch",
) -> tuple[Evaluation, dict[str, Any]]:  # fmt: skip
    """`weights` (shipped name, file or run folder, exported graph) on the table `data`: per-sample results, and a
    report with errors in percent, both protocols by name, and how the network was trained. occlude: with one black
    rectangle of 20 to 50 pixels (of 80) on each image, the same at every call. engine: "torch", or "onnx",
    which a graph always is run by.

    Raises InputError if either cannot be read or their keypoints differ.
    """
    run: Any = load_engine(weights, "onnx" if engine in ENGINES and is_graph(weights) else engine)
    about = run.about
    table = load_table(data, about.channels, limit)
    if table.info.keypoints.names != about.keypoints.names:
        raise InputError(
            f"{data}: has {len(table.info.keypoints)} keypoints ({table.info.keypoints.name}), but {weights} "
            f"finds {len(about.keypoints)} ({about.keypoints.name})"
        )
    result = evaluate_table(getattr(run, "net", run), table, COVERED if occlude else None)
    report = {
        "weights": str(weights),
        "engine": "torch" if hasattr(run, "net") else "onnx",
        "keypoints": list(about.keypoints.names),
        "model": about.model,
        "data": {
            "dataset": table.info.dataset, "split": table.info.split, "images": len(table),
            "fingerprint": table.fingerprint,
        },
        **result.summary(),
        "protocols": PROTOCOLS,
        "normaliser": normalizer_text(table.info.keypoints),
        "crop": f"ground-truth keypoints, rule {table.info.crop_rule!r}",
        "decoder": {"nme_paper": "the cell of the coordinates", "nme": "coordinates as they are"}
        if about.model["name"].startswith("tcdcn")
        else {"nme_paper": "highest cell", "nme": "probability-weighted mean of 7x7 cells"},
        "grid": about.size,
        "occluded": occlude,
        "training": about.training,
        **({"int8": about.int8} if about.int8 else {}),
    }  # fmt: skip
    return result, report


def compare(
    weights: Sequence[str | os.PathLike[str]], data: str | os.PathLike[str], *, limit: int | None = None,
    occlude: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Networks on the same images: for each the mean error in percent, and its difference from the first one's with the
    95 % interval of the paired bootstrap; on all images, and on the tenth where the first one is worst.

    (Being chosen for the first one's errors, that tenth flatters every other network: some of a worst error is chance.)
    """
    if len(weights) < 2:
        raise InputError("compare wants two or more weights")
    results = [evaluate(w, data, limit=limit, occlude=occlude) for w in weights]
    rows = []
    for w, (result, report) in zip(weights, results, strict=True):
        row: dict[str, Any] = {"weights": str(w), "model": report["model"]["name"]}
        for key, protocol in (("nme_paper", "paper"), ("nme", "continuous")):
            first, own = results[0][0].image_errors(protocol), result.image_errors(protocol)
            usable = np.isfinite(first) & np.isfinite(own)
            order = np.argsort(-np.where(usable, first, -np.inf))
            worst = order[: max(1, round(usable.sum() / 10))]
            for part, which in (("all", np.flatnonzero(usable)), ("worst_tenth", worst)):
                difference = own[which] - first[which]
                row[f"{key}_{part}"] = 100 * float(own[which].mean())
                row[f"{key}_{part}_difference"] = 100 * float(difference.mean())
                row[f"{key}_{part}_difference_ci95"] = [100 * v for v in metrics.bootstrap_ci(difference)]
        rows.append(row)
    _, report = results[0]
    kept = ("data", "protocols", "normaliser", "crop", "decoder", "grid", "occluded")
    return {"images": report["images"], "rows": rows, **{k: report[k] for k in kept}}


@torch.no_grad()
def choose_joint(joint: Weights, data: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Errors in percent (paper's protocol) of the joint model on a validation table, plain and with a black rectangle,
    for several weights of the denoiser and numbers of iterations. Weight 0 is the image network alone."""
    net = joint.net
    if not isinstance(net, Joint):
        raise InputError("choosing weight and iterations needs a joint model")
    table = load_table(data, net.channels)
    if table.info.keypoints.names != joint.keypoints.names:
        raise InputError(f"{data}: its keypoints ({table.info.keypoints.name}) are not those of the joint model")
    rows = []
    for weight, iterations in ((0.0, 1), *((w, n) for w in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0) for n in (1, 2))):
        net.weight, net.iterations = weight, iterations
        plain, covered = (evaluate_table(net, table, a).image_errors("paper") for a in (None, COVERED))
        rows.append({
            "weight": weight, "iterations": iterations, "plain": 100 * float(np.nanmean(plain)),
            "occluded": 100 * float(np.nanmean(covered)),
        })  # fmt: skip
    return rows


def normalizer_text(keypoints: KeypointSet) -> str:
    """The normalizing distance in words."""
    a, b = keypoints.normalizer
    if not a or not b:
        return "geometric mean of the sides of the points' bounding box"

    def named(group: tuple[int, ...]) -> str:
        return " + ".join(keypoints.names[i] for i in group)

    return f"distance between {named(a)} and {named(b)}"


def write_per_image(path: Path, result: Evaluation) -> None:
    """One Parquet row an image: file, errors in both protocols (shares of the normalizer), per keypoint too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "file": result.files,
            "error_paper": result.image_errors("paper"),
            "error": result.image_errors("continuous"),
            "errors": result.errors("continuous").tolist(),
            "confidence": result.within[..., SURE].tolist(),
        }
    )
    write_atomically(path, lambda p: pq.write_table(table, p))
