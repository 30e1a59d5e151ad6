"""What tells photos, and latents, apart in training."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from pikfix.systems.latent.networks.blocks import initialise, instance_norm

_WIDTHS = (64, 128, 256, 512)
_STRIDES = (2, 2, 2, 1, 1)


class PatchDiscriminator(nn.Module):
    """A judgement for every patch, and the features that led to it.

    Args:
        in_channels: of the input.
        spectral: whether the spectral norm of every convolution is held at one.
    """

    def __init__(self, in_channels: int, *, spectral: bool = False) -> None:
        super().__init__()
        widths = (in_channels, *_WIDTHS, 1)
        self.layers = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 4, stride, padding=2)
            for i, stride in enumerate(_STRIDES)
        )
        initialise(self)
        if spectral:
            for layer in self.layers:
                spectral_norm(layer)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The outputs of all layers; the last, `[B, 1, h, w]`, is the judgement."""
        found = []
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if 0 < index < last:
                x = instance_norm(x)
            if index < last:
                x = F.leaky_relu(x, 0.2)
            found.append(x)
        return found


class TwoScaleDiscriminator(nn.Module):
    """Two patch discriminators, the second at half the size."""

    def __init__(self, in_channels: int, *, spectral: bool = False) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            PatchDiscriminator(in_channels, spectral=spectral) for _ in range(2)
        )

    def forward(self, x: Tensor) -> list[list[Tensor]]:
        """What each of both gives, the full size first."""
        found = []
        for index, scale in enumerate(self.scales):
            if index:
                x = F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False)
            found.append(scale(x))
        return found
