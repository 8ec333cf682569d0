"""Train the finder of a fit on whole images of the same objects. It gives the localizer its crops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import read_image
from recombinator.data.table import FaceTable
from recombinator.evaluation.photographs import match
from recombinator.fit.measure import Finding, Measured
from recombinator.fit.plan import Plan
from recombinator.fit.samples import Crop, Sample, cut, inside_crop, make_table, repeated, table_info
from recombinator.keypoints import RADII, SURE, KeypointSet
from recombinator.predict.engine import TorchEngine
from recombinator.predict.predictor import Predictor
from recombinator.training.loop import Trainer
from recombinator.training.recipe import get_recipe
from recombinator.transforms.augment import Augment
from recombinator.weights.files import Weights
from recombinator.weights.shipped import FOLDER

START = FOLDER / "finders" / "faces.safetensors"  # training starts from these weights
MEMORY = 4e8  # bytes of whole images in a table; if there are more, evenly spaced ones are kept
ROWS = 512  # rows of a training table: a smaller one is repeated, so that validations do not take most of the time
BACKGROUNDS = 4  # every fourth image also gives a part without objects
PARTS = (0.2, 0.6)  # smallest and largest side of these parts, as shares of the image's shorter side
ATTEMPTS = 20  # random parts of an image that are tried before none is used
ROOM = 0.5  # margin around the points of an object, in sides of their bounding box, that no such part may touch

Rows = list[tuple[Sample, Crop, np.ndarray]]


def by_image(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Return the objects of each image."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.file, []).append(sample)
    return list(groups.values())


def finder_table(
    samples: Sequence[Sample], keypoints: KeypointSet, size: int, channels: int, split: str
) -> FaceTable:  # fmt: skip
    """Return a table of whole images, one row per object.

    The training table also has parts of images without objects, in which the finder learns to find nothing.

    Args:
        samples: The objects.
        keypoints: Their keypoint set.
        size: Side of the images in pixels; they are black beyond the shorter side.
        channels: 1 for gray, 3 for RGB.
        split: "train" or "valid".
    """
    groups = by_image(samples)
    rows = sum(map(len, groups)) * size**2 * channels
    if rows > MEMORY:
        groups = [
            groups[i] for i in np.linspace(0, len(groups) - 1, max(1, int(len(groups) * MEMORY / rows))).astype(int)
        ]

    def job(number: int) -> Rows:
        group = groups[number]
        image = read_image(group[0].path)
        crop = cut(group[0], image, "image", size, channels)
        made = [(sample, crop, inside_crop(sample, crop)) for sample in group]
        if split == "train" and number % BACKGROUNDS == 0:
            made += _background(group, image, size, channels, number)
        return made

    with ThreadPoolExecutor() as pool:
        made = [row for part in pool.map(job, range(len(groups))) for row in part]
    return make_table(table_info(split, keypoints, "image", size, channels), made)


def _background(group: Sequence[Sample], image: np.ndarray, size: int, channels: int, seed: int) -> Rows:
    """Return a random square of an image in which there is no object, as a row without known points; or no row."""
    generator, limits = np.random.default_rng(seed), np.array(image.shape[1::-1])
    low = np.stack([np.nanmin(s.points, axis=0) for s in group])
    high = np.stack([np.nanmax(s.points, axis=0) for s in group])
    margin = ROOM * (high - low).max(axis=1, keepdims=True)
    for _ in range(ATTEMPTS):
        side = max(4, int(generator.uniform(*PARTS) * limits.min()))
        x, y = (generator.random(2) * (limits - side)).astype(int)
        if ((low - margin < [x + side, y + side]) & (high + margin > [x, y])).all(axis=1).any():
            continue
        empty = replace(group[0], points=np.full_like(group[0].points, np.nan), file=f"{group[0].file}#background")
        return [(empty, cut(empty, image[y : y + side, x : x + side], "image", size, channels), empty.points)]
    return []


def finder_trainer(
    plan: Plan, tables: tuple[FaceTable, FaceTable], out: Path, epochs: int, augment: Augment, seed: int
) -> Trainer:  # fmt: skip
    """Return the trainer of a finder.

    Args:
        plan: The decisions.
        tables: Whole images to train on, and to validate with.
        out: Folder of the training.
        epochs: Number of epochs.
        augment: Augmentation of the localizer; blur and noise are added.
        seed: Seed of the initial weights, the order of the images and the augmentation.
    """
    recipe = get_recipe("fast", "finder", epochs=epochs, batch=plan.batch, ema=0.999, warmup_steps=100)
    recipe = replace(recipe, augment=replace(augment, gamma=0.4, blur=1.0, noise=8.0))
    options: dict[str, Any] = {"rule": plan.rule, **({"channels": plan.channels} if plan.channels != 1 else {})}
    train = repeated(tables[0], ROWS)
    return Trainer("finder", train, tables[1], out, recipe, seed=seed, options=options, start=START)


def with_finder(localizer: Weights, trainer: Trainer, training: dict[str, Any]) -> Weights:
    """Return a localizer's weights with a trained finder inside.

    Args:
        localizer: The localizer.
        trainer: The finder's trainer, after the training.
        training: Settings of both trainings, for the file.
    """
    template = np.nan_to_num(trainer.task.template, nan=0.5).round(4).tolist()
    finder = Weights(trainer.net.eval(), localizer.keypoints, localizer.crop_rule, template, training)
    # typical points of an object that the finder has rotated to upright
    return replace(localizer, finder=finder, template=template)


def measure_found(
    weights: Weights, samples: Sequence[Sample], keypoints: KeypointSet
) -> tuple[list[Sample], Measured]:  # fmt: skip
    """Predict whole images without boxes, and match the predictions with the objects.

    Args:
        weights: A localizer with a finder.
        samples: All objects of some images.
        keypoints: Their keypoint set.

    Returns:
        The objects that were found, and their results. `Measured.finding` counts the others and false detections.
    """
    predictor, groups = Predictor(TorchEngine(weights)), by_image(samples)
    found: list[Sample] = []
    rows: list[tuple[np.ndarray, ...]] = []
    false, missed = 0, []
    for group in groups:
        faces = predictor.predict(group[0].path)
        extents = [float(max(np.ptp(s.points[s.known], axis=0))) for s in group]
        matched, others = match([f.points for f in faces], [s.points for s in group], extents)
        false += others
        for sample, number in zip(group, matched, strict=True):
            if number is None:
                missed.append(sample.where)
                continue
            face, pixel = faces[number], faces[number].box[2] / predictor.about.size
            gap = np.abs(face.points - sample.filled).max(axis=1)
            near = gap <= (RADII[SURE] + 0.5) * pixel
            found.append(sample)
            rows.append((sample.filled, face.points, sample.known, face.confidence, near, pixel))
    k = len(keypoints)
    shapes = ((0, k, 2), (0, k, 2), (0, k), (0, k), (0, k), (0,))
    arrays = [np.stack(v) for v in zip(*rows, strict=True)] if rows else [np.zeros(s) for s in shapes]
    true, predicted, known, confidence, near, pixel = arrays
    return found, Measured(
        true, predicted, known.astype(bool), confidence, near.astype(bool), pixel, [s.file for s in found],
        np.array([s.mm_per_pixel for s in found]), Finding(len(groups), len(samples), len(found), false, missed),
    )  # fmt: skip
