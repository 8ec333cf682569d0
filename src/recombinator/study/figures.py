"""The paper's figures, drawn from networks and tables: architectures, branch maps, difficulty, grids of faces."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from recombinator.data.table import FaceTable, load_table
from recombinator.evaluation.plots import COLORS, new_figure, save
from recombinator.evaluation.tables import Evaluation, evaluate_table
from recombinator.models import RCN, Denoiser, Joint, ScoreMapNet, SumNet, create_model
from recombinator.models.decode import maximum
from recombinator.models.denoiser import MapDenoiser, SpectralConv
from recombinator.study.plan import FIGURES
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights

TRUE, FOUND, TRUNK, BRANCH = "#56b4e9", "#d55e00", "#0072b2", "#e69f00"  # Okabe and Ito: told apart by everybody
EDGES = (0, 20, 40, 60, 80, 90, 95, 97, 98, 99, 99.5, 100)  # percentiles of difficulty, mostly hard ones (Fig. 3)


def draw_curves(results: dict[str, dict[str, Any]], folder: Path) -> list[Path]:
    """Test error of the weights chosen so far against epochs and minutes, a line a run of `study convergence`. Raises
    InputError where no run is done."""
    runs = {name: r for name, r in results.items() if r.get("study") == "convergence"}
    if not runs:
        raise InputError("no results of the study convergence: run `recombinator study convergence` first")
    figure = new_figure(7, 3)
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, r), color in zip(sorted(runs.items()), cycle(COLORS), strict=False):
        seen = [point for point in r["curve"] if point.get("test") is not None]
        errors = [point["test"] for point in seen]
        left.plot(
            [point["epoch"] for point in seen], errors, marker="o", markersize=3, color=color, label=Path(name).name
        )
        right.plot([point["seconds"] / 60 for point in seen], errors, marker="o", markersize=3, color=color)
    for axes, label in ((left, "epochs"), (right, "minutes")):
        axes.axhline(7, color="grey", linewidth=0.8, linestyle=":")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    left.set_ylabel("error, % (paper's protocol)")
    left.legend()
    return save(figure, folder, "convergence")


# ---- architectures -----------------------------------------------------------------------------------------------


def _framed(color: str) -> dict[str, Any]:
    return {"boxstyle": "round,pad=0.35", "facecolor": color, "edgecolor": "none", "alpha": 0.35}


def draw_network(axes: Any, net: ScoreMapNet, title: str) -> None:
    """Trunk on the left, a row a resolution, coarsest on top; each box is a convolution: kernel, maps, side."""
    rows = net.layers()
    trunk = [r for r in rows if r.name.startswith("trunk")]
    deepest = max(len(convs) for _, convs in net.branches())

    def box(x: float, y: float, text: str, color: str) -> None:
        axes.text(x, y, text, ha="center", va="center", fontsize=6.5, bbox=_framed(color))

    def arrow(*path: tuple[float, float], text: str = "") -> None:
        style = {"arrowstyle": "->", "color": "0.35", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
        for a, b in pairwise(path[:-1]):
            axes.plot(*zip(a, b, strict=True), color="0.35", linewidth=0.9)
        axes.annotate("", path[-1], path[-2], arrowprops=style)
        if text:
            (x0, y0), (x1, y1) = path[len(path) // 2 - 1 : len(path) // 2 + 1]
            axes.text((x0 + x1) / 2 + 0.08, (y0 + y1) / 2 + 0.1, text, fontsize=6.5, color="0.25")

    half, side = 0.24, 0.26  # of a box, with a little room: height, width
    for i, r in enumerate(trunk):
        box(0, i, f"C {r.kernel}×{r.kernel}\n{r.outputs} @ {r.size}²", TRUNK)
        if i:
            arrow((0, i - 1 + half), (0, i - half), text="P")
    start, end = (1.35 if isinstance(net, RCN) else 1.0), {}
    for level, convs in net.branches():
        named = [r for r in rows if r.name.startswith(f"{net.sizes[level]}.")][: len(convs)]
        for j, r in enumerate(named):
            box(start + j, level, f"C {r.kernel}×{r.kernel}\n{r.outputs} @ {r.size}²", BRANCH)
            arrow((start + j - 1 + side if j else side, level), (start + j - side, level))
        end[level] = start + len(named) - 1
    included = sorted(end)
    right = start + deepest
    if isinstance(net, RCN):
        for fine, coarse in pairwise(included):
            axes.text(0.68, fine, "K", ha="center", va="center", fontsize=7, zorder=4,
                      bbox={"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": "0.35"})  # fmt: skip
            turn = coarse - 0.5
            arrow((end[coarse], coarse - half), (end[coarse], turn), (0.68, turn), (0.68, fine + 0.14), text="U")
        arrow((end[included[0]] + side, included[0]), (right - side, included[0]))
        box(right, included[0], f"softmax\n{net.keypoints} @ {net.size}²", "0.7")
    else:
        middle = sum(included) / len(included)
        for level in included:
            arrow((end[level] + side, level), (right - 0.45, level), (right - 0.45, middle), (right - 0.3, middle))
            axes.text(right - 0.62, level + 0.08, "U" if level else "", fontsize=6.5, color="0.25")
        box(right + 0.1, middle, f"weighted sum,\nsoftmax\n{net.keypoints} @ {net.size}²", "0.7")
    axes.set(xlim=(-0.6, right + 0.7), ylim=(-0.6, len(net.sizes) - 0.4), title=title)
    axes.title.set_fontsize(9)
    axes.axis("off")


def architectures(folder: Path) -> list[Path]:
    """Fig. 1: SumNet and RCN with four branches. C convolution, P pooling, U upsampling, K concatenation."""
    figure = new_figure(11, 3.4)
    for axes, name in zip(figure.subplots(1, 2), ("sumnet-4", "rcn-4"), strict=True):
        net = cast(ScoreMapNet, create_model(name))
        count = sum(p.numel() for p in net.parameters())
        draw_network(axes, net, f"{name}: {count:,} parameters")
    return save(figure, folder, "fig1")


def joint_architecture(folder: Path) -> list[Path]:
    """Fig. 2: RCN-68, the denoiser, and their sum."""
    figure = new_figure(11, 4.6)
    upper, lower = figure.subplots(2, 1, height_ratios=(2.4, 1))
    net, denoiser = cast(ScoreMapNet, create_model("rcn-68")), cast(MapDenoiser, create_model("denoiser"))
    draw_network(upper, net, "rcn-68: pre-softmax maps A")
    large = [
        f"C {m.weight.shape[-1]}×{m.weight.shape[-1]}\n{m.weight.shape[0]} @ {denoiser.size}²"
        for m in cast(list[SpectralConv], list(denoiser.large))
    ]
    steps = [
        "highest cell of A\none-hot",
        *large,
        f"C 1×1\n{denoiser.keypoints} @ {denoiser.size}²",
        "B",
        "A + B\nsoftmax",
    ]
    for i, text in enumerate(steps):
        color = TRUNK if i in (0, len(steps) - 2) else BRANCH if i < len(steps) - 1 else "0.7"
        lower.text(i, 0, text, ha="center", va="center", fontsize=7, bbox=_framed(color))
        if i:
            lower.annotate("", (i, 0), (i - 1, 0), arrowprops={"arrowstyle": "->", "shrinkA": 34, "shrinkB": 30})
    lower.set(xlim=(-0.7, len(steps) - 0.3), ylim=(-1, 1), title="denoising keypoint model: pre-softmax maps B")
    lower.title.set_fontsize(9)
    lower.axis("off")
    return save(figure, folder, "fig2")


# ---- maps of the branches ----------------------------------------------------------------------------------------


@torch.no_grad()
def branch_maps(weights: Sequence[str], table: FaceTable, folder: Path, images: int = 4) -> list[Path]:
    """Fig. S1: for one keypoint a row, each SumNet branch before and after a softmax, their sum, and RCN's map. Truth
    is a ring, the prediction a cross."""
    sumnet, rcn = (load_weights(w).net for w in weights)
    if not isinstance(sumnet, SumNet) or not isinstance(rcn, RCN):
        raise InputError("figS1 wants the weights of a SumNet, then of an RCN")
    inputs, points = next(iter(fixed_samples(table, sumnet.size, None, torch.device("cpu"), batch=images)))
    maps = sumnet.branch_maps(sumnet.features(sumnet.norm(inputs.float())))
    weighted = [
        (a * m, f"branch {m_size}²") for a, m, m_size in zip(sumnet.alpha, maps, _branch_sizes(sumnet), strict=True)
    ]
    shown = [*reversed(weighted), (sumnet(inputs), "SumNet"), (rcn(inputs), "RCN")]
    figure = new_figure(1.1 * 2 * len(shown) + 1.1, 1.2 * images)
    grid = figure.subplots(images, 1 + 2 * len(shown), squeeze=False)
    size = sumnet.size
    for row, axes_row in enumerate(grid):
        k = row % sumnet.keypoints
        axes_row[0].imshow(inputs[row, 0], cmap="gray", extent=(0, size, size, 0))
        for i, (scores, title) in enumerate(shown):
            one = scores[row, k]
            soft = one.flatten().softmax(0).reshape(one.shape)
            for axes, image, what in ((axes_row[1 + 2 * i], one, ""), (axes_row[2 + 2 * i], soft, " softmax")):
                axes.imshow(image, cmap="viridis", extent=(0, size, size, 0))
                if row == 0:
                    axes.set_title(title + what, fontsize=6)
            if i >= len(shown) - 2:
                axes_row[2 + 2 * i].scatter(*maximum(scores)[row, k], s=22, marker="+", c=FOUND, linewidths=1)
        for axes in axes_row:
            axes.scatter(*points[row, k], s=18, facecolors="none", edgecolors="#00ff9c", linewidths=0.8)
            axes.axis("off")
    return save(figure, folder, "figS1")


def _branch_sizes(net: ScoreMapNet) -> list[int]:
    return [net.sizes[i] for i in net.included]


# ---- faces -------------------------------------------------------------------------------------------------------


class _Denoised(nn.Module):
    """The denoiser's own answer to what the image network found."""

    temperature = 1.0

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.joint, self.size = joint, joint.size

    def forward(self, x: Tensor) -> Tensor:
        return self.joint.denoiser((maximum(self.joint.image(x)) - 0.5).long())


