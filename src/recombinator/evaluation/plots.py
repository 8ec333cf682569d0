"""Plots of an evaluation: cumulative error, faces with the largest errors, reliability."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recombinator.evaluation import metrics
from recombinator.evaluation.result import Evaluation
from recombinator.utils.files import write_atomically

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
TRUTH = {"marker": "o", "facecolors": "none", "edgecolors": "#00c88c", "linewidths": 1}  # a green ring
PREDICTION = {"marker": "+", "c": "#ff3b3b", "linewidths": 1}  # a red cross


def new_figure(width: float, height: float) -> Any:
    """Return an empty matplotlib figure of a width and height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and as PDF.

    Args:
        figure: A matplotlib figure.
        folder: Folder to write to.
        name: The files' name without its ending.

    Returns:
        The files.
    """
    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        write_atomically(path, lambda p, kind=path.suffix[1:]: figure.savefig(p, dpi=200, format=kind))  # type: ignore[misc]
    return paths


def plot_cumulative(path: Path, result: Evaluation, title: str) -> None:
    """Plot the share of images at or below each error, in both protocols.

    Args:
        path: Picture to write; its ending decides the format.
        result: Results of `evaluate`.
        title: Title of the plot.
    """
    figure = new_figure(5, 3.6)
    axes = figure.subplots()
    thresholds = np.linspace(0, 0.2, 401)
    for protocol, color in zip(("continuous", "paper"), COLORS, strict=False):
        errors = result.image_errors(protocol)
        errors = errors[np.isfinite(errors)]
        label = f"{protocol}: mean {100 * errors.mean():.2f} %"
        axes.plot(100 * thresholds, 100 * metrics.cumulative(errors, thresholds), color=color, label=label)
    axes.axvline(10, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlim=(0, 20), ylim=(0, 100), title=title)
    axes.set_xlabel("error, % of the normalizing distance")
    axes.set_ylabel("images, %")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    write_atomically(path, lambda p: figure.savefig(p, dpi=160))


def plot_worst(path: Path, result: Evaluation, count: int = 30) -> None:
    """Show the faces with the largest errors; a line connects each true point with its prediction.

    Args:
        path: Picture to write; its ending decides the format.
        result: Results of `evaluate`.
        count: Number of faces.
    """
    errors = result.image_errors("continuous")
    worst = np.argsort(-np.nan_to_num(errors))[:count]
    images = result.inputs(worst)
    columns, size = 6, result.size
    rows = -(-len(worst) // columns)
    figure = new_figure(1.6 * columns, 1.85 * rows + 0.3)
    for place, (i, image) in enumerate(zip(worst, images, strict=True)):
        axes = figure.add_subplot(rows, columns, place + 1)
        pixels = image.transpose(1, 2, 0).astype(np.uint8).squeeze()
        axes.imshow(pixels, cmap="gray", extent=(0, size, size, 0), interpolation="bilinear")
        true, predicted = result.true[i], result.predicted[i]
        for ends in zip(true, predicted, strict=True):
            axes.plot(*zip(*ends, strict=True), color="#f0e442", linewidth=0.8)
        marks = [
            axes.scatter(*true.T, s=14, label="truth", **TRUTH),
            axes.scatter(*predicted.T, s=14, label="prediction", **PREDICTION),
        ]
        axes.set_title(f"{100 * errors[i]:.0f} %", fontsize=8, pad=2)
        axes.set(xlim=(0, size), ylim=(size, 0))
        axes.axis("off")
        if place == 0:
            figure.legend(
                handles=marks, loc="outside lower center", ncols=2, fontsize=8, frameon=False,
                title="largest errors, % of the normalizing distance", title_fontsize=8,
            )  # fmt: skip
    write_atomically(path, lambda p: figure.savefig(p, dpi=130))


def plot_reliability(path: Path, report: dict[str, Any]) -> None:
    """Plot how often the true point was within r pixels against the probability that the network gave.

    Args:
        path: Picture to write; its ending decides the format.
        report: What `calibration.report` returns. One panel without and one with occlusion, one line per radius r.
    """
    figure = new_figure(8, 4.7)
    figure.set_layout_engine("compressed")  # the engine for axes of a fixed aspect; another cuts off their labels
    colors = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")
    figure.suptitle(report["weights"], fontsize=10)
    for axes, (part, title) in zip(
        figure.subplots(1, 2, sharey=True), {"plain": "not occluded", "covered": "occluded"}.items(), strict=True
    ):
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
        for row, color in zip(report[part], colors, strict=True):
            line = [[point[key] for point in row["curve"]] for key in ("confidence", "right")]
            label = f"{row['radius']}: error {100 * row['error']:.1f} %"
            axes.plot(*line, marker="o", markersize=3, color=color, label=label)
        # a little room, so that markers at 0 and 1 are not cut
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", title=title)
        axes.set_xlabel("probability by the network")
        axes.grid(alpha=0.3)
        axes.legend(title="within pixels", fontsize=8, title_fontsize=8, loc="upper left")
    figure.axes[0].set_ylabel("share of points within")
    write_atomically(path, lambda p: figure.savefig(p, dpi=160))
