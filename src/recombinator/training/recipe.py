"""How a network is trained, as data: `paper` (SPEC 3) and `fast` (ours, fixed on validation)."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from recombinator.models import OPTIONS
from recombinator.models.base import KeypointNet, check_groups
from recombinator.training.loss import LOSSES
from recombinator.transforms.augment import Augment, check_ranges
from recombinator.utils.errors import InputError
from recombinator.utils.files import from_file_keys, to_file_keys

# What a denoiser is given: `corrupt` of the points moved to uniform cells (the paper), or blanked; the answers of a
# trained network on jittered and occluded training images; or for each face one of the first and the last.
CORRUPTIONS = ("uniform", "mixed")


# what numbers may be, ends included
RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 10**6), "batch": (1, 10**6), "learning_rate": (0, math.inf), "weight_decay": (0, 1000),
    "warmup_steps": (0, 10**9), "decay": (0, 1), "sigma": (0, 1000), "patience": (0, 10**6), "distil": (0, 1),
    "corrupt": (0, 10**6), "auxiliary": (0, 1000),
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run besides network, data and seed."""

    name: str
    epochs: int
    batch: int
    optimizer: str  # "adamw" | "adadelta"
    augment: Augment
    learning_rate: float = 1.0
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: float = 0.0  # share of the epochs at the end over which the learning rate falls to zero
    loss: str = "softmax"
    sigma: float = 0.0  # spread of the target in cells; 0: one cell
    outside: str = "ignore"  # a point that left the crop: "ignore" it or "clamp" it to the border
    shuffle: bool = True
    # an attribute: its classes are drawn as often as the square roots of their sizes say, which
    # shows rare ones more often (Mahajan et al., ECCV 2018); "": every image once an epoch
    balance: str = ""
    revive: bool = False  # before each epoch until the rate falls, silent maps begin anew (training.revive)
    precision: str = "auto"  # "auto" | "bfloat16" | "float32"
    patience: int = 0  # epochs without a better validation error before stopping; 0: never
    distil: float = 0.5  # with a teacher: share of the loss that is learnt from its maps
    corrupt: int = 35  # denoiser: points of a face that are corrupted
    corruption: str = "uniform"  # denoiser: one of CORRUPTIONS
    auxiliary: float = 0.01  # tcdcn: weight of each attribute's loss
    judged: str = "corrupted"  # denoiser: the points whose answers count, "corrupted" (the paper) or "all"
    regularize: dict[str, float] = field(default_factory=dict)  # L2 factors: trunk, branch, alpha

    def __post_init__(self) -> None:
        for label, value, known in (
            ("loss", self.loss, tuple(LOSSES)), ("outside", self.outside, ("ignore", "clamp")),
            ("optimiser", self.optimizer, ("adamw", "adadelta")),
            ("precision", self.precision, ("auto", "bfloat16", "float32")),
            ("corruption", self.corruption, CORRUPTIONS), ("judged", self.judged, ("corrupted", "all")),
        ):  # fmt: skip
            if value not in known:
                raise InputError(f"{label}={value!r} is not known: use one of {', '.join(known)}")
        if self.balance and not self.shuffle:
            raise InputError(f"balance={self.balance!r} draws images at random: shuffle must be on")
        check_ranges(self, RANGES)

    def to_dict(self) -> dict[str, Any]:
        return to_file_keys(asdict(self))

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Recipe:
        value = from_file_keys(value)
        augment = dict(value["augment"])
        return cls(**{**value, "augment": Augment(**{**augment, "occlude": tuple(augment["occlude"])})})

    @property
    def stable_epochs(self) -> int:
        """Epochs before the learning rate starts to fall: up to here a longer run is the same run."""
        return self.epochs - round(self.epochs * self.decay)

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Warm-up by steps, constant, then a fall to zero over the last `decay` of the epochs."""
        warmup = min(self.warmup_steps, 2 * steps_per_epoch)  # a small set's first epochs are few steps
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

# The README's L2 factors (SPEC 3); 6-branch values stand for the other depths (SPEC 7 row 15).
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
    """A recipe by name, with the L2 factors of the model's family, and `changes` to fields of it or of its Augment."""
    if name not in RECIPES:
        raise InputError(f"no recipe is called {name!r}: use one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if name == "paper":
        family = "-".join(part for part in model.split("-") if part == "68" or not part.isdigit())
        recipe = replace(recipe, regularize=_PAPER_L2.get(family.removesuffix("-fast"), {}))
    return changed(recipe, **changes)


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with `changes` to its fields, or to those of its Augment."""
    own = {k: v for k, v in changes.items() if k in Augment.__dataclass_fields__}
    rest = {k: v for k, v in changes.items() if k not in own}
    return replace(recipe, augment=replace(recipe.augment, **own), **rest)


def _pair(text: str) -> tuple[int, int]:
    a, b = text.split(",")
    return int(a), int(b)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(t) for t in text.split(","))


_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {  # a field's type -> what it is called, how it is read
    "int": ("an integer", int), "float": ("a number", float), "str": ("text", str),
    "bool": ("true or false", lambda text: {"true": True, "false": False}[text.lower()]),
    "tuple[int, int]": ("two integers, such as 20,50", _pair),
    "tuple[int, ...]": ("integers, such as 1,0,0,1", _integers),
}  # fmt: skip


def setting_types() -> dict[str, str]:
    """Names that `parse_settings` accepts and their types: fields of Recipe and Augment, then options of a network."""
    recipe = {f.name: str(f.type) for c in (Recipe, Augment) for f in fields(c) if str(f.type) in _READERS}
    return recipe | OPTIONS


def parse_settings(texts: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """["stretch=0.2", "kernel=23"] -> changes to fields of a Recipe or its Augment, and options of `create_model`.
    Raises InputError for an unknown name or a value of another type."""
    known = setting_types()
    changes: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(known))}"
            raise InputError(f"--set {text}: unknown setting {name!r}; {hint}")
        expected, read = _READERS[known[name]]
        try:
            (options if name in OPTIONS else changes)[name] = read(value)
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
    """True on GPUs that have it and on CPUs with AVX-512 bf16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(probe and probe())
