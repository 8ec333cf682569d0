"""Networks by name: `create_model("rcn-6", keypoints=5)`. They know no files, datasets or metrics."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from recombinator.models.base import KeypointNet
from recombinator.models.denoiser import Denoiser, MapDenoiser, PointDenoiser
from recombinator.models.joint import Joint
from recombinator.models.networks import RCN, Level, ScoreMapNet, SumNet
from recombinator.models.tcdcn import TCDCN
from recombinator.utils.errors import InputError

__all__ = [
    "MODELS",
    "OPTIONS",
    "RCN",
    "TCDCN",
    "Architecture",
    "Denoiser",
    "Joint",
    "KeypointNet",
    "Level",
    "ScoreMapNet",
    "SumNet",
    "catalogue",
    "create_model",
    "model_names",
]


@dataclass(frozen=True)
class Architecture:
    """A named network.

    Attributes:
        make: Called with K and the options of `create_model`; returns the network.
        keypoints: K by default: what the network was designed for.
    """

    make: Callable[..., KeypointNet]
    keypoints: int = 5


def _level(trunk: int, *branch: int, kernels: tuple[int, ...] | None = None, trunk_kernel: int = 3) -> Level:
    return Level(trunk, tuple(zip(branch, kernels or (3,) * len(branch), strict=True)), trunk_kernel)


# SPEC 1.1, finest first. A branch's list is its convolutions; the finest included branch ends in K maps.
_FACE_5 = (
    _level(16, 16, 16), _level(32, 32, 16), _level(48, 48, 32), _level(48, 48), _level(48, 48, 48), _level(48, 48, 48),
    _level(48, 48, 48, kernels=(1, 1), trunk_kernel=1),
)  # fmt: skip
_TEN_TWICE = _level(48, 48, 48)
# SPEC 1.3: a branch of SumNet is one convolution as wide as its trunk, then one to K maps.
_SUM_5 = tuple(_level(w, w, w) for w in (16, 32, 48, 48, 48, 48))


def _rcn_5(branches: int) -> dict[str, tuple[Level, ...]]:
    """The 10x10 branch has one convolution in the authors' 5 to 7 branch code ("code"), two in Fig. 1, which draws
    4 branches ("twice")."""
    once, twice = _FACE_5[:branches], (*_FACE_5[:3], _TEN_TWICE, *_FACE_5[4:branches])
    return {"twice": twice, "code": once} if branches == 4 else {"code": once, "twice": twice}


# SPEC 1.4: the authors' code (5x5, then 1x1; one convolution at 10x10) and the paper's text (3x3, two 1x1 more).
_FACE_68: dict[str, tuple[Level, ...]] = {
    "code": (
        _level(64, 64, 64, 64, 64, kernels=(5, 1, 1, 1)), *(_level(64, 64, 64, kernels=(5, 1)),) * 2,
        _level(64, 64, kernels=(5,)), _level(64, 64, 64, kernels=(5, 1)),
    ),
    "text": (_level(64, 64, 64, 64, 64, kernels=(3, 1, 1, 1)), *(_level(64, 64, 64),) * 4),
}  # fmt: skip
_SUM_68 = (_level(64, 64, 64, 64, 64), *(_level(64, 64, 64),) * 4)  # SPEC 1.5


def _score_maps(
    network: type[ScoreMapNet], forms: dict[str, tuple[Level, ...]], **fixed: Any
) -> Callable[..., ScoreMapNet]:
    """A factory of SumNet or RCN. forms: levels, finest first, by the value of the option `form`; the first is the
    default."""

    def make(keypoints: int, *, form: str = next(iter(forms)), width: float = 1.0, **options: Any) -> ScoreMapNet:
        if form not in forms:
            raise InputError(f"unknown form={form!r}; expected one of {', '.join(forms)}")
        if not 0 < width <= 100:
            raise InputError(f"width={width} must be a positive factor, at most 100")
        return network(tuple(level.scaled(width) for level in forms[form]), keypoints, **fixed, **options)

    return make


MODELS: dict[str, Architecture] = {
    **{f"sumnet-{n}": Architecture(_score_maps(SumNet, {"code": _SUM_5[:n]})) for n in (4, 5, 6)},
    **{f"rcn-{n}": Architecture(_score_maps(RCN, _rcn_5(n))) for n in (4, 5, 6, 7)},
    **{f"rcn-{n}-skip": Architecture(_score_maps(RCN, _rcn_5(n), skip=True)) for n in (5, 6, 7)},
    "rcn-6-fast": Architecture(_score_maps(RCN, {"code": _FACE_5[1:6]}, fold=2)),
    "sumnet-68": Architecture(_score_maps(SumNet, {"code": _SUM_68}), 68),
    "rcn-68": Architecture(_score_maps(RCN, _FACE_68), 68),
    "rcn-68-skip": Architecture(_score_maps(RCN, _FACE_68, skip=True), 68),
    "tcdcn": Architecture(TCDCN),
    "tcdcn-alone": Architecture(partial(TCDCN, auxiliary=False)),
    "denoiser": Architecture(MapDenoiser, 68),
    "denoiser-lite": Architecture(PointDenoiser, 68),
}

# options of `create_model` that can be given as text, and their types
OPTIONS: dict[str, str] = {
    "size": "int", "channels": "int", "mask": "tuple[int, ...]", "upsampling": "str", "norm": "str", "width": "float",
    "alpha": "str", "fold": "int", "form": "str", "kernel": "int", "layers": "int", "heads": "int", "parts": "int",
}  # fmt: skip


def model_names() -> list[str]:
    """Return the names that `create_model` accepts."""
    return list(MODELS)


def create_model(name: str, keypoints: int | None = None, **options: Any) -> KeypointNet:
    """Create a freshly initialized network.

    Args:
        name: One of `model_names()`.
        keypoints: K; by default what the network was designed for.
        **options: `size` (input side in pixels, 80) and, for networks that take images, `channels` (1) and `norm`
            (local contrast normalization with its floor per "image" or "batch", or "global"). SumNet and RCN: `mask`
            (branches to keep, coarsest first), `upsampling` ("tile" | "bilinear"), `width` (factor on all widths),
            `mirror` and `shift` (see ScoreMapNet). SumNet: `alpha` ("map" | "pixel"). RCN: `fold` (n: squares of n x n
            pixels enter the finest level as channels), `form` ("code" | "twice" with 5 keypoints, where "twice" has two
            convolutions in the 10x10 branch; "code" | "text" with 68, where "code" is 5x5, then 1x1), and the released
            variant's `upsampling="learned"` and `keep_maxima`. Denoiser: `width`, `kernel`; denoiser-lite: `width`,
            `layers`, `heads`, `parts`.

    Returns:
        The network in training mode.

    Raises:
        InputError: Unknown name or option, or a size that the poolings do not allow.
    """
    if name == "joint" and "image" in options:  # a weights file: two configurations, how to add them
        parts = [dict(options[part]) for part in ("image", "denoiser")]
        nets = [create_model(part.pop("name"), part.pop("keypoints"), **part) for part in parts]
        return Joint(cast(ScoreMapNet, nets[0]), cast(Denoiser, nets[1]), options["weight"], options["iterations"])
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"unknown model {name!r}{hint} (known: {', '.join(MODELS)})")
    keypoints = MODELS[name].keypoints if keypoints is None else keypoints
    try:
        net = MODELS[name].make(keypoints, **options)
    except TypeError as error:
        raise InputError(f"model {name}: {str(error).split('() ')[-1]}") from None
    except InputError as error:
        raise InputError(f"model {name}: {error}") from None
    net.config = {"name": name, "keypoints": keypoints, **options}
    return net


def catalogue(keypoints: int | None = None, size: int = 80) -> list[dict[str, Any]]:
    """Every network that can have this input side: name, parameters, multiply_adds an image, input side in pixels,
    keypoints. Raises InputError where none can."""
    rows: list[dict[str, Any]] = []
    for name in model_names():
        try:
            net = create_model(name, keypoints, size=size)
        except InputError as error:
            last = error
            continue
        rows.append({
            "name": name, "parameters": sum(p.numel() for p in net.parameters()),
            "multiply_adds": net.multiply_adds(), "input": size, "keypoints": net.keypoints,
        })  # fmt: skip
    if not rows:
        raise last
    return rows