def _evaluations(weights: Sequence[str], table: FaceTable) -> dict[str, Evaluation]:
    """By label; a joint model brings its image network and its denoiser along (Fig. 7)."""
    found = {}
    for w in weights:
        net = load_weights(w).net
        if isinstance(net, Denoiser):
            raise InputError(f"{w}: a denoiser, which sees no image; give the joint model")
        if isinstance(net, Joint):
            found["RCN"] = evaluate_table(net.image, table)
            found["denoiser"] = evaluate_table(_Denoised(net), table)  # type: ignore[arg-type]
        label = "joint" if isinstance(net, Joint) else Path(w).name
        found[label if label not in found else str(w)] = evaluate_table(net, table)
    return found


def _by_difficulty(errors: np.ndarray, table: FaceTable, rng: np.random.Generator) -> list[tuple[int, str]]:
    """A random image from each bin of the mean error over the models."""
    order = np.argsort(np.nan_to_num(errors.mean(axis=0)))
    bins = np.round(np.array(EDGES) / 100 * len(order)).astype(int)
    chosen = []
    for low, high, a, b in zip(EDGES, EDGES[1:], bins, bins[1:], strict=False):
        if b > a:
            chosen.append((int(order[rng.integers(a, b)]), f"{low:g}-{high:g} %"))
    return chosen


