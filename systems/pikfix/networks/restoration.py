"""Restoration sub-net: a multi-level residual dense network on luminance (Pik-Fix, sec. 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.blocks import Entry, ResidualDenseBlock, he_initialise
from pikfix.layers.sizes import pad_to_multiple
from pikfix.systems.pikfix.networks.config import PikFixConfig
from pikfix.systems.pikfix.networks.tone import Tone


class ResidualDenseLevel(nn.Module):
    """One level: head, residual dense blocks, their fusion, added to the head.

    `[B, 1, H, W]` to `[B, out_channels, H, W]`; a level of another width is narrowed to that last.
    """

    def __init__(
        self, channels: int, growth: int, *, blocks: int, units: int, out_channels: int
    ) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            ResidualDenseBlock(channels, growth, units) for _ in range(blocks)
        )
        self.fuse = nn.Sequential(
            nn.Conv2d(channels * blocks, channels, 1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.narrow = None if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, luminance: Tensor) -> Tensor:
        head: Tensor = self.head(luminance)
        features = head
        outputs = []
        for block in self.blocks:
            features = block(features)
            outputs.append(features)
        fused: Tensor = self.fuse(torch.cat(outputs, dim=1))
        features = head + fused
        return features if self.narrow is None else self.narrow(features)


class Restoration(nn.Module):
    """Removes blur, noise, scratches and holes from a photo's luminance.

    The photo goes in at full size and, averaged, at 1/4 and 1/8, where a hole is small enough to
    be closed from its surroundings. The levels meet at full size; the network predicts what to add
    to the input, so undamaged places stay as they are. Where the configuration has it, the tone of
    the whole repaired photo is set last.
    """

    def __init__(self, config: PikFixConfig) -> None:
        super().__init__()
        channels = config.restoration_channels
        self.factors = config.restoration_levels
        self.entry = Entry()
        self.tone = Tone(config.tone_channels) if config.tone_channels else None
        self.levels = nn.ModuleList(
            ResidualDenseLevel(
                width,
                growth,
                blocks=config.restoration_blocks,
                units=config.restoration_units,
                out_channels=channels,
            )
            for width, growth in config.restoration_widths
        )
        self.merge = nn.Conv2d(channels * len(self.factors), channels, 3, padding=1)
        self.output = nn.Conv2d(channels, 1, 3, padding=1)
        he_initialise(self, output=self.output)
        if self.tone is not None:
            self.tone.identity()

    def forward(self, photo_l: Tensor) -> Tensor:
        """Restore a batch of photos.

        Args:
            photo_l: `[B, 1, H, W]`, L/50 - 1, any H and W.

        Returns:
            restored_l `[B, 1, H, W]`; in evaluation mode clamped to [-1, 1].
        """
        repaired_l = self.repaired(photo_l)
        if self.tone is None:
            return repaired_l
        return self._bounded(self.tone.set(photo_l, repaired_l))

    def repaired(self, photo_l: Tensor) -> Tensor:
        """The photos with their defects removed and their tone as it was; also of tiles.

        Tiles with an overlap of the configuration's `restoration_halo` are exact.
        """
        return self._bounded(photo_l + self.change(photo_l))

    def _bounded(self, luminance: Tensor) -> Tensor:
        return luminance if self.training else luminance.clamp(-1, 1)

    def change(self, photo_l: Tensor) -> Tensor:
        """What the levels add to the photos; `[B, 1, H, W]`."""
        height, width = photo_l.shape[-2:]
        padded = pad_to_multiple(self.entry(photo_l), max(self.factors))
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
        return change[..., :height, :width]
