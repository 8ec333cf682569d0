"""Weights made from other weights: averaged, or of a network that looks several times."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, load_weights, score_map_weights


def average(weights: Sequence[str | os.PathLike[str]]) -> Weights:
    """The mean of several networks' weights, tensor by tensor: of one architecture, and of one training or
    trainings from the same start, whose mean is often better than each (weight averaging: Izmailov et al., UAI
    2018). Not calibrated. Raises InputError for fewer than two, or networks that are not alike."""
    if len(weights) < 2:
        raise InputError("an average wants two or more weights")
    parts = [load_weights(w) for w in weights]
    first = parts[0]
    for w, part in zip(weights, parts, strict=True):
        if (part.net.config, part.keypoints.names, part.crop_rule) != (
            first.net.config, first.keypoints.names, first.crop_rule,
        ):  # fmt: skip
            raise InputError(f"{w}: is not of the same network, keypoints and crop as {weights[0]}")
    states = [part.net.state_dict() for part in parts]
    first.net.load_state_dict({
        k: sum(s[k] for s in states) / len(states) if v.is_floating_point() else v for k, v in states[0].items()
    })  # fmt: skip
    first.net.temperature = 1.0
    training = {**parts[-1].training, "averaged": [part.training for part in parts]}
    return Weights(first.net, first.keypoints, first.crop_rule, first.template, training)


def mirrored(weights: str | os.PathLike[str]) -> Weights:
    """The same network, which looks at each face and at its mirror image and averages the scores. Not calibrated.
    Raises InputError for weights that are not an RCN's or a SumNet's, and for keypoints without mirror pairs."""
    loaded = score_map_weights(weights)
    if loaded.net.mirror:
        raise InputError(f"{weights}: looks at the mirror image already")
    if not loaded.keypoints.mirror:
        raise InputError(f"{weights}: its keypoints ({loaded.keypoints.name}) have no left and right to exchange")
    return _with_options(loaded, mirror=loaded.keypoints.mirrored)


def shifted(weights: str | os.PathLike[str], by: int = 1) -> Weights:
    """The same network, which looks at each face where it is and moved by that many input pixels towards each corner,
    and averages the scores: for an odd number each pooling sees another grid. Not calibrated. Raises InputError for
    weights that are not an RCN's or a SumNet's."""
    loaded = score_map_weights(weights)
    if loaded.net.shift:
        raise InputError(f"{weights}: looks at moved images already")
    return _with_options(loaded, shift=by)


def _with_options(loaded: Weights, **options: Any) -> Weights:
    """The same weights in a network with further options, uncalibrated."""
    from recombinator.models import create_model

    net = create_model(**{**loaded.net.config, **options})
    net.load_state_dict(loaded.net.state_dict())
    return Weights(net.eval(), loaded.keypoints, loaded.crop_rule, loaded.template, loaded.training)
