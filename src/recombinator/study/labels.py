"""Measure how well wrong labels are found: displace some points, train across two halves, rank all points."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.select import take_rows
from recombinator.data.table import load_table
from recombinator.fit.measure import Measured, measure
from recombinator.study.markdown import Results, link, markdown
from recombinator.training.loop import Trainer
from recombinator.training.recipe import get_recipe
from recombinator.weights.files import load_weights

MODEL = "rcn-6-fast"
SHARE, TOP = 0.02, 0.03  # shares of the points: those displaced, and those that count as most suspicious
DISTANCES = (0.1, 0.2, 0.3, 0.5)  # limits of the classes of displacements, in normalizing distances


def run(
    data: Path, *, epochs: int = 10, seed: int = 0, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Displace points of the training images, and count those among the most suspicious ones.

    Each point is ranked by a network that was trained on the other half of the images, whose labels were displaced in
    the same way.

    Args:
        data: Folder with the tables train and valid.
        epochs: Epochs of each of the two trainings.
        seed: Seed of the displacements, the halves and the trainings.
        progress: Called with steps done and in all.
    """
    table, valid = load_table(data / "train.parquet"), load_table(data / "valid.parquet")
    rng = np.random.default_rng(seed)
    displaced = table.mask & (rng.random(table.mask.shape) < SHARE)
    length = rng.uniform(DISTANCES[0], DISTANCES[-1], table.mask.shape)
    angle = rng.uniform(0, 2 * np.pi, table.mask.shape)
    scale = table.info.keypoints.scale(table.points)[:, None]
    offset = (scale * length)[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=2)
    table = replace(
        table, points=np.where(displaced[..., None], table.points + offset, table.points).astype(np.float32)
    )
    order = rng.permutation(len(table))
    halves = [np.sort(half) for half in np.array_split(order, 2)]
    recipe = get_recipe("fast", MODEL, epochs=epochs)
    parts: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for n, (own, other) in enumerate([halves, halves[::-1]]):
            out = Path(folder) / str(n)
            trainer = Trainer(MODEL, take_rows(table, own), valid, out, recipe, seed=seed)
            trainer.fit(progress=lambda done, total, n=n: progress(n * total + done, 2 * total))  # type: ignore[misc]
            parts.append(measure(load_weights(out).net, take_rows(table, other)))
    seen, rows = Measured.joined(parts), np.concatenate(halves[::-1])
    ratio, score = seen.suspicion()
    known, wrong, length = seen.known, displaced[rows], length[rows]
    ranking = np.lexsort((-ratio[known], -score[known]))
    top = np.zeros(known.sum(), bool)
    top[ranking[: round(TOP * len(top))]] = True
    wrong, length = wrong[known], length[known]
    classes = []
    for low, high in pairwise(DISTANCES):
        inside = wrong & (length >= low) & (length < high)
        classes.append({"from": low, "to": high, "displaced": int(inside.sum()), "found": int((inside & top).sum())})
    return {
        "model": {"name": MODEL}, "epochs": epochs, "seed": seed, "data": table.describe(), "points": len(top),
        "looked_at": int(top.sum()), "displaced": int(wrong.sum()), "found": int((wrong & top).sum()), "rows": classes,
    }  # fmt: skip


def labels_table(results: Results) -> str:
    """Show how many displaced points are among the most suspicious ones."""
    r = results.get("labels")
    if r is None:
        return ""
    rows = [
        [f"{row['from']:g} to {row['to']:g} eye distances", f"{row['displaced']:,}",
         f"{100 * row['found'] / row['displaced']:.0f} %"] for row in r["rows"]
    ]  # fmt: skip
    rows.append(["all", f"{r['displaced']:,}", f"{100 * r['found'] / r['displaced']:.0f} %"])
    among = f"among the {r['looked_at']:,} most suspicious of {r['points']:,}"
    return markdown([link("labels", "displaced by"), "points", among], rows)
