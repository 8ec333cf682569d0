"""Draw the paper's Figs. 1 and 2: the architectures, from the networks themselves."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from recombinator.evaluation.plots import new_figure, save
from recombinator.models import RCN, ScoreMapNet, create_model
from recombinator.models.denoiser import MapDenoiser
from recombinator.models.spectral import SpectralConv

TRUNK, BRANCH, OUTPUT = "#0072b2", "#e69f00", "0.7"  # of the palette for color-blind readers by Okabe and Ito


def _frame(color: str) -> dict[str, Any]:
    """Return the style of a box around a text."""
    return {"boxstyle": "round,pad=0.35", "facecolor": color, "edgecolor": "none", "alpha": 0.35}


def draw_network(axes: Any, net: ScoreMapNet, title: str) -> None:
    """Draw a network: trunk on the left, one row per resolution, the coarsest on top.

    Each box is a convolution: kernel, number of maps, side of the maps.

    Args:
        axes: Axes to draw into.
        net: A SumNet or an RCN.
        title: Title of the axes.
    """
    rows = net.layers()
    trunk = [r for r in rows if r.name.startswith("trunk")]
    deepest = max(len(convs) for _, convs in net.branches())

    def box(x: float, y: float, text: str, color: str) -> None:
        axes.text(x, y, text, ha="center", va="center", fontsize=6.5, bbox=_frame(color))

    def arrow(*path: tuple[float, float], text: str = "") -> None:
        style = {"arrowstyle": "->", "color": "0.35", "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
        for a, b in pairwise(path[:-1]):
            axes.plot(*zip(a, b, strict=True), color="0.35", linewidth=0.9)
        axes.annotate("", path[-1], path[-2], arrowprops=style)
        if text:
            (x0, y0), (x1, y1) = path[len(path) // 2 - 1 : len(path) // 2 + 1]
            axes.text((x0 + x1) / 2 + 0.08, (y0 + y1) / 2 + 0.1, text, fontsize=6.5, color="0.25")

    half, side = 0.24, 0.26  # half the height and half the width of a box, with a little room
    for i, r in enumerate(trunk):
        box(0, i, f"C {r.kernel}×{r.kernel}\n{r.outputs} @ {r.size}²", TRUNK)
        if i:
            arrow((0, i - 1 + half), (0, i - half), text="P")
    start, end = (1.35 if isinstance(net, RCN) else 1.0), {}
    for level, convs in net.branches():
        branch = [r for r in rows if r.name.startswith(f"{net.sizes[level]}.")][: len(convs)]
        for j, r in enumerate(branch):
            box(start + j, level, f"C {r.kernel}×{r.kernel}\n{r.outputs} @ {r.size}²", BRANCH)
            arrow((start + j - 1 + side if j else side, level), (start + j - side, level))
        end[level] = start + len(branch) - 1
    included = sorted(end)
    right = start + deepest
    if isinstance(net, RCN):
        for fine, coarse in pairwise(included):
            axes.text(0.68, fine, "K", ha="center", va="center", fontsize=7, zorder=4,
                      bbox={"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": "0.35"})  # fmt: skip
            turn = coarse - 0.5
            arrow((end[coarse], coarse - half), (end[coarse], turn), (0.68, turn), (0.68, fine + 0.14), text="U")
        arrow((end[included[0]] + side, included[0]), (right - side, included[0]))
        box(right, included[0], f"softmax\n{net.keypoints} @ {net.size}²", OUTPUT)
    else:
        middle = sum(included) / len(included)
        for level in included:
            arrow((end[level] + side, level), (right - 0.45, level), (right - 0.45, middle), (right - 0.3, middle))
            axes.text(right - 0.62, level + 0.08, "U" if level else "", fontsize=6.5, color="0.25")
        box(right + 0.1, middle, f"weighted sum,\nsoftmax\n{net.keypoints} @ {net.size}²", OUTPUT)
    axes.set(xlim=(-0.6, right + 0.7), ylim=(-0.6, len(net.sizes) - 0.4), title=title)
    axes.title.set_fontsize(9)
    axes.axis("off")


def architectures(folder: Path) -> list[Path]:
    """Draw Fig. 1: SumNet and RCN with four branches. C: convolution, P: pooling, U: upsampling, K: concatenation."""
    figure = new_figure(11, 3.4)
    for axes, name in zip(figure.subplots(1, 2), ("sumnet-4", "rcn-4"), strict=True):
        net = cast(ScoreMapNet, create_model(name))
        count = sum(p.numel() for p in net.parameters())
        draw_network(axes, net, f"{name}: {count:,} parameters")
    return save(figure, folder, "fig1")


def joint_architecture(folder: Path) -> list[Path]:
    """Draw Fig. 2: RCN-68, the denoiser, and their sum."""
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
        color = TRUNK if i in (0, len(steps) - 2) else BRANCH if i < len(steps) - 1 else OUTPUT
        lower.text(i, 0, text, ha="center", va="center", fontsize=7, bbox=_frame(color))
        if i:
            lower.annotate("", (i, 0), (i - 1, 0), arrowprops={"arrowstyle": "->", "shrinkA": 34, "shrinkB": 30})
    lower.set(xlim=(-0.7, len(steps) - 0.3), ylim=(-1, 1), title="denoising keypoint model: pre-softmax maps B")
    lower.title.set_fontsize(9)
    lower.axis("off")
    return save(figure, folder, "fig2")
