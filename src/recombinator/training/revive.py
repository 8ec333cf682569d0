"""Re-initialize dead channels during training.

A channel whose ReLU output is zero for every image gets no gradient and never recovers: a few large early steps can
cost a network most of a branch. New incoming weights for such channels are the idea of Sokar et al. (The Dormant
Neuron Phenomenon in Deep Reinforcement Learning, ICML 2023). They set outgoing weights to zero; here incoming ones
start small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from recombinator.models.base import KeypointNet
from recombinator.models.layers import initial_bound

SCALE = 0.3  # of the initial range: what a channel's readers do with it now changes the output by little


@torch.no_grad()
def dead_channels(net: KeypointNet, inputs: Tensor) -> dict[Any, Tensor]:
    """Find channels that are zero in every cell of every input.

    Args:
        net: A network that lists its rectified convolutions.
        inputs: (N, C, S, S) network inputs.

    Returns:
        For each rectified convolution an (outputs,) mask, True for a dead channel.
    """
    dead: dict[Any, Tensor] = {}

    def record(conv: Any, _: Any, output: Tensor) -> None:
        dead[conv] = output.amax(dim=(0, 2, 3)) <= 0

    hooks = [conv.register_forward_hook(record) for conv in net.rectified()]
    fused, net.fused = net.fused, False  # the fused form does not call its convolution
    try:
        net(inputs)
    finally:
        net.fused = fused
        for hook in hooks:
            hook.remove()
    return dead


@torch.no_grad()
def revive(net: KeypointNet, inputs: Tensor, optimizer: torch.optim.Optimizer, generator: Generator) -> int:
    """Draw new, small incoming weights for dead channels and set their biases to zero.

    Args:
        net: A network that lists its rectified convolutions.
        inputs: (N, C, S, S) network inputs that tell which channels are dead.
        optimizer: Its state for these weights becomes the mean over the living channels.
        generator: Source of the new weights.

    Returns:
        The number of dead channels.
    """
    count = 0
    for conv, dead in dead_channels(net, inputs).items():
        which = dead.nonzero()[:, 0]
        count += len(which)
        if not len(which):
            continue
        shape = (len(which), *conv.weight.shape[1:])
        fresh = (torch.rand(shape, generator=generator) * 2 - 1) * (SCALE * initial_bound(conv))
        conv.weight[which] = fresh.to(conv.weight)
        conv.bias[which] = 0.0
        for parameter in (conv.weight, conv.bias):
            for value in optimizer.state.get(parameter, {}).values():
                if value.shape == parameter.shape and not dead.all():
                    value[which] = value[~dead].mean()  # zero moments would make the first steps large
    return count
