"""Pictures of an evaluation: the cumulative error curve and the worst faces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recombinator.evaluation import metrics
from recombinator.evaluation.tables import Evaluation
from recombinator.utils.files import write_atomically

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def save(figure: Any, folder: Path, name: str) -> list[Path]:
    """PNG and PDF, atomically."""
    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        write_atomically(path, lambda p, kind=path.suffix[1:]: figure.savefig(p, dpi=200, format=kind))  # type: ignore[misc]
    return paths


def new_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plot_cumulative(path: Path, result: Evaluation, title: str) -> None:
    """Share of images at or below each error, both protocols."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    thresholds = np.linspace(0, 0.2, 401)
    for protocol, color in (("continuous", "#0072b2"), ("paper", "#d55e00")):
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


def contact_sheet(path: Path, inputs: np.ndarray, result: Evaluation, count: int = 30) -> None:
    """The `count` faces with the largest error. inputs: (N, C, S, S) network inputs, 0..255. Truth is a green
    ring, the prediction a red cross, a line joins them."""
    from matplotlib.figure import Figure

    errors = result.image_errors("continuous")
    worst = np.argsort(-np.nan_to_num(errors))[:count]
    columns = 6
    rows = -(-len(worst) // columns)
    figure = Figure(figsize=(1.6 * columns, 1.85 * rows), layout="constrained")
    for place, i in enumerate(worst):
        axes = figure.add_subplot(rows, columns, place + 1)
        image = inputs[i].transpose(1, 2, 0).astype(np.uint8)
        size = result.size
        axes.imshow(image.squeeze(), cmap="gray", extent=(0, size, size, 0), interpolation="bilinear")
        true, found = result.true[i], result.predicted[i]
        for t, f in zip(true, found, strict=True):
            axes.plot(*zip(t, f, strict=True), color="#f0e442", linewidth=0.8)
        axes.scatter(true[:, 0], true[:, 1], s=14, facecolors="none", edgecolors="#00c88c", linewidths=1)
        axes.scatter(found[:, 0], found[:, 1], s=14, marker="+", c="#ff3b3b", linewidths=1)
        axes.set_title(f"{100 * errors[i]:.0f} %", fontsize=8, pad=2)
        axes.set(xlim=(0, size), ylim=(size, 0))
        axes.axis("off")
    write_atomically(path, lambda p: figure.savefig(p, dpi=130))


def plot_reliability(path: Path, told: dict[str, Any]) -> None:
    """`calibration.report`: how often it was true against what the network said, a line a square; plain and covered."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    colors = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#d55e00")
    for axes, part in zip(figure.subplots(1, 2, sharey=True), ("plain", "covered"), strict=True):
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
        for row, color in zip(told[part], colors, strict=True):
            curve = row["curve"]
            line = [[r[key] for r in curve] for key in ("confidence", "right")]
            label = f"{row['radius']}: error {100 * row['error']:.1f} %"
            axes.plot(*line, marker="o", markersize=3, color=color, label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", title=f"{told['weights']}, {part}")
        axes.set_xlabel("probability that the network gives")
        axes.grid(alpha=0.3)
        axes.legend(title="within pixels", fontsize=8, title_fontsize=8, loc="upper left")
    figure.axes[0].set_ylabel("share of points within")
    write_atomically(path, lambda p: figure.savefig(p, dpi=160))