def _by_condition(errors: np.ndarray, table: FaceTable, rng: np.random.Generator) -> list[tuple[int, str]]:
    """Expression and glasses by MTFL's attributes; light by how unlike the crop's two halves are."""
    halves = table.images[:, 0].astype(np.float32)
    middle = halves.shape[2] // 2
    uneven = np.abs(halves[:, :, :middle].mean((1, 2)) - halves[:, :, middle:].mean((1, 2)))
    conditions = {"light": np.argsort(-uneven)[: max(4, len(uneven) // 100)]}
    for attribute, text in (("smile", "expression"), ("glasses", "glasses")):
        if attribute in table.attributes:
            conditions[text] = np.flatnonzero(table.attributes[attribute] == 0)
    return [(int(i), text) for text, which in conditions.items() for i in rng.permutation(which)[:4]]


def _most_changed(errors: np.ndarray, table: FaceTable, rng: np.random.Generator) -> list[tuple[int, str]]:
    """Where the last model gains most over the first, and where it loses most."""
    gain = np.nan_to_num(errors[0] - errors[-1])
    order = np.argsort(-gain)
    return [(int(i), "better") for i in order[:8]] + [(int(i), "worse") for i in order[-3:]]


def _hardest(errors: np.ndarray, table: FaceTable, rng: np.random.Generator) -> list[tuple[int, str]]:
    """From the hardest tenth for the first model."""
    worst = np.argsort(-np.nan_to_num(errors[0]))[: max(10, len(table) // 10)]
    return [(int(i), "") for i in rng.permutation(worst)[:10]]


def _as_fig_7(errors: np.ndarray, table: FaceTable, rng: np.random.Generator) -> list[tuple[int, str]]:
    """Two easy ones, five where the joint model helps most, one where it harms, two where all are wrong."""
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


Choose = Callable[[np.ndarray, FaceTable, np.random.Generator], list[tuple[int, str]]]


GRIDS: dict[str, Choose] = {
    "fig3": _by_difficulty, "fig4": _by_condition, "fig5": _most_changed, "fig6": _hardest, "fig7": _as_fig_7,
}  # fmt: skip


def faces_grid(
    name: str, weights: Sequence[str], table: FaceTable, folder: Path, seed: int = 0
) -> list[Path]:  # fmt: skip
    """Figs. 3 to 7. Truth is a blue ring (a dot for many points), the prediction an orange cross."""
    results = _evaluations(weights, table)
    errors = np.stack([r.image_errors("continuous") for r in results.values()])
    chosen = GRIDS[name](errors, table, np.random.default_rng(seed))
    size = next(iter(results.values())).size
    inputs = torch.cat([x for x, _ in fixed_samples(table, size, None, torch.device("cpu"))]).numpy()
    figure = new_figure(1.15 * len(chosen) + 0.3, 1.3 * len(results))
    grid = figure.subplots(len(results), len(chosen), squeeze=False)
    many = len(table.info.keypoints) > 10
    for row, (axes_row, (label, result), own) in enumerate(zip(grid, results.items(), errors, strict=True)):
        for axes, (i, text) in zip(axes_row, chosen, strict=True):
            image = inputs[i].transpose(1, 2, 0).astype(np.uint8).squeeze()
            axes.imshow(image, cmap="gray", extent=(0, size, size, 0), interpolation="bilinear")
            true, found = result.true[i], result.predicted[i]
            axes.scatter(
                *true.T, s=2 if many else 12, facecolors=TRUE if many else "none", edgecolors=TRUE, linewidths=0.8
            )
            axes.scatter(*found.T, s=4 if many else 14, marker="+", c=FOUND, linewidths=0.5 if many else 0.9)
            axes.set(xlim=(0, size), ylim=(size, 0), xticks=[], yticks=[])
            axes.set_xlabel(f"{100 * own[i]:.1f} %", fontsize=6, labelpad=1)
            if row == 0:
                axes.set_title(text, fontsize=6)
        axes_row[0].set_ylabel(label, fontsize=7)
    return save(figure, folder, name)


def difficulty_curves(weights: Sequence[str], table: FaceTable, folder: Path) -> list[Path]:
    """Fig. S2: each model's error (logarithmic) over the images sorted by the models' mean error; running means over
    a twentieth of the images."""
    results = _evaluations(weights, table)
    errors = np.stack([r.image_errors("paper") for r in results.values()])
    errors = errors[:, np.isfinite(errors).all(axis=0)]
    order = np.argsort(errors.mean(axis=0))
    window = max(1, len(order) // 20)
    figure = new_figure(5, 3.4)
    axes = figure.subplots()
    styles = ("-", "--")
    for (label, own), color, style in zip(
        zip(results, errors, strict=True), cycle((BRANCH, BRANCH, TRUNK, TRUNK)), cycle(styles), strict=False
    ):
        smooth = np.convolve(np.log10(100 * own[order] + 0.1), np.ones(window) / window, mode="valid")
        at = (np.arange(len(smooth)) + window / 2) / len(order) * 100
        axes.plot(at, 10**smooth, style, color=color, label=label, linewidth=1.2)
    axes.set_yscale("log", subs=(2, 3, 4, 6, 8))
    for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis("{x:g}")  # 6, not 6 x 10^0
    axes.set(xlabel="difficulty of the image, percentile", ylabel="error, % of the eye distance")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7)
    return save(figure, folder, "figS2")


def draw(
    name: str, folder: Path, data: str | os.PathLike[str] | None, runs: Path, weights: Sequence[str] | None = None
) -> list[Path]:
    """Draws a figure into `folder`; returns its files. data: a test table, for all but fig1 and fig2. weights: in place
    of the study's own runs, which lie under `runs`."""
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
