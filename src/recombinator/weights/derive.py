"""Make weights from other weights: averages, and networks whose predictions average several views or are smoothed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recombinator.keypoints import check_same_keypoints
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, WeightsLike, load_weights, score_map_weights


def average(weights: Sequence[WeightsLike]) -> Weights:
    """Average the weights of several networks, tensor by tensor (weight averaging: Izmailov et al., UAI 2018).

    Meant for one architecture and one training, or trainings from the same start: there the mean is often better than
    each of its parts. The result is not calibrated.

    Args:
        weights: Two or more names, files, run folders or loaded weights.

    Raises:
        InputError: Fewer than two weights, or they differ in network, keypoints or crop rule.
    """
    if len(weights) < 2:
        raise InputError(f"an average needs two or more weights, got {len(weights)}")
    parts = [load_weights(w) for w in weights]
    first = parts[0]
    for given, part in zip(weights, parts, strict=True):
        check_same_keypoints(first.keypoints, part.keypoints, f"{given}, for {weights[0]}")
        ours, theirs = ({**w.net.config, "crop rule": w.crop_rule} for w in (first, part))
        differing = [k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k)]
        if differing:
            raise InputError(f"{given}: cannot be averaged with {weights[0]}, they differ in {', '.join(differing)}")
    states = [part.net.state_dict() for part in parts]
    mean = {k: sum(s[k] for s in states) / len(states) if v.is_floating_point() else v for k, v in states[0].items()}
    training = {**parts[-1].training, "averaged": [part.training for part in parts]}
    return _remade(first, mean, training)


def mirrored(weights: WeightsLike) -> Weights:
    """Make the network that averages its scores over each face and its mirror image.

    More precise, at twice the cost (not in the paper). The result is not calibrated.

    Args:
        weights: An RCN's, a SumNet's or a denoiser's: name, file, run folder, or loaded weights.

    Raises:
        InputError: The network has no score maps or mirrors already, or its keypoints have no mirror pairs.
    """
    loaded = load_weights(weights)
    if loaded.net.task != "denoising":
        loaded = score_map_weights(loaded)
    if loaded.net.config.get("mirror"):
        raise InputError(f"{weights}: the network averages over the mirror image already")
    if not loaded.keypoints.mirror:
        raise InputError(f"{weights}: its keypoints ({loaded.keypoints.name}) have no left and right to exchange")
    return _remade(loaded, mirror=loaded.keypoints.mirrored)


def shifted(weights: WeightsLike, by: int = 1) -> Weights:
    """Make the network that averages its scores over each face as it is and shifted towards each of the four corners.

    More precise, at five times the cost (not in the paper). After a shift by an odd number of pixels, the poolings
    work on another grid. The result is not calibrated.

    Args:
        weights: An RCN's or a SumNet's: name, file, run folder, or loaded weights.
        by: Size of the shift in input pixels, in x and in y.

    Raises:
        InputError: The network has no score maps, or shifts already.
    """
    return _with_option(weights, "shift", by, "averages over shifted images")


def smoothed(weights: WeightsLike, sigma: float) -> Weights:
    """Make the network that smooths the probabilities of its score maps.

    The highest cell, and so the error in the paper's protocol, then depends less on small differences between
    neighboring cells, at almost no cost (not in the paper). The result is not calibrated.

    Args:
        weights: An RCN's or a SumNet's: name, file, run folder, or loaded weights.
        sigma: Standard deviation of the Gaussian in cells.

    Raises:
        InputError: The network has no score maps, or smooths already.
    """
    return _with_option(weights, "smooth", sigma, "smooths its probabilities")


def _with_option(weights: WeightsLike, option: str, value: Any, does: str) -> Weights:
    """Return an RCN's or a SumNet's weights with an option of `ScoreMapNet`, unless the network has it already."""
    loaded = score_map_weights(weights)
    if loaded.net.config.get(option):
        raise InputError(f"{weights}: the network {does} already")
    return _remade(loaded, **{option: value})


def _remade(
    source: Weights, state: dict[str, Any] | None = None, training: dict[str, Any] | None = None, **options: Any
) -> Weights:
    """Return uncalibrated weights of a new network.

    Args:
        source: Supplies whatever is not given.
        state: Tensors of the new network.
        training: How it was trained.
        **options: Further options of `create_model`.
    """
    from recombinator.models import create_model

    net = create_model(**{**source.net.config, **options})
    net.load_state_dict(source.net.state_dict() if state is None else state)
    return Weights(
        net.eval(), source.keypoints, source.crop_rule, source.template,
        source.training if training is None else training,
    )  # fmt: skip
