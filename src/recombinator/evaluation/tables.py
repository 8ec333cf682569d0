"""Evaluate networks on a table, compare them, and choose the options of a joint model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recombinator.data.table import FaceTable
from recombinator.evaluation import metrics
from recombinator.evaluation.result import Evaluation as Evaluation
from recombinator.evaluation.sources import NetworkLike, TableLike, as_engine, as_table, name_of
from recombinator.keypoints import SURE, KeypointSet
from recombinator.models import Joint, KeypointNet
from recombinator.models.decode import Decoded
from recombinator.predict.engine import Engine, Predictions, TorchEngine
from recombinator.predict.session import check_finite
from recombinator.transforms.augment import OCCLUSION, Augment
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError
from recombinator.utils.files import write_atomically
from recombinator.weights.files import WeightsLike, load_weights

IN_MEMORY = 2.0  # gigabytes of decoded crops; those of a larger table are decoded batch by batch
PROTOCOLS = {
    "paper": "highest cell against true cell on the 80x80 grid, divided by the normalizer, mean over keypoints "
    "and images; crop from the ground-truth keypoints, predictions clamped to the photograph, as the authors do",
    "continuous": "sub-pixel prediction against the true position, same normalizer, crop and clamping",
}


@torch.no_grad()
def evaluate_table(net: KeypointNet | Engine, table: FaceTable, augment: Augment | None = None) -> Evaluation:
    """Run a network over a table.

    Args:
        net: A network, which is switched to evaluation mode, or an engine.
        table: Images with the network's channels and keypoints.
        augment: Change every sample once, always in the same way; None leaves the crops as they are.

    Returns:
        The results; they keep the table.
    """
    if not isinstance(net, torch.nn.Module):
        engine = net

        def run_engine(inputs: torch.Tensor) -> list[Predictions]:  # which takes whole gray levels
            return [engine.run(inputs.round().clamp(0, 255).byte().numpy())]

        return _results(run_engine, engine.about.size, table, augment, torch.device("cpu"))[0]
    net.eval()

    def run(inputs: torch.Tensor) -> list[Decoded]:
        decoded = net.decode(net(inputs))
        check_finite([decoded.points.cpu().numpy()], net.config.get("name", type(net).__name__))
        return [decoded]

    return _results(run, net.size, table, augment, next(net.parameters()).device)[0]


def _results(
    run: Callable[[torch.Tensor], Sequence[Decoded | Predictions]], size: int, table: FaceTable,
    augment: Augment | None, device: torch.device,
) -> list[Evaluation]:  # fmt: skip
    """Run one network or several over a table: `run` returns what each of them predicts for a batch of images."""
    batches: list[list[list[Any]]] = []  # by batch and network: true points, points, highest cells, probabilities
    for inputs, points in fixed_samples(table, size, augment, device):
        batches.append([[points, d.points, d.highest, d.within] for d in run(inputs)])
    corner, scale = np.tile(table.boxes[:, :2], 2), size / table.boxes[:, 2:]
    # In a jittered crop the photograph is rotated: its edges are no upright rectangle to clamp to.
    limits = (
        (table.limits - corner) * scale
        if augment is None or not augment.moves
        else np.tile([-np.inf, -np.inf, np.inf, np.inf], (len(table), 1))
    )
    results = []
    for parts in zip(*batches, strict=True):
        true, predicted, highest, within = (
            np.concatenate([x.cpu().numpy() if isinstance(x, torch.Tensor) else x for x in column])
            for column in zip(*parts, strict=True)
        )
        results.append(Evaluation(
            size=size, keypoints=table.info.keypoints, files=table.files, subsets=table.subsets,
            true=true.astype(float), mask=table.mask, predicted=predicted.astype(float), highest=highest.astype(float),
            within=within, limits=limits, at_border=table.at_border,
            file_pixels=np.linalg.norm(table.to_file[:, :, 0], axis=1) / scale[:, 0], attributes=table.attributes,
            table=table, augment=augment,
        ))  # fmt: skip
    return results


def evaluate(
    weights: NetworkLike, data: TableLike, *, limit: int | None = None, occlude: bool = False, engine: str = "torch"
) -> tuple[Evaluation, dict[str, Any]]:
    """Evaluate a network on a table.

    Args:
        weights: A shipped name, a weights file, a run folder, an exported graph, loaded weights, or an engine. The
            network of loaded weights is switched to evaluation mode.
        data: A table that `prepare` wrote, or one that `load_table` loaded.
        limit: Evaluate only the first images of the file.
        occlude: Occlude each image by one black rectangle of 20 to 50 pixels (of 80; footnote 9), the same at every
            call.
        engine: "torch" or "onnx". Exported graphs always run with ONNX Runtime.

    Returns:
        Results per image, and a report: errors in percent, both protocols by name, and how the network was trained.

    Raises:
        InputError: Weights or table cannot be read, or they do not fit each other.
    """
    loaded = as_engine(weights, engine)
    about = loaded.about
    table = as_table(data, about.keypoints, about.channels, name_of(weights), limit=limit, memory=IN_MEMORY)
    augment = OCCLUSION if occlude else None
    net = loaded.net if isinstance(loaded, TorchEngine) else loaded
    result = evaluate_table(net, table, augment)
    # decoding passes the coordinates of a regression network on unchanged
    regression = np.array_equal(result.highest, result.predicted)
    report = {
        "weights": name_of(weights),
        "engine": "torch" if isinstance(loaded, TorchEngine) else "onnx",
        "keypoints": list(about.keypoints.names),
        "model": about.model,
        "data": table.describe(),
        **result.summary(),
        "protocols": PROTOCOLS,
        "normaliser": normalizer_text(table.info.keypoints),
        "crop": f"ground-truth keypoints, rule {table.info.crop_rule!r}",
        "decoder": {"nme_paper": "the cell of the coordinates", "nme": "coordinates as they are"}
        if regression
        else {"nme_paper": "highest cell", "nme": "probability-weighted mean of 7x7 cells"},
        "grid": about.size,
        "occluded": occlude,
        "training": about.training,
        **({"int8": about.int8} if about.int8 else {}),
    }
    return result, report


def compare(
    weights: Sequence[NetworkLike], data: TableLike, *, limit: int | None = None, occlude: bool = False
) -> dict[str, Any]:
    """Compare networks on the same images, each with the first one.

    Args:
        weights: Two or more networks, in the forms that `evaluate` accepts.
        data: A table that `prepare` wrote, or a loaded one.
        limit: Use only the first images of the file.
        occlude: Occlude each image by one black rectangle; see `evaluate`.

    Returns:
        A report. For each network the mean error in percent, and its difference from the first one's with the 95 %
        interval of the paired bootstrap; on all images, and on the tenth where the first one is worst. That tenth is
        chosen by the first one's errors, so it favors every other network: part of a large error is chance.

    Raises:
        InputError: Fewer than two networks, or one does not fit the table.
    """
    if len(weights) < 2:
        raise InputError(f"compare needs two or more weights, got {len(weights)}")
    tables: dict[int, FaceTable] = {}  # by channels: networks share what is decoded
    results = []
    for network in weights:
        loaded = as_engine(network)
        channels = loaded.about.channels
        source = tables.get(channels, data)
        tables[channels] = as_table(source, loaded.about.keypoints, channels, name_of(network), limit=limit)
        results.append(evaluate(loaded, tables[channels], occlude=occlude))
    rows = []
    for network, (result, report) in zip(weights, results, strict=True):
        row: dict[str, Any] = {"weights": name_of(network), "model": report["model"]["name"]}
        for key, protocol in (("nme_paper", "paper"), ("nme", "continuous")):
            first, own = results[0][0].image_errors(protocol), result.image_errors(protocol)
            usable = np.isfinite(first) & np.isfinite(own)
            order = np.argsort(-np.where(usable, first, -np.inf))
            worst = order[: max(1, round(usable.sum() / 10))]
            for part, chosen in (("all", np.flatnonzero(usable)), ("worst_tenth", worst)):
                difference = own[chosen] - first[chosen]
                row[f"{key}_{part}"] = 100 * float(own[chosen].mean())
                row[f"{key}_{part}_difference"] = 100 * float(difference.mean())
                row[f"{key}_{part}_difference_ci95"] = [100 * v for v in metrics.bootstrap_ci(difference)]
        rows.append(row)
    report = results[0][1]
    shared = ("data", "protocols", "normaliser", "crop", "decoder", "grid", "occluded")
    return {"images": report["images"], "rows": rows, **{k: report[k] for k in shared}}


def choose_joint(joint: WeightsLike, data: TableLike) -> list[dict[str, float]]:
    """Measure a joint model (section 4) with several denoiser weights and numbers of iterations.

    Args:
        joint: Weights of a joint model; they are left as they were.
        data: A validation table: a file that `prepare` wrote, or a loaded one.

    Returns:
        One row per choice: `weight` of the denoiser (0: the image network alone), `iterations`, and the error in
        percent in the paper's protocol, `plain` and `occluded` by one black rectangle.

    Raises:
        InputError: The weights are not a joint model's, or do not fit the table.
    """
    loaded = load_weights(joint)
    net = loaded.net
    if not isinstance(net, Joint):
        raise InputError(f"{joint}: expected a joint model, which has a weight and a number of iterations to choose")
    table = as_table(data, loaded.keypoints, net.channels, str(joint))
    choices = [(0.0, 1), *((w, n) for w in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0) for n in (1, 2))]
    net.eval()

    def run(inputs: torch.Tensor) -> list[Decoded]:
        scores = net.image(inputs)  # once for all choices
        return [net.decode(net.total(scores, weight, iterations)) for weight, iterations in choices]

    with torch.no_grad():
        device = next(net.parameters()).device
        plain, occluded = (_results(run, net.size, table, augment, device) for augment in (None, OCCLUSION))
    errors = [[100 * float(np.nanmean(r.image_errors("paper"))) for r in results] for results in (plain, occluded)]
    return [
        {"weight": weight, "iterations": iterations, "plain": a, "occluded": b}
        for (weight, iterations), a, b in zip(choices, *errors, strict=True)
    ]


def normalizer_text(keypoints: KeypointSet) -> str:
    """Describe the normalizing distance of a keypoint set in words."""
    a, b = keypoints.normalizer
    if not a or not b:
        return "geometric mean of the sides of the points' bounding box"

    def names(group: tuple[int, ...]) -> str:
        return " + ".join(keypoints.names[i] for i in group)

    return f"distance between {names(a)} and {names(b)}"


def write_per_image(path: Path, result: Evaluation) -> None:
    """Write a Parquet file with one row per image.

    Args:
        path: File to write. Columns: file, the image's error in both protocols (shares of the normalizing distance),
            the error and the confidence of each keypoint.
        result: Results of `evaluate`.
    """
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
