"""Draw the paper's figures from networks and tables: score maps of branches, difficulty, grids of faces."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recombinator.data.table import FaceTable, load_table
from recombinator.evaluation.plots import COLORS, new_figure, save
from recombinator.evaluation.result import Evaluation
from recombinator.evaluation.tables import evaluate_table
from recombinator.models import RCN, Joint, KeypointNet, SumNet
from recombinator.models.base import check_takes_images
from recombinator.models.decode import maximum
from recombinator.study.diagrams import BRANCH, TRUNK, architectures, joint_architecture
from recombinator.study.plan import FIGURES
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights

TRUE, PREDICTED = "#56b4e9", "#d55e00"
EDGES = (0, 20, 40, 60, 80, 90, 95, 97, 98, 99, 99.5, 100)  # percentiles of difficulty, mostly hard ones (Fig. 3)


def draw_curves(results: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """Plot the test error of the best weights so far by epochs and by minutes, one line per run of `study convergence`.

    Args:
        results: Results by name, as under results/.
        folder: Folder to write to.

    Returns:
        The files, convergence.png and .pdf.

    Raises:
        InputError: No run of the study is done.
    """
    runs = {name: r for name, r in results.items() if r.get("study") == "convergence"}
    if not runs:
        raise InputError("no results of the study convergence: run `recombinator study convergence` first")
    figure = new_figure(7, 3)
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, result), color in zip(sorted(runs.items()), cycle(COLORS), strict=False):
        measured = [point for point in result["curve"] if point.get("test") is not None]
        errors = [point["test"] for point in measured]
        style = {"marker": "o", "markersize": 3, "color": color}
        left.plot([point["epoch"] for point in measured], errors, label=Path(name).name, **style)
        right.plot([point["seconds"] / 60 for point in measured], errors, **style)
    for axes, label in ((left, "epochs"), (right, "minutes")):
        axes.axhline(7, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel("error, % (paper's protocol)")
    left.legend()
    return save(figure, folder, "convergence")


# ---- Score maps of the branches ---------------------------------------------------------------------------------


@torch.no_grad()
def branch_maps(weights: Sequence[str], table: FaceTable, folder: Path, images: int = 4) -> list[Path]:
    """Draw Fig. S1: each SumNet branch before and after a softmax, their sum, and RCN's map; one keypoint per row.

    A ring marks the true point, a cross the prediction.

    Args:
        weights: Weights of a SumNet and of an RCN.
        table: Test images.
        folder: Folder to write to.
        images: Number of rows.

    Raises:
        InputError: The weights are those of other networks.
    """
    sumnet, rcn = (load_weights(w).net for w in weights)
    if not isinstance(sumnet, SumNet) or not isinstance(rcn, RCN):
        raise InputError("figS1 needs the weights of a SumNet, then of an RCN")
    inputs, points = next(iter(fixed_samples(table, sumnet.size, None, torch.device("cpu"), batch=images)))
    maps = sumnet.branch_maps(sumnet.features(sumnet.norm(inputs.float())))
    weighted = [
        (alpha * m, f"branch {sumnet.sizes[level]}²")
        for alpha, m, level in zip(sumnet.alpha, maps, sumnet.included, strict=True)
    ]
    shown = [*reversed(weighted), (sumnet(inputs), "SumNet"), (rcn(inputs), "RCN")]
    figure = new_figure(1.1 * 2 * len(shown) + 1.1, 1.2 * images)
    grid = figure.subplots(images, 1 + 2 * len(shown), squeeze=False)
    size = sumnet.size
    for row, axes_row in enumerate(grid):
        k = row % sumnet.keypoints
        axes_row[0].imshow(inputs[row, 0], cmap="gray", extent=(0, size, size, 0))
        for i, (scores, title) in enumerate(shown):
            scores_k = scores[row, k]
            softmax = scores_k.flatten().softmax(0).reshape(scores_k.shape)
            for axes, image, kind in ((axes_row[1 + 2 * i], scores_k, ""), (axes_row[2 + 2 * i], softmax, " softmax")):
                axes.imshow(image, cmap="viridis", extent=(0, size, size, 0))
                if row == 0:
                    axes.set_title(title + kind, fontsize=6)
            if i >= len(shown) - 2:
                axes_row[2 + 2 * i].scatter(*maximum(scores)[row, k], s=22, marker="+", c=PREDICTED, linewidths=1)
        for axes in axes_row:
            axes.scatter(*points[row, k], s=18, facecolors="none", edgecolors="#00ff9c", linewidths=0.8)
            axes.axis("off")
    return save(figure, folder, "figS1")


# ---- Faces -------------------------------------------------------------------------------------------------------


class _Denoised(KeypointNet):
    """The denoiser's own prediction from the points that the image network of a joint model predicts."""

    task = ""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.joint = joint
        self.size, self.channels, self.keypoints = joint.size, joint.channels, joint.keypoints

    def forward(self, x: Tensor) -> Tensor:
        return self.joint.denoiser((maximum(self.joint.image(x)) - 0.5).long())


