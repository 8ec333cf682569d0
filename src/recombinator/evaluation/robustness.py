"""Measure the error under worse crops and worse images, one disturbance at a time (not in the paper)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Generator, Tensor

from recombinator.data.table import FaceTable
from recombinator.evaluation import metrics
from recombinator.evaluation.plots import COLORS, new_figure, save
from recombinator.evaluation.sources import TableLike, as_table, identity
from recombinator.models.base import check_takes_images
from recombinator.transforms.affine import apply, box_affine, invert, warp
from recombinator.transforms.augment import blurred, occluded
from recombinator.weights.files import WeightsLike, load_weights

Disturb = Callable[[Tensor, float, Generator], Tensor]  # (images, strength, random numbers) -> images


def _jpeg(pixels: Tensor, quality: float, generator: Generator) -> Tensor:
    out = []
    for image in pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy():
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
        decoded = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if image.shape[2] == 1 else cv2.IMREAD_COLOR)
        out.append(torch.from_numpy(decoded).reshape(image.shape).permute(2, 0, 1))
    return torch.stack(out).float()


def _noise(pixels: Tensor, deviation: float, generator: Generator) -> Tensor:
    return (pixels + deviation * torch.randn(pixels.shape, generator=generator)).clamp(0, 255)


def _occluded(pixels: Tensor, side: float, generator: Generator) -> Tensor:
    return occluded(pixels, (int(side), int(side)), generator) if side else pixels


# disturbances of the network's input: name -> (unit, values, function)
PICTURE: dict[str, tuple[str, tuple[float, ...], Disturb]] = {
    "rectangle": ("side of a black square, pixels of 80", (0, 10, 20, 30, 40, 50, 60), _occluded),
    "blur": ("Gaussian, sigma in pixels", (0, 0.5, 1, 1.5, 2, 3), lambda x, v, g: blurred(x, torch.full((len(x),), v))),
    "noise": ("standard deviation, gray levels", (0, 5, 10, 20, 40, 60), _noise),
    "brightness": ("factor", (0.1, 0.25, 0.5, 1, 1.5, 2, 3), lambda x, v, g: (x * v).clamp(0, 255)),
    "jpeg": ("quality", (100, 50, 30, 20, 10, 5), _jpeg),
}
# disturbances of the crop: name -> (unit, values); the strength is the same for every image, the direction is random
CROP: dict[str, tuple[str, tuple[float, ...]]] = {
    "shift": ("share of the crop's side", (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)),
    "scale": ("crop's side, times", (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3)),
    "rotation": ("degrees, either way", (0, 10, 20, 30, 40, 50, 60)),
}


def samples(table: FaceTable, size: int, name: str, value: float) -> tuple[Tensor, Tensor]:
    """Make network inputs under one disturbance, the same at every call.

    Args:
        table: Images and points.
        size: Side of the network's input in pixels.
        name: A key of PICTURE or CROP.
        value: Strength, in the disturbance's unit.

    Returns:
        (N, C, size, size) images, values 0 to 255, and (N, K, 2) true points in network pixels.
    """
    generator = Generator().manual_seed(0)
    n, boxes = len(table), torch.from_numpy(table.boxes)
    angle = 2 * torch.pi * torch.rand(n, generator=generator)
    changes: dict[str, Tensor] = {}
    if name == "shift":
        changes["shift"] = value * torch.stack([angle.cos(), angle.sin()], 1)
    elif name == "scale":
        changes["zoom"] = torch.full((n,), value)
    elif name == "rotation":
        changes["degrees"] = torch.where(angle < torch.pi, value, -value)
    to_source = box_affine(boxes, size, **changes)
    pixels = warp(torch.from_numpy(table.images), to_source, size)
    if name in PICTURE:
        pixels = PICTURE[name][2](pixels, value, generator)
    return pixels, apply(invert(to_source), torch.from_numpy(table.points))


@torch.no_grad()
def measure(
    weights: Sequence[WeightsLike], data: TableLike, *, limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure networks under every disturbance.

    Args:
        weights: Shipped names, weights files, run folders, or loaded weights.
        data: A table that `prepare` wrote, or a loaded one.
        limit: Use this number of images, drawn over the whole file.
        progress: Called with (disturbances done, disturbances in all).

    Returns:
        A report with one row per disturbance, strength and network: the mean error in percent, continuous, of the
        points inside the crop.

    Raises:
        InputError: A network takes no images, or does not fit the table.
    """
    networks = [(str(w), load_weights(w)) for w in weights]
    tables: dict[int, FaceTable] = {}  # by channels
    for label, loaded in networks:
        check_takes_images(loaded.net, label)
        channels = loaded.net.channels
        source = tables.get(channels, data)
        tables[channels] = as_table(source, loaded.keypoints, channels, label, limit=limit, spread=True)
        loaded.net.eval()
    disturbances = CROP | {name: (unit, values) for name, (unit, values, _) in PICTURE.items()}
    settings = [(name, unit, v) for name, (unit, values) in disturbances.items() for v in values]
    rows: list[dict[str, Any]] = []
    for done, (name, unit, value) in enumerate(settings, 1):
        for label, loaded in networks:
            net, table = loaded.net, tables[loaded.net.channels]
            pixels, points = samples(table, net.size, name, value)
            predicted = torch.cat([net.decode(net(part)).points for part in pixels.split(64)])
            inside = ((points >= 0) & (points < net.size)).all(dim=2).numpy() & table.mask
            scale = table.info.keypoints.scale(points.double().numpy())
            errors = metrics.image_errors(metrics.point_errors(predicted.numpy(), points.numpy(), scale), inside)
            row = {"disturbance": name, "unit": unit, "value": value, "weights": label}
            rows.append({**row, "nme": 100 * float(np.nanmean(errors))})
        progress(done, len(settings))
    table = next(iter(tables.values()))
    return {
        "images": len(table), "rows": rows, "data": identity(table),
        "protocol": "one disturbance at a time on the crop from the true points; continuous error of the points inside "
        "the crop; what is beyond the stored crop is black",
    }  # fmt: skip


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """Plot a report of `measure`: one panel per disturbance, one line per network.

    Args:
        report: What `measure` returns.
        folder: Folder to write to.

    Returns:
        The files, robustness-DATASET.png and .pdf.
    """
    names = list(dict.fromkeys(r["disturbance"] for r in report["rows"]))
    figure = new_figure(9, 4.6)
    colors = dict(zip(dict.fromkeys(r["weights"] for r in report["rows"]), cycle(COLORS), strict=False))
    for axes, name in zip(figure.subplots(2, 4).flat, names, strict=True):
        rows = [r for r in report["rows"] if r["disturbance"] == name]
        for w, color in colors.items():
            line = [(r["value"], r["nme"]) for r in rows if r["weights"] == w]
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3, color=color, label=Path(w).name)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel(rows[0]["unit"], fontsize=7)
        axes.tick_params(labelsize=7)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    for axes in figure.axes[::4]:
        axes.set_ylabel("error, %", fontsize=8)
    return save(figure, folder, f"robustness-{report['data']['dataset']}")
