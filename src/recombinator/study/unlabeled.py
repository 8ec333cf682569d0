"""Measure whether unlabeled images help: trainings with few labels, with and without the equivariance term."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.select import take_rows, without_points
from recombinator.data.table import FaceTable, load_table
from recombinator.evaluation.metrics import bootstrap_ci
from recombinator.evaluation.tables import evaluate_table
from recombinator.study.markdown import Results, link, markdown
from recombinator.training.loop import Trainer
from recombinator.training.recipe import Recipe, get_recipe
from recombinator.utils.files import lock_folder, read_file, write_json
from recombinator.utils.schema import parse_json
from recombinator.weights.files import load_weights

logger = logging.getLogger(__name__)

MODEL = "rcn-6-fast"
SHARES = (0.01, 0.05, 0.2)  # of the training images, with labels
SAMPLES = 4000  # labeled samples per epoch; fewer images are repeated
SETTINGS: dict[str, Any] = {"epochs": 3, "batch": 8, "warmup_steps": 200}  # of both arms
TERM: dict[str, Any] = {"equivariance": 0.005, "ramp": 1}  # of the arm "unlabeled"; chosen by validation errors
ARMS: dict[str, dict[str, Any]] = {"labeled": {}, "unlabeled": TERM}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # quantiles of Student's t for a 95 % interval of N values


def recipe_of(model: str, arm: str, settings: dict[str, Any]) -> Recipe:
    """Return the recipe of an arm, with changes; those in `TERM` change the arm with unlabeled images only."""
    changes = {k: v for k, v in settings.items() if k not in TERM or arm == "unlabeled"}
    return get_recipe("fast", model, **{**SETTINGS, **ARMS[arm], **changes})


def tables_of(train: FaceTable, share: float, seed: int) -> dict[str, FaceTable]:
    """Return the training table of each arm.

    Args:
        train: All training images, with labels.
        share: Share of the images whose labels are used.
        seed: Seed of the choice of these images.

    Returns:
        "labeled": the images with labels, repeated to about SAMPLES rows. "unlabeled": the same rows, then the other
        images without labels.
    """
    order = np.random.RandomState(seed).permutation(len(train))
    count = max(1, round(share * len(train)))
    known, other = order[:count], order[count:]
    repeated = np.tile(known, max(1, round(SAMPLES / count)))
    rows = np.concatenate([repeated, other])
    return {
        "labeled": take_rows(train, repeated),
        "unlabeled": without_points(take_rows(train, rows), np.arange(len(repeated), len(rows))),
    }


def measure(
    data: Path, runs: Path, *, shares: Sequence[float] = SHARES, seeds: int = 3, model: str = MODEL,
    settings: dict[str, Any] | None = None, final: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Train both arms with each share of the labels, and compare them.

    Both arms take the same number of optimizer steps with the same number of labeled images. A seed decides the images
    with labels, the initial weights and the augmentation. Finished runs in `runs` are not trained again.

    Args:
        data: Folder with the tables train, valid and test.
        runs: Folder for the trainings, one folder per share, arm and seed.
        shares: Shares of the training images that have labels.
        seeds: Trainings of each arm.
        model: Network.
        settings: Changes to the recipe of both arms; those in `TERM` change the arm with unlabeled images only.
        final: Also measure the test images, once nothing is chosen any more.
        progress: Called with trainings done and in all.

    Returns:
        A report; errors are in percent of the inter-ocular distance by the paper's protocol.
    """
    train, valid = (load_table(data / f"{split}.parquet") for split in ("train", "valid"))
    measured = {"valid": valid, **({"test": load_table(data / "test.parquet")} if final else {})}
    jobs = [(seed, share, arm) for seed in range(seeds) for share in shares for arm in ARMS]
    errors: dict[tuple[str, float, str, int], np.ndarray] = {}
    for done, (seed, share, arm) in enumerate(jobs):
        progress(done, len(jobs))
        recipe = recipe_of(model, arm, settings or {})
        out = runs / f"{100 * share:g}-{arm}-{seed}"
        with lock_folder(out):
            table = tables_of(train, share, seed)[arm]
            _train(model, table, valid, out, recipe, seed)
            for split, images in measured.items():
                errors[split, share, arm, seed] = _errors(out, split, images)
        logger.info(f"{out.name}: validation error {100 * errors['valid', share, arm, seed].mean():.2f} %")
    progress(len(jobs), len(jobs))
    rows = [
        {"share": share, "labels": max(1, round(share * len(train))), **_compared(errors, share, seeds, measured)}
        for share in shares
    ]
    return {
        "model": {"name": model}, "train": train.describe(), "seeds": seeds, "rows": rows,
        "recipes": {arm: recipe_of(model, arm, settings or {}).to_dict() for arm in ARMS},
        "data": measured[max(measured, key=lambda s: s == "test")].describe(),
    }  # fmt: skip