def _evaluations(weights: Sequence[str], table: FaceTable) -> dict[str, Evaluation]:
    """Evaluate networks by label; a joint model adds its image network and its denoiser (Fig. 7)."""
    results = {}
    for w in weights:
        net = load_weights(w).net
        check_takes_images(net, w)
        if isinstance(net, Joint):
            results["RCN"] = evaluate_table(net.image, table)
            results["denoiser"] = evaluate_table(_Denoised(net), table)
        label = "joint" if isinstance(net, Joint) else Path(w).name
        results[label if label not in results else str(w)] = evaluate_table(net, table)
    return results


# The choices of images for the grids: (networks, N) errors, the table, random numbers -> (index, title of the column).
Choice = list[tuple[int, str]]


def _by_difficulty(errors: np.ndarray, table: FaceTable, rng: np.random.Generator) -> Choice:
    """Choose a random image from each bin of the mean error over the networks (Fig. 3)."""
    order = np.argsort(np.nan_to_num(errors.mean(axis=0)))
    bins = np.round(np.array(EDGES) / 100 * len(order)).astype(int)
    chosen = []
    for low, high, a, b in zip(EDGES, EDGES[1:], bins, bins[1:], strict=False):
        if b > a:
            chosen.append((int(order[rng.integers(a, b)]), f"{low:g}-{high:g} %"))
    return chosen


