"""Networks by name: `create_model("rcn-6", keypoints=5)`. They know no files, datasets or metrics."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from recombinator.errors import InputError
from recombinator.models.networks import RCN, Level, ScoreMapNet, SumNet

__all__ = ["MODELS", "RCN", "Level", "ScoreMapNet", "SumNet", "create_model", "model_names"]

# SPEC 1.1, finest first. A branch's list is its convolutions; the finest included branch ends in K maps.
_FACE = (
    Level(16, ((16, 3), (16, 3))),
    Level(32, ((32, 3), (16, 3))),
    Level(48, ((48, 3), (32, 3))),
    Level(48, ((48, 3),)),  # one convolution in the authors' 5 to 7 branch code
    Level(48, ((48, 3), (48, 3))),
    Level(48, ((48, 3), (48, 3))),
    Level(48, ((48, 1), (48, 1)), trunk_kernel=1),
)
_TEN_TWICE = Level(48, ((48, 3), (48, 3)))  # Fig. 1: the coarsest, 10x10 branch of the 4-branch net has two

# SPEC 1.3: a branch of SumNet is one convolution as wide as its trunk, then one to K maps.
_SUM = tuple(Level(w, ((w, 3), (w, 3))) for w in (16, 32, 48, 48, 48, 48))


def _rcn(branches: int, skip: bool = False) -> Callable[..., ScoreMapNet]:
    def build(keypoints: int, *, d_convs: int | None = None, width: float = 1.0, **options: Any) -> ScoreMapNet:
        levels = list(_FACE[:branches])
        if (d_convs or (2 if branches == 4 else 1)) == 2:
            levels[3] = _TEN_TWICE
        return RCN(tuple(x.scaled(width) for x in levels), keypoints, skip=skip, **options)

    return build


def _sumnet(branches: int) -> Callable[..., ScoreMapNet]:
    def build(keypoints: int, *, width: float = 1.0, **options: Any) -> ScoreMapNet:
        return SumNet(tuple(x.scaled(width) for x in _SUM[:branches]), keypoints, **options)

    return build


MODELS: dict[str, Callable[..., ScoreMapNet]] = {
    **{f"sumnet-{n}": _sumnet(n) for n in (4, 5, 6)},
    **{f"rcn-{n}": _rcn(n) for n in (4, 5, 6, 7)},
    **{f"rcn-{n}-skip": _rcn(n, skip=True) for n in (5, 6, 7)},
}


def model_names() -> list[str]:
    return list(MODELS)


def create_model(name: str, keypoints: int = 5, **options: Any) -> ScoreMapNet:
    """A freshly initialised network.

    name: one of `model_names()`. keypoints: K. Options: `size` (input side in pixels, 80), `channels` (1),
    `mask` (branches to keep, coarsest first), `upsampling` ("tile" | "bilinear"), `norm` (local contrast
    normalisation with its floor per "image" or "batch", or "global"), `width` (factor on all widths), for
    SumNet `alpha` ("map" | "pixel"), for RCN `d_convs` (1 | 2 convolutions in the 10x10 branch).

    Raises InputError for an unknown name or option and for sizes that the poolings do not allow.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"no model is called {name!r}{hint} (known: {', '.join(MODELS)})")
    try:
        net = MODELS[name](keypoints, **options)
    except TypeError as error:
        raise InputError(f"model {name}: {str(error).split('() ')[-1]}") from None
    net.config = {"name": name, "keypoints": keypoints, **options}
    return net