def _train(model: str, table: FaceTable, valid: FaceTable, out: Path, recipe: Recipe, seed: int) -> None:
    """Train a network or continue its training. If it is finished, only check its settings."""
    trainer = Trainer(model, table, valid, out, recipe, seed=seed)
    if (out / "last.safetensors").is_file():
        trainer.restore()
    if trainer.position.epoch < recipe.epochs:
        trainer.fit()


def _errors(out: Path, split: str, table: FaceTable) -> np.ndarray:
    """Return the (N,) errors of the images of a table, by the paper's protocol, and keep them in the run's folder."""
    path = out / f"errors-{split}.json"
    if path.is_file():
        kept = parse_json(read_file(path), str(path))
        if kept["data"] == table.fingerprint:
            return np.array(kept["errors"])
    errors = evaluate_table(load_weights(out).net, table).image_errors("paper")
    write_json(path, {"data": table.fingerprint, "errors": errors.tolist()})
    return errors


def _compared(
    errors: dict[tuple[str, float, str, int], np.ndarray], share: float, seeds: int, splits: Any
) -> dict[str, Any]:
    """Return the errors of both arms and their difference on each split.

    `ci95_seeds` are Student's t intervals over seeds; `ci95_images` is the paired bootstrap over images of the
    difference that the seeds have on average.
    """
    row: dict[str, Any] = {}
    for split in splits:
        by_arm = {arm: 100 * np.stack([errors[split, share, arm, s] for s in range(seeds)]) for arm in ARMS}
        difference = by_arm["unlabeled"] - by_arm["labeled"]
        row[split] = {
            **{arm: {"nme_paper": float(e.mean()), **_over_seeds(e.mean(axis=1))} for arm, e in by_arm.items()},
            "difference": {
                "nme_paper": float(difference.mean()), **_over_seeds(difference.mean(axis=1)),
                "ci95_images": bootstrap_ci(difference.mean(axis=0)),
            },
        }  # fmt: skip
    return row


def _over_seeds(values: np.ndarray) -> dict[str, Any]:
    """Return the (S,) values of the seeds, and the 95 % interval of their mean where there are several."""
    result: dict[str, Any] = {"seeds": values.tolist()}
    if len(values) > 1:
        half = T_95.get(len(values), 2.0) * float(values.std(ddof=1)) / len(values) ** 0.5
        result["ci95_seeds"] = [float(values.mean()) - half, float(values.mean()) + half]
    return result


def unlabeled_table(results: Results) -> str:
    """Show the errors with and without unlabeled images, by share of the labels."""
    r, rows = results.get("unlabeled"), []
    if r is None:
        return "Not measured yet.\n"

    def text(value: dict[str, Any], interval: str) -> str:
        bounds = " [{:.2f}, {:.2f}]".format(*value[interval]) if interval in value else ""
        return f"{value['nme_paper']:.2f}{bounds}"

    for row in r["rows"]:
        for split, title in (("valid", "validation"), ("test", "AFLW")):
            if split in row:
                part = row[split]
                rows.append([
                    f"{100 * row['share']:g} % ({row['labels']:,})", title, text(part["labeled"], "ci95_seeds"),
                    text(part["unlabeled"], "ci95_seeds"), text(part["difference"], "ci95_seeds"),
                    "[{:.2f}, {:.2f}]".format(*part["difference"]["ci95_images"]),
                ])  # fmt: skip
    header = [
        "labels", "images", "labeled images only", "with unlabeled images", link("unlabeled", "difference"),
        "paired bootstrap",
    ]  # fmt: skip
    return "\n".join([*map(_verdict, r["rows"]), "", markdown(header, rows)])


def _verdict(row: dict[str, Any]) -> str:
    """Say in one sentence whether unlabeled images help with one share of the labels, on the last measured split."""
    split, title = ("test", "AFLW") if "test" in row else ("valid", "validation")
    part = row[split]["difference"]
    low, high = part.get("ci95_seeds", part["ci95_images"])
    change = "reduce" if high < 0 else "increase" if low > 0 else ""
    what = f"unlabeled images {change} the error" if change else "no measurable gain"
    return (
        f"- {100 * row['share']:g} % of the labels: {what}; the {title} error changes by "
        f"{part['nme_paper']:+.2f} [{low:+.2f}, {high:+.2f}] percentage points."
    )
