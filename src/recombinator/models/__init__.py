"""Networks by name: `create_model("rcn-6", keypoints=5)`. They know no files, datasets or metrics."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Any

from recombinator.models.denoiser import Denoiser, MapDenoiser, PointDenoiser
from recombinator.models.joint import Joint
from recombinator.models.networks import RCN, Level, ScoreMapNet, SumNet
from recombinator.models.tcdcn import TCDCN
from recombinator.utils.errors import InputError

__all__ = [
    "DENOISERS",
    "MODELS",
    "OPTIONS",
    "RCN",
    "TCDCN",
    "Denoiser",
    "Joint",
    "Level",
    "ScoreMapNet",
    "SumNet",
    "catalogue",
    "create_model",
    "model_names",
]


@dataclass(frozen=True)
class Architecture:
    """A named network: its class, its levels (finest first) by form, and the keypoints it was made for."""

    network: type[ScoreMapNet]
    forms: dict[str, tuple[Level, ...]]  # the first one is the default
    keypoints: int = 5
    options: dict[str, Any] = field(default_factory=dict)


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

MODELS: dict[str, Architecture] = {
    **{f"sumnet-{n}": Architecture(SumNet, {"code": _SUM_5[:n]}) for n in (4, 5, 6)},
    **{f"rcn-{n}": Architecture(RCN, _rcn_5(n)) for n in (4, 5, 6, 7)},
    **{f"rcn-{n}-skip": Architecture(RCN, _rcn_5(n), options={"skip": True}) for n in (5, 6, 7)},
    "rcn-6-fast": Architecture(RCN, {"code": _FACE_5[1:6]}, options={"fold": 2}),
    "sumnet-68": Architecture(SumNet, {"code": _SUM_68}, 68),
    "rcn-68": Architecture(RCN, _FACE_68, 68),
    "rcn-68-skip": Architecture(RCN, _FACE_68, 68, options={"skip": True}),
}


DENOISERS: dict[str, tuple[type[Denoiser], dict[str, Any]]] = {
    "denoiser": (MapDenoiser, {}),
    "denoiser-lite": (PointDenoiser, {}),
}
BASELINES: dict[str, tuple[type[TCDCN], dict[str, Any]]] = {
    "tcdcn": (TCDCN, {}),
    "tcdcn-alone": (TCDCN, {"auxiliary": False}),
}


# options of `create_model` that can be given as text, and their types
OPTIONS: dict[str, str] = {
    "size": "int", "channels": "int", "mask": "tuple[int, ...]", "upsampling": "str", "norm": "str", "width": "float",
    "alpha": "str", "fold": "int", "form": "str", "kernel": "int", "layers": "int", "heads": "int", "parts": "int",
}  # fmt: skip


def model_names() -> list[str]:
    return [*MODELS, *BASELINES, *DENOISERS]


def create_model(name: str, keypoints: int | None = None, **options: Any) -> Any:
    """A freshly initialized network.

    name: one of `model_names()`. keypoints: K, by default what the network was made for. Options: `size` (input
    side in pixels, 80), `channels` (1), `mask` (branches to keep, coarsest first), `upsampling` ("tile" |
    "bilinear"), `mirror`, `shift` (see ScoreMapNet), `norm` (local contrast normalization, its floor per "image" or
    "batch"; or "global"), `width` (factor on all widths), for SumNet `alpha` ("map" | "pixel"), for RCN `fold` (so
    many cells a side enter the finest level as channels, 1) and `form`: with five keypoints "code" or "twice" (two
    convolutions in the 10x10 branch), with 68 "code" (5x5, then 1x1) or "text" (3x3), and the released variant's
    `upsampling="learned"` and `keep_maxima` (see RCN). A denoiser takes `size`, `width` and `kernel`, or for
    "denoiser-lite" `layers`, `heads`, `parts`.

    Returns a ScoreMapNet (RCN or SumNet), a TCDCN, a Denoiser or a Joint model.

    Raises InputError for an unknown name or option and for sizes that the poolings do not allow.
    """
    if name == "joint" and "image" in options:  # a weights file: two configurations, how to add them
        parts = [dict(options[part]) for part in ("image", "denoiser")]
        nets = [create_model(part.pop("name"), part.pop("keypoints"), **part) for part in parts]
        return Joint(nets[0], nets[1], options["weight"], options["iterations"])
    if name not in model_names():
        near = difflib.get_close_matches(name, model_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no model is called {name!r}{hint} (known: {', '.join(model_names())})")
    architecture = MODELS.get(name)
    if keypoints is None:
        keypoints = architecture.keypoints if architecture else 5 if name in BASELINES else 68
    try:
        if architecture:
            net: Any = _scored(name, architecture, keypoints, options)
        else:
            network, fixed = {**DENOISERS, **BASELINES}[name]
            net = network(keypoints, **fixed, **options)
    except TypeError as error:
        raise InputError(f"model {name}: {str(error).split('() ')[-1]}") from None
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


def _scored(name: str, architecture: Architecture, keypoints: int, options: dict[str, Any]) -> ScoreMapNet:
    rest = dict(options)
    form, width = rest.pop("form", next(iter(architecture.forms))), rest.pop("width", 1.0)
    if form not in architecture.forms:
        raise InputError(f"model {name}: form={form!r} is not known: use one of {', '.join(architecture.forms)}")
    if not 0 < width <= 100:
        raise InputError(f"model {name}: width={width} must be a positive factor")
    levels = tuple(level.scaled(width) for level in architecture.forms[form])
    return architecture.network(levels, keypoints, **architecture.options, **rest)
