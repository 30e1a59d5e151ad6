"""The published scratch detector (Wan et al., CVPR 2020): a U-Net from full resolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.color import luminance_to_grey

SLOPE = 0.2
"""Of every LeakyReLU."""


class BlurPool(nn.Module):
    """Half the size, after the binomial filter [1, 2, 1] in both directions (Zhang, ICML 2019).

    The border is reflected. The filter has no parameters and is in no checkpoint.
    """

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = torch.outer(line, line).expand(channels, 1, 3, 3).contiguous()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
        return F.conv2d(padded, self.kernel, stride=2, groups=self.kernel.shape[0])


def _convolution(channels: int, out_channels: int, side: int = 3) -> nn.Conv2d:
    return nn.Conv2d(
        channels, out_channels, side, padding=side // 2, padding_mode="reflect", bias=True
    )


def _normed(channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    return (
        _convolution(channels, out_channels),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(SLOPE),
    )


class _Down(nn.Module):
    """To half the size and the next width."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.shrink = nn.Sequential(*_normed(channels, channels), BlurPool(channels))
        self.layers = nn.Sequential(
            *_normed(channels, out_channels), *_normed(out_channels, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(self.shrink(x))
        return out


class _Up(nn.Module):
    """To twice the size, beside the features of that size."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.grow = _convolution(channels, out_channels)
        self.layers = nn.Sequential(
            *_normed(2 * out_channels, out_channels), *_normed(out_channels, out_channels)
        )

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        larger = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        out: Tensor = self.layers(torch.cat((self.grow(larger), level), dim=1))
        return out


class ScratchUNet(nn.Module):
    """Logits of damage in a grey photo.

    What it sees is the grey of sRGB in [-1, 1], as the published weights do, not the lightness that
    this project's tensors hold. Sides must be multiples of `side_multiple`, at least twice that.

    Args:
        channels: of the levels, from the finest; (64, 128, 256, 512, 1024) as published, 37.6
            million parameters.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.side_multiple = 2 ** (len(channels) - 1)
        self.entry = _convolution(1, channels[0], 7)
        self.encoder = nn.ModuleList(_Down(*widths) for widths in pairwise(channels))
        self.decoder = nn.ModuleList(_Up(*widths) for widths in pairwise(reversed(channels)))
        self.output = _convolution(channels[0], 1)

    def forward(self, photo_l: Tensor) -> Tensor:
        """Compute `[B, 1, H, W]` of luminance `[B, 1, H, W]`, L/50 - 1."""
        x = F.leaky_relu(self.entry(2 * luminance_to_grey(photo_l) - 1), SLOPE)
        levels = []
        for stage in self.encoder:
            levels.append(x)
            x = stage(x)
        for stage, level in zip(self.decoder, reversed(levels), strict=True):
            x = stage(x, level)
        out: Tensor = self.output(x)
        return out
