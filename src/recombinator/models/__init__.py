"""Networks by name: `create_model("rcn-6", keypoints=5)`. They are independent of files, datasets and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, cast, get_args, get_origin

import msgspec
import numpy as np
from msgspec import Meta

from recombinator.models.base import KeypointNet
from recombinator.models.cascade import Cascade
from recombinator.models.denoiser import Denoiser, MapDenoiser, PointDenoiser
from recombinator.models.finder import Finder
from recombinator.models.joint import Joint
from recombinator.models.networks import RCN, Level, ScoreMapNet, SumNet
from recombinator.models.tcdcn import TCDCN
from recombinator.utils import schema  # not its `decode`: that is the name of a module here
from recombinator.utils.errors import InputError, check_choice

__all__ = [
    "MODELS",
    "OPTIONS",
    "RCN",
    "TCDCN",
    "Architecture",
    "Cascade",
    "Denoiser",
    "Finder",
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
    """An entry of `MODELS`.

    Attributes:
        make: Factory of the network. Its arguments are K and the options of `create_model`.
        keypoints: Default K: the number that the network was designed for.
    """

    make: Callable[..., KeypointNet]
    keypoints: int = 5


def _level(trunk: int, *branch: int, kernels: tuple[int, ...] | None = None, trunk_kernel: int = 3) -> Level:
    """Return a level from the map counts of its trunk and branch convolutions; kernels are 3x3 by default."""
    return Level(trunk, tuple(zip(branch, kernels or (3,) * len(branch), strict=True)), trunk_kernel)


# Fig. 1 and Table 2: the networks for 5 keypoints, finest level first. The finest included branch ends in K maps.
_FACE_5 = (
    _level(16, 16, 16), _level(32, 32, 16), _level(48, 48, 32), _level(48, 48), _level(48, 48, 48), _level(48, 48, 48),
    _level(48, 48, 48, kernels=(1, 1), trunk_kernel=1),
)  # fmt: skip
_TEN_TWICE = _level(48, 48, 48)
# Fig. 1 (left): a branch of SumNet is one convolution as wide as its trunk, then one to K maps.
_SUM_5 = tuple(_level(w, w, w) for w in (16, 32, 48, 48, 48, 48))


def _rcn_5(branches: int) -> dict[str, tuple[Level, ...]]:
    """Return the levels of an RCN for 5 keypoints by the option `form`, the default first.

    The 10x10 branch has one convolution in the authors' code for 5 to 7 branches ("code") and two in Fig. 1, which
    shows 4 branches ("twice").
    """
    once, twice = _FACE_5[:branches], (*_FACE_5[:3], _TEN_TWICE, *_FACE_5[4:branches])
    return {"twice": twice, "code": once} if branches == 4 else {"code": once, "twice": twice}


# Section 5.2, 300W: the authors' code (5x5, then 1x1; one convolution at 10x10) and the paper's text (3x3, and two 1x1
# in the finest branch)
_FACE_68: dict[str, tuple[Level, ...]] = {
    "code": (
        _level(64, 64, 64, 64, 64, kernels=(5, 1, 1, 1)), *(_level(64, 64, 64, kernels=(5, 1)),) * 2,
        _level(64, 64, kernels=(5,)), _level(64, 64, 64, kernels=(5, 1)),
    ),
    "text": (_level(64, 64, 64, 64, 64, kernels=(3, 1, 1, 1)), *(_level(64, 64, 64),) * 4),
}  # fmt: skip
_SUM_68 = (_level(64, 64, 64, 64, 64), *(_level(64, 64, 64),) * 4)  # of the authors' code; not in the paper


def _score_maps(
    network: type[ScoreMapNet], forms: dict[str, tuple[Level, ...]], **fixed: Any
) -> Callable[..., ScoreMapNet]:
    """Return a factory of SumNet or RCN.

    Args:
        network: The class.
        forms: Levels, finest first, by the value of the option `form`. The first is the default.
        **fixed: Arguments of the class that the name decides.
    """

    def make(keypoints: int, *, form: str = next(iter(forms)), width: float = 1.0, **options: Any) -> ScoreMapNet:
        check_choice("form", form, forms)
        if width > 100:
            raise InputError(f"width={width} must be a factor of at most 100")
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
    "finder": Architecture(Finder),
}

_Maps = Annotated[int, Meta(ge=1, le=4096)]
# types and ranges of the options of `create_model`; a network may allow less
_OPTION_TYPES: dict[str, Any] = {
    "size": Annotated[int, Meta(ge=1, le=1024)], "channels": Annotated[int, Meta(ge=1, le=16)],
    "mask": tuple[int, ...], "upsampling": str, "norm": str,
    "width": Annotated[float, Meta(gt=0, le=4096)], "alpha": str, "fold": _Maps, "form": str,
    "kernel": _Maps, "layers": Annotated[int, Meta(ge=0, le=64)], "heads": _Maps,
    "parts": Annotated[int, Meta(ge=1, le=64)], "modes": _Maps,
    "mirror": tuple[int, ...], "shift": Annotated[int, Meta(ge=0, le=4096)],
    "smooth": Annotated[float, Meta(ge=0, le=128)], "keep_maxima": bool, "rule": str,
}  # fmt: skip
_NOT_IN_TRAINING = ("modes", "mirror", "shift", "smooth", "keep_maxima")  # set by other commands
# types of the options that `train --set` accepts
OPTIONS: dict[str, str] = {
    name: str(kind) if get_origin(kind) is tuple else (get_args(kind) or (kind,))[0].__name__
    for name, kind in _OPTION_TYPES.items()
    if name not in _NOT_IN_TRAINING
}


class _Joint(msgspec.Struct):
    """The configuration of a joint model, as its weights file has it."""

    image: dict[str, Any]
    denoiser: dict[str, Any]
    weight: Annotated[float, Meta(ge=0, le=1e6)]
    iterations: Annotated[int, Meta(ge=1, le=100)]


class _Cascade(msgspec.Struct):
    """The configuration of a cascade, as its weights file has it."""

    coarse: dict[str, Any]
    fine: dict[str, Any]
    factor: Annotated[int, Meta(ge=1, le=100)]
    weight: Annotated[float, Meta(ge=0, le=1e6)]
    sharpness: Annotated[float, Meta(gt=0, le=1e6)]


def model_names() -> list[str]:
    """Return the names that `create_model` accepts."""
    return list(MODELS)


def create_model(name: str, keypoints: int | None = None, **options: Any) -> KeypointNet:
    """Create a freshly initialized network.

    Args:
        name: One of `model_names()`.
        keypoints: K; by default the number that the network was designed for.
        **options: See below. An option that the network does not have is an error.

    Options:
        size: Side of the input in pixels, 80 by default.
        channels: Networks for images: input channels, 1 (gray, the default) or 3 (RGB).
        norm: Networks for images: local contrast normalization with its floor per "image" or "batch", or "global".
        mask: SumNet and RCN: 1 for each branch to keep and 0 for each to leave out, coarsest first.
        upsampling: SumNet and RCN: "tile" or "bilinear"; RCN also "learned".
        width: SumNet and RCN: factor on all map counts. Denoisers: maps, or features per token.
        mirror: SumNet, RCN and denoisers: average with the mirror image (see `ScoreMapNet`).
        shift: SumNet and RCN: average over positions shifted by this many pixels (see `ScoreMapNet`).
        smooth: SumNet and RCN: smooth the probabilities by this many cells (see `ScoreMapNet`).
        alpha: SumNet: one weight per score "map" or per "pixel".
        fold: RCN: squares of fold x fold pixels enter the finest level as channels.
        form: RCN: "code" or "twice" (two convolutions in the 10x10 branch) for 5 keypoints; "code" (5x5, then 1x1) or
            "text" (3x3) for 68.
        keep_maxima: RCN: trunk maps keep only the maximum of each 2x2 window (see `RCN`).
        kernel: denoiser: kernel side in cells, odd.
        layers: denoiser-lite: transformer layers.
        heads: denoiser-lite: attention heads.
        parts: denoiser-lite: Gaussians per keypoint.
        rule: finder: crop rule of its localizer.

    Returns:
        The network in training mode.

    Raises:
        InputError: Unknown name or option, or a size that the poolings do not allow.
    """
    if name == "joint" and "image" in options:  # the configuration of a joint model's weights file
        joint = schema.decode(_Joint, options, "model joint")
        image, denoiser = (_part(name, part) for part in (joint.image, joint.denoiser))
        return Joint(cast(ScoreMapNet, image), cast(Denoiser, denoiser), joint.weight, joint.iterations)
    if name == "cascade" and "coarse" in options:  # that of a cascade's weights file
        cascade = schema.decode(_Cascade, options, "model cascade")
        coarse, fine = (cast(ScoreMapNet, _part(name, part)) for part in (cascade.coarse, cascade.fine))
        return Cascade(coarse, fine, cascade.factor, cascade.weight, cascade.sharpness)
    check_choice("model", name, MODELS)
    keypoints = MODELS[name].keypoints if keypoints is None else keypoints
    schema.decode(Annotated[int, Meta(ge=1, le=10_000)], _plain(keypoints), f"model {name}: keypoints")
    for option, value in options.items():
        if option in _OPTION_TYPES and value is not None:
            schema.decode(_OPTION_TYPES[option], _plain(value), f"model {name}: {option}")
    try:
        net = MODELS[name].make(keypoints, **options)
    except TypeError as error:
        raise InputError(f"model {name}: {str(error).split('() ')[-1]}") from None
    except InputError as error:
        raise InputError(f"model {name}: {error}") from None
    net.config = {"name": name, "keypoints": keypoints, **options}
    return net


def _plain(value: Any) -> Any:
    """Return a number or an array of numpy as Python has it."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _part(whole: str, config: dict[str, Any]) -> KeypointNet:
    name, keypoints, options = config.get("name"), config.get("keypoints"), dict(config)
    if not isinstance(name, str) or name not in MODELS or keypoints is None:
        raise InputError(f"model {whole}: expected the name and keypoints of each of its two networks")
    del options["name"], options["keypoints"]
    return create_model(name, keypoints, **options)


def catalogue(keypoints: int | None = None, size: int | None = None) -> list[dict[str, Any]]:
    """Describe every network that can be created for an input size.

    Args:
        keypoints: K; by default the number that each network was designed for.
        size: Side of the input in pixels; by default the one that each network was designed for.

    Returns:
        One row per network: name, parameters, multiply_adds (per image), input (side in pixels), keypoints.

    Raises:
        InputError: No network allows this size.
    """
    rows: list[dict[str, Any]] = []
    for name in model_names():
        try:
            net = create_model(name, keypoints, **({} if size is None else {"size": size}))
        except InputError as error:
            last = error
            continue
        rows.append({
            "name": name, "parameters": sum(p.numel() for p in net.parameters()),
            "multiply_adds": net.multiply_adds(), "input": net.size, "keypoints": net.keypoints,
        })  # fmt: skip
    if not rows:
        raise last
    return rows
