"""Maps that a rectifier has silenced for good get a new beginning.

A map that is zero for every image gets no gradient and never comes back: a large early step can cost a network most of
a branch. Fresh incoming weights for such maps are the idea of Sokar et al. (The Dormant Neuron Phenomenon in Deep
Reinforcement Learning, ICML 2023); there outgoing weights become zero, here incoming ones start small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from recombinator.models.networks import ScoreMapNet

SMALL = 0.3  # of the range of a fresh network's weights: what the maps are used for now changes by little


@torch.no_grad()
def silent_maps(net: ScoreMapNet, inputs: Tensor) -> dict[Any, Tensor]:
    """Rectified convolution -> (outputs,) True for each map that is zero in every cell of every input."""
    found: dict[Any, Tensor] = {}

    def look(conv: Any, _: Any, output: Tensor) -> None:
        found[conv] = output.amax(dim=(0, 2, 3)) <= 0

    hooks = [conv.register_forward_hook(look) for conv in net.rectified()]
    fused, net.fused = net.fused, False  # the fused form does not call its convolution
    try:
        net(inputs)
    finally:
        net.fused = fused
        for hook in hooks:
            hook.remove()
    return found


@torch.no_grad()
def revive(net: ScoreMapNet, inputs: Tensor, optimizer: torch.optim.Optimizer, generator: Generator) -> int:
    """Draws the incoming weights of silent maps anew, small and without bias; how many there were."""
    count = 0
    for conv, silent in silent_maps(net, inputs).items():
        which = silent.nonzero()[:, 0]
        count += len(which)
        if not len(which):
            continue
        shape = (len(which), *conv.weight.shape[1:])
        fresh = (torch.rand(shape, generator=generator) * 2 - 1) * (SMALL * conv.bound)
        conv.weight[which] = fresh.to(conv.weight)
        conv.bias[which] = 0.0
        for parameter in (conv.weight, conv.bias):
            for value in optimizer.state.get(parameter, {}).values():
                if value.shape == parameter.shape and not silent.all():
                    value[which] = value[~silent].mean()  # nothing at all would make its first steps large ones
    return count
