"""Split images into train, valid and test: by a column, by groups, or at random with the authors' seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from recombinator.data.table import SPLIT_SEED
from recombinator.utils.errors import InputError

SPLITS = {
    "train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip


def split_of(text: str) -> str:
    """Return the split that a text names: "train", "valid" or "test".

    Raises:
        InputError: It names none.
    """
    if text.strip().casefold() not in SPLITS:
        raise InputError(f"unknown split {text!r}; expected one of {', '.join(SPLITS)}")
    return SPLITS[text.strip().casefold()]


def connected(files: Iterable[str], groups: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the images in sets that share no group, each sorted and all in the order of their first image.

    Args:
        files: The images.
        groups: The groups of each image's objects; an image that has none is a set of its own.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    names = sorted(files)
    for file in names:
        for group in groups.get(file, ()):
            parent[root(f"image {file}")] = root(f"group {group}")
    sets: dict[str, list[str]] = {}
    for file in names:
        sets.setdefault(root(f"image {file}"), []).append(file)
    return list(sets.values())


def draw(sets: Sequence[list[str]], wanted: Sequence[str]) -> dict[str, list[str]]:
    """Draw a tenth of the images for each split of `wanted`; the others are for training.

    A set of images is not divided. One that would more than double a split is used for training, unless there are
    only such ones: then the smallest is drawn.

    Args:
        sets: Images that stay together; single ones give the split of earlier versions.
        wanted: Splits to draw, in this order.

    Returns:
        The images of every split of `wanted`, and of "train".
    """
    tenth = max(1, sum(map(len, sets)) // 10)
    order = [sets[i] for i in np.random.RandomState(SPLIT_SEED).permutation(len(sets))]
    parts: dict[str, list[str]] = {}
    for split in wanted:
        chosen: list[list[str]] = []
        for images in order:
            count = sum(map(len, chosen))
            if count < tenth and count + len(images) <= 2 * tenth:
                chosen.append(images)
        chosen = chosen or [min(order, key=len)]
        order = [images for images in order if not any(images is c for c in chosen)]
        parts[split] = [f for images in chosen for f in images]
    return {**parts, "train": [f for images in order for f in images]}


def split_images(named: Mapping[str, str], groups: Mapping[str, Iterable[str]], what: str) -> dict[str, list[str]]:
    """Return the images of train, valid and test.

    Args:
        named: The split of each image; empty where nothing says it, which is drawn.
        groups: The groups of each image's objects. Images with a common group are drawn together.
        what: The points file, for messages.

    Raises:
        InputError: There are too few images or groups.
    """
    fixed = {split: [f for f, s in named.items() if s == split] for split in ("test", "valid", "train")}
    wanted = [s for s in ("test", "valid") if not fixed[s]]
    pool = connected([f for f, s in named.items() if s in ("", "train")], groups)
    if len(pool) <= len(wanted):
        kind = "groups of images" if groups else "images"
        splits = {2: "three splits", 1: "two splits"}.get(len(wanted), "a training split")
        raise InputError(f"{what}: expected {len(wanted) + 1} or more {kind} for {splits}, got {len(pool)}")
    drawn = draw(pool, wanted)
    return {split: sorted(drawn.get(split, fixed[split])) for split in ("test", "valid", "train")}


def shared_groups(parts: Mapping[str, Iterable[str]], groups: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the groups that have images in more than one split."""
    counts = Counter(g for files in parts.values() for g in {g for f in files for g in groups.get(f, ())})
    return sorted(g for g, n in counts.items() if n > 1)
