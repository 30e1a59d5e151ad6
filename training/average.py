"""The averaged weights that validation and export use."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pikfix.networks import PikFix


class Average:
    """Exponential moving average of a network's weights and batch statistics.

    Early on, when the weights still travel far, it forgets faster: update n uses the decay
    min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, net: PikFix, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, net: PikFix) -> None:
        """Move the average towards the weights of `net`."""
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        own, new = _tensors(self.model), _tensors(net)
        floating = [index for index, tensor in enumerate(own) if tensor.is_floating_point()]
        torch._foreach_lerp_([own[i] for i in floating], [new[i] for i in floating], weight)
        for index, tensor in enumerate(own):
            if not tensor.is_floating_point():
                tensor.copy_(new[index])


def _tensors(net: PikFix) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]
