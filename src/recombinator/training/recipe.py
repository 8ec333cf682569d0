"""Recipes: how a network is trained, as data.

`paper` follows the paper and the authors' code. `fast` is shorter and was chosen by validation error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from recombinator.models import OPTIONS
from recombinator.models.base import KeypointNet, check_groups
from recombinator.training.loss import LOSSES
from recombinator.transforms.augment import Augment, check_ranges
from recombinator.utils.errors import InputError, check_choice, unknown
from recombinator.utils.files import from_file_keys, to_file_keys
from recombinator.utils.schema import decode

# allowed values, both ends included
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 10**6), "batch": (1, 10**6), "learning_rate": (0, math.inf), "weight_decay": (0, 1000),
    "warmup_steps": (0, 10**9), "decay": (0, 1), "sigma": (0, 1000), "patience": (0, 10**6), "distil": (0, 1),
    "corrupt": (0, 10**6), "auxiliary": (0, 1000), "ema": (0, 0.999999),
    "memory": (0, math.inf), "equivariance": (0, 1000), "ramp": (0, 10**6),
}  # fmt: skip


CHOICES: dict[str, tuple[str, ...]] = {
    "loss": tuple(LOSSES), "outside": ("ignore", "clamp"), "optimizer": ("adamw", "adadelta"),
    "precision": ("auto", "bfloat16", "float32"), "corruption": ("uniform", "mixed"), "judged": ("corrupted", "all"),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """All settings of a training except network, data and seed.

    Attributes:
        name: Name of the recipe in result files.
        epochs: Passes over the training images.
        batch: Images per step.
        optimizer: "adamw" or "adadelta" (the paper).
        augment: Ranges of the random changes to training images; see `Augment`.
        learning_rate: Highest learning rate of AdamW; a factor on Adadelta's steps.
        weight_decay: Weight decay of AdamW.
        warmup_steps: Steps over which the learning rate rises at the start, at most two epochs.
        decay: Share of the epochs, at the end, over which the learning rate falls to zero.
        loss: "softmax" (Eq. 2) or "l2" (footnote 4).
        sigma: Spread of the target in cells; 0 has the true cell only, as in Eq. 2.
        outside: Points that leave the crop: "ignore" them, or "clamp" them to its border (the authors' code).
        shuffle: Draw the images in another random order in each epoch.
        balance: Attribute of the table whose classes are drawn in proportion to the square root of their size, so that
            rare classes are seen more often (Mahajan et al., ECCV 2018); empty: every image once per epoch.
        revive: Re-initialize dead channels before each epoch until the learning rate falls.
        precision: "auto" (bfloat16 where it is fast), "bfloat16" or "float32".
        patience: Epochs without a lower validation error after which training stops; 0 never stops early.
        distil: With a teacher: weight of the teacher's score maps in the loss, from 0 to 1.
        corrupt: Denoiser: number of corrupted keypoints per face.
        corruption: Denoiser: "uniform" (random cells, section 4) or "mixed" (for half of the faces, the predictions of
            the network given as errors_of).
        auxiliary: TCDCN: weight of the loss of each facial attribute.
        judged: Denoiser: keypoints that count in the loss, "corrupted" (section 4) or "all".
        unlabeled: Finder: annotated images may hold further objects, so confident detections there count little.
        ema: Decay per step of the exponential moving average of the weights that is validated and kept; 0 keeps the
            weights themselves.
        memory: Gigabytes of decoded crops that are kept in memory; those of a larger table stay on disk, and are mixed
            by blocks in place of all at once.
        equivariance: Score maps: weight of the squared distance in pixels between the points of two views of an image
            (Honari et al., CVPR 2018). Images without points then train too, as many per step as those with points;
            `batch` and an epoch count those with points. 0: no such term.
        ramp: Epochs over which the weight of `equivariance` rises from zero.
        regularize: Factor lambda of the L2 penalty in Eq. 2 for trunk, branch and alpha weights, with Adadelta.
    """

    name: str
    epochs: int
    batch: int
    optimizer: str
    augment: Augment
    learning_rate: float = 1.0
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: float = 0.0
    loss: str = "softmax"
    sigma: float = 0.0
    outside: str = "ignore"
    shuffle: bool = True
    balance: str = ""
    revive: bool = False
    precision: str = "auto"
    ema: float = 0.0
    memory: float = 2.0
    patience: int = 0
    distil: float = 0.5
    corrupt: int = 35
    corruption: str = "uniform"
    auxiliary: float = 0.01
    judged: str = "corrupted"
    unlabeled: bool = False
    equivariance: float = 0.0
    ramp: int = 0
    regularize: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if self.balance and not self.shuffle:
            raise InputError(f"balance={self.balance!r} draws images at random and needs shuffle=true")
        check_ranges(self, RANGES)

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe with the keys of run.json."""
        return to_file_keys(asdict(self))

    @classmethod
    def from_dict(cls, value: dict[str, Any], where: str = "recipe") -> Recipe:
        """Create a recipe from `to_dict`; fields that were added since have their defaults.

        Args:
            value: The recipe, as a file has it.
            where: The start of messages, such as the file.

        Raises:
            InputError: A field is missing, unknown, or has another type or range.
        """
        value = from_file_keys(decode(dict[str, Any], value, where))
        augment = value.get("augment")
        for kind, found in ((cls, value), (Augment, augment if isinstance(augment, dict) else {})):
            for name in sorted(found.keys() - {f.name for f in fields(kind)}):
                raise InputError(f"{where}: {name}: unknown field; is it of a later version?")
        return decode(cls, value, where)

    @property
    def stable_epochs(self) -> int:
        """Epochs before the learning rate starts to fall. Up to here, a longer training is identical."""
        return self.epochs - round(self.epochs * self.decay)

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a step: warm-up, constant, then a cosine fall to zero.

        Args:
            step: Steps taken since the start of the training.
            steps_per_epoch: Steps per epoch.
        """
        warmup = min(self.warmup_steps, 2 * steps_per_epoch)  # small data sets have few steps per epoch
        rate = self.learning_rate * min(1.0, (step + 1) / max(warmup, 1))
        start, end = self.stable_epochs * steps_per_epoch, self.epochs * steps_per_epoch
        if step >= start and end > start:
            rate *= 0.5 * (1 + math.cos(math.pi * (step - start + 1) / (end - start + 1)))
        return rate


FAST = Recipe(
    name="fast",
    epochs=60,
    batch=32,
    optimizer="adamw",
    learning_rate=2e-3,
    weight_decay=0.02,
    warmup_steps=300,
    decay=0.7,
    sigma=0.5,
    augment=Augment(turned=0.1),
)
PAPER = Recipe(
    name="paper",
    epochs=300,
    batch=64,
    optimizer="adadelta",
    augment=Augment(),
    outside="clamp",
    precision="float32",
)
RECIPES = {r.name: r for r in (FAST, PAPER)}

# Factors of the L2 penalty in Eq. 2, from the README of the authors' code. It has 6-branch networks only; the other
# depths use the same values.
_PAPER_L2 = {
    "sumnet": {"trunk": 1e-10, "branch": 1e-14, "alpha": 1e-14},
    "rcn": {"trunk": 1e-6, "branch": 1e-12},
    "rcn-skip": {"trunk": 1e-4, "branch": 1e-4},
    "sumnet-68": {"trunk": 1e-14, "branch": 1e-6},
    "rcn-68": {"trunk": 1e-12, "branch": 1e-8},
    "rcn-68-skip": {"trunk": 0.1, "branch": 0.1},
    "denoiser": {"branch": 1e-6},
}


def get_recipe(name: str, model: str, **changes: Any) -> Recipe:
    """Return a recipe by name.

    Args:
        name: "fast" or "paper".
        model: Name of the network; it decides the L2 factors of the paper recipe.
        **changes: New values of fields of the recipe or of its Augment.

    Raises:
        InputError: Unknown name, or a value outside its range.
    """
    check_choice("recipe", name, RECIPES)
    recipe = RECIPES[name]
    if name == "paper":
        family = "-".join(part for part in model.split("-") if part == "68" or not part.isdigit())
        recipe = replace(recipe, regularize=_PAPER_L2.get(family.removesuffix("-fast"), {}))
    return changed(recipe, **changes)


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """Return a copy of a recipe with new values of its fields or of those of its Augment."""
    for name in changes:
        if name not in Augment.__dataclass_fields__ and name not in Recipe.__dataclass_fields__:
            raise unknown("setting", name, setting_types())
    own = {k: v for k, v in changes.items() if k in Augment.__dataclass_fields__}
    rest = {k: v for k, v in changes.items() if k not in own}
    return replace(recipe, augment=replace(recipe.augment, **own), **rest)


def _pair(text: str) -> tuple[int, int]:
    a, b = text.split(",")
    return int(a), int(b)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(t) for t in text.split(","))


PARSERS: dict[str, tuple[str, Callable[[str], Any]]] = {  # by type of a setting: how messages name it, its parser
    "int": ("an integer", int), "float": ("a number", float), "str": ("text", str),
    "bool": ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
    "tuple[int, int]": ("two integers, such as 20,50", _pair),
    "tuple[int, ...]": ("integers, such as 1,0,0,1", _integers),
}  # fmt: skip


def setting_types() -> dict[str, str]:
    """Return the type of every name that `parse_settings` accepts.

    These are fields of Recipe and Augment, then options of `create_model`.
    """
    recipe = {f.name: str(f.type) for c in (Recipe, Augment) for f in fields(c) if str(f.type) in PARSERS}
    return recipe | OPTIONS


def parse_settings(texts: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse settings given as text, such as ["stretch=0.2", "kernel=23"].

    Args:
        texts: Settings as NAME=VALUE.

    Returns:
        Changes to fields of a Recipe or its Augment, and options of `create_model`.

    Raises:
        InputError: Unknown name, or a value of another type.
    """
    known = setting_types()
    changes: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            raise InputError(f"--set {text}: {unknown('setting', name, known)}")
        expected, parse = PARSERS[known[name]]
        try:
            (options if name in OPTIONS else changes)[name] = parse(value)
        except (ValueError, KeyError):
            raise InputError(f"--set {text}: expected {expected} after the =") from None
    return changes, options


def make_optimizer(recipe: Recipe, net: KeypointNet) -> torch.optim.Optimizer:
    """Create the optimizer of a recipe, with weight decay by the groups that the network declares.

    AdamW decays trunk and branch weights. Adadelta decays each group by the recipe's L2 factor: the paper's penalty
    lambda * W^2 is a weight decay of 2 * lambda.

    Raises:
        InputError: A parameter is in no group or in two.
    """
    groups = net.weight_groups()
    check_groups(net, groups)
    if recipe.optimizer == "adadelta":
        decays = {name: 2 * recipe.regularize.get(name, 0.0) for name in groups}
    else:
        decays = {name: recipe.weight_decay if name in ("trunk", "branch") else 0.0 for name in groups}
    order = sorted(groups, key=lambda name: ("trunk", "branch", "alpha", "none").index(name))
    parameters = [{"params": groups[name], "weight_decay": decays[name]} for name in order if groups[name]]
    if recipe.optimizer == "adadelta":
        return torch.optim.Adadelta(parameters, lr=1.0, rho=0.95, eps=1e-8)
    return torch.optim.AdamW(parameters, lr=recipe.learning_rate, fused=True)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Return whether the device computes in bfloat16: GPUs that support it and CPUs with AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())
