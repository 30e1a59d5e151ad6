"""The averaged weights that validation and export use."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def running_average(network: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of a network's weights and batch statistics.

    Early on, when the weights still travel far, it forgets faster: with n models averaged, the
    initial one included, the decay is min(decay, n / (9 + n)).
    """

    @torch.no_grad()
    def move(own: Any, new: Any, _: Any) -> None:
        n = int(average.n_averaged)  # on the CPU, unlike the argument
        if own[0].is_floating_point():
            torch._foreach_lerp_(own, new, 1 - min(decay, n / (9 + n)))
        else:
            torch._foreach_copy_(own, new)

    average = AveragedModel(network, multi_avg_fn=move, use_buffers=True)
    # As if the initial weights had been averaged: the first update would copy instead.
    average.n_averaged.fill_(1)
    return average.eval().requires_grad_(False)