def _by_condition(errors: np.ndarray, table: FaceTable, rng: np.random.Generator) -> Choice:
    """Choose images by expression and glasses (MTFL's attributes) and by light from one side (Fig. 4)."""
    halves = table.images[:, 0].astype(np.float32)
    middle = halves.shape[2] // 2
    uneven = np.abs(halves[:, :, :middle].mean((1, 2)) - halves[:, :, middle:].mean((1, 2)))
    conditions = {"light": np.argsort(-uneven)[: max(4, len(uneven) // 100)]}
    for attribute, text in (("smile", "expression"), ("glasses", "glasses")):
        if attribute in table.attributes:
            conditions[text] = np.flatnonzero(table.attributes[attribute] == 0)
    return [(int(i), text) for text, rows in conditions.items() for i in rng.permutation(rows)[:4]]


def _most_changed(errors: np.ndarray, table: FaceTable, rng: np.random.Generator) -> Choice:
    """Choose images where the last network improves most on the first, and where it is worse by most (Fig. 5)."""
    gain = np.nan_to_num(errors[0] - errors[-1])
    order = np.argsort(-gain)
    return [(int(i), "better") for i in order[:8]] + [(int(i), "worse") for i in order[-3:]]


def _hardest(errors: np.ndarray, table: FaceTable, rng: np.random.Generator) -> Choice:
    """Choose images from the tenth with the largest errors of the first network (Fig. 6)."""
    worst = np.argsort(-np.nan_to_num(errors[0]))[: max(10, len(table) // 10)]
    return [(int(i), "") for i in rng.permutation(worst)[:10]]


def _as_fig_7(errors: np.ndarray, table: FaceTable, rng: np.random.Generator) -> Choice:
    """Choose two easy images, five where the joint model helps most, one where it is worse, two failures (Fig. 7)."""
    gain = np.nan_to_num(errors[0] - errors[-1])
    order, easy, hard = (
        np.argsort(-gain),
        np.argsort(np.nan_to_num(errors[0], nan=9)),
        np.argsort(-np.nan_to_num(errors[-1])),
    )
    return [
        *((int(i), "easy") for i in easy[:2]), *((int(i), "better") for i in order[:5]), (int(order[-1]), "worse"),
        *((int(i), "wrong") for i in hard[:2]),
    ]  # fmt: skip


Choose = Callable[[np.ndarray, FaceTable, np.random.Generator], Choice]

GRIDS: dict[str, Choose] = {
    "fig3": _by_difficulty, "fig4": _by_condition, "fig5": _most_changed, "fig6": _hardest, "fig7": _as_fig_7,
}  # fmt: skip


def faces_grid(name: str, weights: Sequence[str], table: FaceTable, folder: Path, seed: int = 0) -> list[Path]:
    """Draw one of Figs. 3 to 7: one row per network, one column per image.

    A blue ring marks a true point (a dot where there are many), an orange cross the prediction.

    Args:
        name: A key of GRIDS, which decides the choice of images.
        weights: The networks.
        table: Test images.
        folder: Folder to write to.
        seed: Seed of the choice of images.
    """
    results = _evaluations(weights, table)
    errors = np.stack([r.image_errors("continuous") for r in results.values()])
    chosen = GRIDS[name](errors, table, np.random.default_rng(seed))
    first = next(iter(results.values()))
    size, inputs = first.size, first.inputs([i for i, _ in chosen])
    figure = new_figure(1.15 * len(chosen) + 0.3, 1.3 * len(results))
    grid = figure.subplots(len(results), len(chosen), squeeze=False)
    many = len(table.info.keypoints) > 10
    for row, (axes_row, (label, result), own) in enumerate(zip(grid, results.items(), errors, strict=True)):
        for axes, (i, text), pixels in zip(axes_row, chosen, inputs, strict=True):
            image = pixels.transpose(1, 2, 0).astype(np.uint8).squeeze()
            axes.imshow(image, cmap="gray", extent=(0, size, size, 0), interpolation="bilinear")
            true, predicted = result.true[i], result.predicted[i]
            axes.scatter(
                *true.T, s=2 if many else 12, facecolors=TRUE if many else "none", edgecolors=TRUE, linewidths=0.8
            )
            axes.scatter(*predicted.T, s=4 if many else 14, marker="+", c=PREDICTED, linewidths=0.5 if many else 0.9)
            axes.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[])
            axes.set_xlabel(f"{100 * own[i]:.1f} %", fontsize=6, labelpad=1)
            if row == 0:
                axes.set_title(text, fontsize=6)
        axes_row[0].set_ylabel(label, fontsize=7)
    return save(figure, folder, name)


def difficulty_curves(weights: Sequence[str], table: FaceTable, folder: Path) -> list[Path]:
    """Draw Fig. S2: each network's logarithmic error over the images, sorted by the networks' mean error.

    The curves are running means over a twentieth of the images.

    Args:
        weights: The networks.
        table: Test images.
        folder: Folder to write to.
    """
    results = _evaluations(weights, table)
    errors = np.stack([r.image_errors("paper") for r in results.values()])
    errors = errors[:, np.isfinite(errors).all(axis=0)]
    order = np.argsort(errors.mean(axis=0))
    window = max(1, len(order) // 20)
    figure = new_figure(5, 3.4)
    axes = figure.subplots()
    for (label, own), color, style in zip(
        zip(results, errors, strict=True), cycle((BRANCH, BRANCH, TRUNK, TRUNK)), cycle(("-", "--")), strict=False
    ):
        smooth = np.convolve(np.log10(100 * own[order] + 0.1), np.ones(window) / window, mode="valid")
        percentile = (np.arange(len(smooth)) + window / 2) / len(order) * 100
        axes.plot(percentile, 10**smooth, style, color=color, label=label, linewidth=1.2)
    axes.set_yscale("log", subs=(2, 3, 4, 6, 8))
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter("{x:g}")  # 6, not 6 x 10^0
    axes.set(xlabel="difficulty of the image, percentile", ylabel="error, % of the eye distance")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    return save(figure, folder, "figS2")


def draw(
    name: str, folder: Path, data: str | os.PathLike[str] | None, runs: Path, weights: Sequence[str] | None = None
) -> list[Path]:
    """Draw a figure of the paper.

    Args:
        name: A key of plan.FIGURES.
        folder: Folder to write to.
        data: A test table; fig1 and fig2 need none.
        runs: Folder of the studies' trainings, whose networks are shown.
        weights: Networks to show instead.

    Returns:
        The files.

    Raises:
        InputError: Table or weights cannot be read.
    """
    if name == "fig1":
        return architectures(folder)
    if name == "fig2":
        return joint_architecture(folder)
    assert data is not None
    chosen = list(weights or (str(runs / w) if "/" in w else w for w in FIGURES[name][1]))
    table = load_table(data)
    if name == "figS1":
        return branch_maps(chosen, table, folder)
    if name == "figS2":
        return difficulty_curves(chosen, table, folder)
    return faces_grid(name, chosen, table, folder)
