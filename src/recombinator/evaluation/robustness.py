"""What the paper does not measure: error against a worse crop and a worse picture, one disturbance at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Generator, Tensor

from recombinator.data.table import FaceTable, load_table
from recombinator.evaluation import metrics
from recombinator.evaluation.plots import COLORS, new_figure, save
from recombinator.models.base import check_takes_images
from recombinator.models.decode import answers
from recombinator.transforms.affine import apply, box_affine, invert, warp
from recombinator.transforms.augment import blurred, occluded
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights

Pixels = Callable[[Tensor, float, Generator], Tensor]


def _jpeg(pixels: Tensor, quality: float, generator: Generator) -> Tensor:
    out = []
    for image in pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy():
        _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
        back = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if image.shape[2] == 1 else cv2.IMREAD_COLOR)
        out.append(torch.from_numpy(back).reshape(image.shape).permute(2, 0, 1))
    return torch.stack(out).float()


def _noise(pixels: Tensor, deviation: float, generator: Generator) -> Tensor:
    return (pixels + deviation * torch.randn(pixels.shape, generator=generator)).clamp(0, 255)


def _covered(pixels: Tensor, side: float, generator: Generator) -> Tensor:
    return occluded(pixels, (int(side), int(side)), generator) if side else pixels


# of the network's input: name -> (unit, values, what happens to the pixels)
PICTURE: dict[str, tuple[str, tuple[float, ...], Pixels]] = {
    "rectangle": ("side of a black square, pixels of 80", (0, 10, 20, 30, 40, 50, 60), _covered),
    "blur": ("Gaussian, sigma in pixels", (0, 0.5, 1, 1.5, 2, 3), lambda x, v, g: blurred(x, torch.full((len(x),), v))),
    "noise": ("standard deviation, gray levels", (0, 5, 10, 20, 40, 60), _noise),
    "brightness": ("factor", (0.1, 0.25, 0.5, 1, 1.5, 2, 3), lambda x, v, g: (x * v).clamp(0, 255)),
    "jpeg": ("quality", (100, 50, 30, 20, 10, 5), _jpeg),
}
# of the crop: the same for every image but for the direction, which is drawn
CROP: dict[str, tuple[str, tuple[float, ...]]] = {
    "shift": ("share of the crop's side", (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)),
    "scale": ("crop's side, times", (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3)),
    "rotation": ("degrees, either way", (0, 10, 20, 30, 40, 50, 60)),
}


def samples(table: FaceTable, size: int, name: str, value: float) -> tuple[Tensor, Tensor]:
    """Network inputs (N, C, size, size) and points (N, K, 2) under one disturbance; the same draw at every call."""
    generator = Generator().manual_seed(0)
    n, boxes = len(table), torch.from_numpy(table.boxes)
    turn = 2 * torch.pi * torch.rand(n, generator=generator)
    changes: dict[str, Tensor] = {}
    if name == "shift":
        changes["shift"] = value * torch.stack([turn.cos(), turn.sin()], 1)
    elif name == "scale":
        changes["zoom"] = torch.full((n,), value)
    elif name == "rotation":
        changes["degrees"] = torch.where(turn < torch.pi, value, -value)
    to_source = box_affine(boxes, size, **changes)
    pixels = warp(torch.from_numpy(table.images), to_source, size)
    if name in PICTURE:
        pixels = PICTURE[name][2](pixels, value, generator)
    return pixels, apply(invert(to_source), torch.from_numpy(table.points))


@torch.no_grad()
def measure(
    weights: Sequence[str | os.PathLike[str]], data: str | os.PathLike[str], *, limit: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Mean errors in percent (continuous) of the points that lie in the crop, for each disturbance, value and network.

    limit: so many images, drawn over the table. Raises InputError for weights that see no image or other keypoints.
    """
    loaded = [load_weights(w) for w in weights]
    tables: dict[int, FaceTable] = {}
    for w, one in zip(weights, loaded, strict=True):
        check_takes_images(one.net, str(w))
        if one.net.channels not in tables:
            tables[one.net.channels] = load_table(data, one.net.channels, limit, spread=True)
        if tables[one.net.channels].info.keypoints.names != one.keypoints.names:
            raise InputError(f"{data}: its keypoints are not those of {w}")
    disturbances = CROP | {name: (unit, values) for name, (unit, values, _) in PICTURE.items()}
    asked = [(name, unit, v) for name, (unit, values) in disturbances.items() for v in values]
    rows: list[dict[str, Any]] = []
    for done, (name, unit, value) in enumerate(asked, 1):
        for w, one in zip(weights, loaded, strict=True):
            net: Any = one.net
            table = tables[net.channels]
            pixels, points = samples(table, net.size, name, value)
            found = torch.cat([answers(net, part).points for part in pixels.split(64)])
            inside = ((points >= 0) & (points < net.size)).all(dim=2).numpy() & table.mask
            scale = table.info.keypoints.scale(points.double().numpy())
            errors = metrics.image_errors(metrics.point_errors(found.numpy(), points.numpy(), scale), inside)
            told = {"disturbance": name, "unit": unit, "value": value, "weights": str(w)}
            rows.append({**told, "nme": 100 * float(np.nanmean(errors))})
        progress(done, len(asked))
    table = next(iter(tables.values()))
    return {
        "images": len(table), "rows": rows,
        "data": {"dataset": table.info.dataset, "split": table.info.split, "fingerprint": table.fingerprint},
        "protocol": "one disturbance at a time on the crop from the true points; continuous error of the points inside "
        "the crop; what lies beyond the stored crop is black",
    }  # fmt: skip


def draw(told: dict[str, Any], folder: Path) -> list[Path]:
    """A panel a disturbance, a line a network, as robustness-DATASET.png and .pdf."""
    names = list(dict.fromkeys(r["disturbance"] for r in told["rows"]))
    figure = new_figure(9, 4.6)
    colors = dict(zip(dict.fromkeys(r["weights"] for r in told["rows"]), cycle(COLORS), strict=False))
    for axes, name in zip(figure.subplots(2, 4).flat, names, strict=True):
        rows = [r for r in told["rows"] if r["disturbance"] == name]
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
    return save(figure, folder, f"robustness-{told['data']['dataset']}")
