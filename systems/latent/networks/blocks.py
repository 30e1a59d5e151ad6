"""What VAEs and mapping are built from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def instance_norm(x: Tensor) -> Tensor:
    """Zero mean and unit variance of every channel of every photo, over all its places.

    At least in float32: a sum of squares over many places overflows half precision.
    """
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return F.instance_norm(wide).to(x.dtype)


class ResidualBlock(nn.Module):
    """Two reflected, normalised 3 x 3 convolutions, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3)
        self.second = nn.Conv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(instance_norm(self.first(_reflected(x, 1))))
        return x + instance_norm(self.second(_reflected(hidden, 1)))


class WideConvolution(nn.Conv2d):
    """A reflected 7 x 7 convolution, the first or the last of a VAE."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 7)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_reflected(x, 3))


def residual_blocks(channels: int, count: int) -> nn.Sequential:
    """Residual blocks after one another."""
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))


def initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02), as published, and zero biases.

    The output of the partial non-local block is among them: the masked merge has no way around it,
    so that zeros would make all holes one constant.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _reflected(x: Tensor, by: int) -> Tensor:
    return F.pad(x, (by, by, by, by), mode="reflect")
