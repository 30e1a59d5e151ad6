"""A small U-Net that works on blocks of 2 x 2 pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.blocks import Entry


def _convolutions(channels: int, out_channels: int, count: int) -> nn.Sequential:
    modules: list[nn.Module] = []
    for index in range(count):
        modules += (
            nn.Conv2d(out_channels if index else channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
    return nn.Sequential(*modules)


class UNet(nn.Module):
    """An encoder and a decoder with connections between equal sizes (Ronneberger et al., 2015).

    The first level sees blocks of 2 x 2 pixels as channels (pixel unshuffle), every further one
    half the size of the one before; the decoder goes up by nearest neighbours. Sides must be
    multiples of `side_multiple`.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        channels: of the levels, from the finest.
    """

    def __init__(self, in_channels: int, out_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.side_multiple = 2 ** len(channels)
        self.entry = Entry()
        before = (4 * in_channels, *channels)
        self.encoder = nn.ModuleList(
            _convolutions(before[i], width, 1 if i == 0 else 2) for i, width in enumerate(channels)
        )
        self.decoder = nn.ModuleList(
            _convolutions(width + deeper, width, 1) for width, deeper in pairwise(channels)
        )
        self.output = nn.Conv2d(channels[0], 4 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute `[B, out_channels, H, W]` of `[B, in_channels, H, W]`."""
        x = F.pixel_unshuffle(self.entry(x), 2)
        levels = []
        for index, stage in enumerate(self.encoder):
            if index:
                x = F.max_pool2d(x, 2)
            x = stage(x)
            levels.append(x)
        for stage, level in zip(reversed(self.decoder), reversed(levels[:-1]), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = stage(torch.cat((x, level), dim=1))
        return F.pixel_shuffle(self.output(x), 2)
