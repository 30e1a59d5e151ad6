"""Inference forms for a GPU, whose arithmetic is the network's own; here on the CPU."""

from __future__ import annotations

import torch
from torch import nn

from pikfix.inference.forms import lower
from pikfix.layers.blocks import ResidualDenseBlock


def test_channels_filled_up_with_zeros_change_nothing() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(ResidualDenseBlock(6, 3, 4), ResidualDenseBlock(6, 8, 2)).eval()
    filled = lower(network, "fp32", channel_multiple=8)
    x = torch.randn(2, 6, 9, 11)
    with torch.inference_mode():
        assert (filled(x) - network(x)).abs().max() < 1e-5
    widths = [[unit.weight.shape[:2] for unit in block.units] for block in filled]
    assert widths[0] == [(8, 6), (8, 14), (8, 22), (8, 30)]
    assert widths[1] == [(8, 6), (8, 14)]  # nothing to fill
