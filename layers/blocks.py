"""The blocks that networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Entry(nn.Module):
    """Where a network's arithmetic begins: the identity, or, once `dtype` is set, a cast.

    An inference form sets it; what the casts give is in channels_last order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.dtype is None:
            return x
        return x.to(self.dtype).contiguous(memory_format=torch.channels_last)


class StridedPointwise(nn.Conv2d):
    """A 1 x 1 convolution with a stride, which learns on the pixels that it reads, picked out.

    The same numbers as `nn.Conv2d`, whose gradient for the weights must not be asked for: with
    fewer input channels than oneDNN's block (8 with AVX2, 16 with AVX-512), channels last and
    sides that the stride divides, oneDNN picks the pixels out into a workspace that is too small
    and writes past its end (https://github.com/uxlfoundation/oneDNN/issues/6035). No other
    convolution has that workspace. Without a gradient for the weights nothing is different,
    exports included.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[..., ::rows, ::columns], self.weight, self.bias)


class InstanceNorm(nn.Module):
    """(x - mean) / deviation over each channel's positions, without parameters.

    In float32 at least: a sum of squares over many positions overflows half precision.

    Unlike PyTorch's, it answers zeros for a single position, which the deepest map of a 32-pixel
    picture has.
    """

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        variance, mean = torch.var_mean(wide, dim=(2, 3), keepdim=True, correction=0)
        return ((wide - mean) * torch.rsqrt(variance + 1e-5)).to(x.dtype)


class ResidualDenseBlock(nn.Module):
    """Densely connected 3 x 3 convolutions, fused by a 1 x 1 convolution and added to the input.

    Residual dense network (Zhang et al., CVPR 2018), used by Pik-Fix in sec. 3.1 and in the
    decoder of sec. 3.4. `[B, channels, H, W]` in and out.
    """

    def __init__(self, channels: int, growth: int, units: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            nn.Conv2d(channels + growth * index, growth, 3, padding=1) for index in range(units)
        )
        self.fuse = nn.Conv2d(channels + growth * units, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for unit in self.units:
            features = torch.cat((features, F.relu(unit(features))), dim=1)
        fused: Tensor = self.fuse(features)
        return x + fused


class DenseUnit(nn.Module):
    """ReLU, 1 x 1 convolution, ReLU, 3 x 3 convolution; `growth` new channels.

    A DenseNet layer without batch normalisation (Pik-Fix, sec. 3.4).
    """

    def __init__(self, channels: int, growth: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, bottleneck, 1)
        self.expand = nn.Conv2d(bottleneck, growth, 3, padding=1)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        new = self.expand(F.relu(self.squeeze(F.relu(x))))
        return F.dropout(new, self.dropout, self.training) if self.dropout else new


class DenseBlock(nn.Module):
    """`units` dense units, each fed with all that came before; the output is all of it.

    `[B, channels, H, W]` to `[B, channels + growth * units, H, W]`.
    """

    def __init__(
        self, channels: int, *, growth: int, bottleneck: int, units: int, dropout: float
    ) -> None:
        super().__init__()
        self.units = nn.ModuleList(
            DenseUnit(channels + growth * index, growth, bottleneck, dropout)
            for index in range(units)
        )
        self.out_channels = channels + growth * units

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = torch.cat((x, unit(x)), dim=1)
        return x


def he_initialise(module: nn.Module, *, output: nn.Conv2d) -> None:
    """Kaiming-normal weights and zero biases; zero weights for the `output` convolution.

    Without normalisation layers the default initialisation lets activations fade with depth. A
    zero output makes an untrained network the identity (restoration) or grey (colorization).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    nn.init.zeros_(output.weight)
