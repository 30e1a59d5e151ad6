"""Restoration sub-net: a multi-level residual dense network on luminance (Pik-Fix, sec. 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.networks.blocks import ResidualDenseBlock, he_initialise
from pikfix.networks.config import PikFixConfig


class ResidualDenseLevel(nn.Module):
    """One level: head, residual dense blocks, their fusion, added to the head.

    `[B, 1, H, W]` to `[B, channels, H, W]`.
    """

    def __init__(self, channels: int, growth: int, blocks: int, units: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualDenseBlock(channels, growth, units) for _ in range(blocks)
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(channels * blocks, channels, 1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, luminance: Tensor) -> Tensor:
        head: Tensor = self.head(luminance)
        features = head
        outputs = []
        for block in self.blocks:
            features = block(features)
            outputs.append(features)
        fused: Tensor = self.fuse(torch.cat(outputs, dim=1))
        return head + fused


class Restoration(nn.Module):
    """Removes blur, noise, scratches and holes from a photo's luminance.

    The photo goes in at full size and, averaged, at 1/4 and 1/8, where a hole is small enough to
    be closed from its surroundings. The levels meet at full size; the network predicts what to add
    to the input, so undamaged places stay as they are.
    """

    RECEPTIVE_FIELD_RADIUS = 128
    """No output pixel depends on an input pixel farther away (three blocks of four units at 1/8,
    their head, fusion and bilinear enlargement): tiles that overlap by this are exact."""

    def __init__(self, config: PikFixConfig) -> None:
        super().__init__()
        channels = config.restoration_channels
        self.factors = config.restoration_levels
        self.levels = nn.ModuleList(
            ResidualDenseLevel(
                channels,
                config.restoration_growth,
                config.restoration_blocks,
                config.restoration_units,
            )
            for _ in self.factors
        )
        self.merge = nn.Conv2d(channels * len(self.factors), channels, 3, padding=1)
        self.output = nn.Conv2d(channels, 1, 3, padding=1)
        he_initialise(self, output=self.output)

    def forward(self, photo_l: Tensor) -> Tensor:
        """Restore a batch of photos.

        Args:
            photo_l: `[B, 1, H, W]`, L/50 - 1, any H and W.

        Returns:
            restored_l `[B, 1, H, W]`; in evaluation mode clamped to [-1, 1].
        """
        height, width = photo_l.shape[-2:]
        factor = max(self.factors)
        padded = F.pad(photo_l, (0, -width % factor, 0, -height % factor), mode="replicate")
        outputs = []
        for scale, level in zip(self.factors, self.levels, strict=True):
            if scale == 1:
                outputs.append(level(padded))
                continue
            features = level(F.avg_pool2d(padded, scale))
            outputs.append(
                F.interpolate(features, scale_factor=scale, mode="bilinear", align_corners=False)
            )
        change: Tensor = self.output(F.relu(self.merge(torch.cat(outputs, dim=1))))
        restored = photo_l + change[..., :height, :width]
        return restored if self.training else restored.clamp(-1, 1)
