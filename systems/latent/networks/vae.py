"""The variational autoencoders: one for old and synthetic old photos, one for clean ones."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.blocks import Entry
from pikfix.systems.latent.networks.blocks import (
    WideConvolution,
    initialise,
    instance_norm,
    residual_blocks,
)

REDUCTION = 4
"""How much smaller than a photo its latent is."""


class Encoder(nn.Module):
    """Photos to the means of their latents.

    `[B, 3, H, W]` in [-1, 1], sides multiples of 4 and at least 12, to `[B, C, H/4, W/4]`.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.entry = Entry()
        self.stem = WideConvolution(3, channels)
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 4, 2, 1) for _ in range(2))
        self.blocks = residual_blocks(channels, blocks)

    def forward(self, photo: Tensor) -> Tensor:
        x = F.relu(instance_norm(self.stem(self.entry(photo))))
        for layer in self.down:
            x = F.relu(instance_norm(layer(x)))
        latent: Tensor = self.blocks(x)
        return latent


class Decoder(nn.Module):
    """Latents to photos: the inverse of `Encoder`."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.entry = Entry()
        self.blocks = residual_blocks(channels, blocks)
        self.up = nn.ModuleList(nn.ConvTranspose2d(channels, channels, 4, 2, 1) for _ in range(2))
        self.output = WideConvolution(channels, 3)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.blocks(self.entry(latent))
        for layer in self.up:
            x = F.relu(instance_norm(layer(x)))
        photo: Tensor = self.output(x).tanh()
        return photo


class Vae(nn.Module):
    """Encoder and decoder. The posterior has unit variance: training adds N(0, 1) to the mean."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.encoder = Encoder(channels, blocks)
        self.decoder = Decoder(channels, blocks)
        initialise(self)
