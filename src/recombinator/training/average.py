"""Average the weights of a network over its training."""

from __future__ import annotations

import torch
from torch import Tensor

from recombinator.models.base import KeypointNet


class MovingAverage:
    """Exponential moving average of a network's parameters.

    Args:
        net: The network.
        decay: Share of the old average that a step keeps, in the long run; the first steps keep less.

    Attributes:
        values: The average of each parameter, or the parameters themselves while they are swapped.
    """

    def __init__(self, net: KeypointNet, decay: float) -> None:
        self.parameters: list[Tensor] = list(net.parameters())
        self.decay = decay
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after optimizer step `step`, counted from 0."""
        torch._foreach_lerp_(self.values, self.parameters, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the parameters of the network."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            kept = value.clone()
            value.copy_(parameter)
            parameter.copy_(kept)
