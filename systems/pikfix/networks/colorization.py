"""Colorization sub-net: a dense U-Net that reads the warped colours at four scales.

Pik-Fix, sec. 3.4; the layout is DenseNet-121's without batch normalisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.blocks import DenseBlock, Entry, ResidualDenseBlock, he_initialise
from pikfix.systems.pikfix.networks.config import PYRAMID_LEVELS, PikFixConfig

_SINGLE_FUSION_SCALE = 1
"""Where the single-scale ablation fuses: 1/8, the scale of its correlation."""


class FusionModule(nn.Module):
    """Mixes features, warped colours and their confidence: six dense units, one 3 x 3 convolution.

    `[B, channels, h, w]`, `[B, 2K, h, w]` and `[B, 1, h, w]` to `[B, channels, h, w]`.
    """

    def __init__(self, channels: int, config: PikFixConfig) -> None:
        super().__init__()
        self.dense = DenseBlock(
            channels + config.warped_channels + 1,
            growth=config.growth,
            bottleneck=config.bottleneck,
            units=config.fusion_units,
            dropout=config.dropout,
        )
        self.out = nn.Conv2d(self.dense.out_channels, channels, 3, padding=1)

    def forward(self, features: Tensor, warped: Tensor, confidence: Tensor) -> Tensor:
        out: Tensor = self.out(self.dense(torch.cat((features, warped, confidence), dim=1)))
        return out


class EncoderStage(nn.Module):
    """A dense block and the transition that halves channels and sides."""

    def __init__(self, channels: int, units: int, config: PikFixConfig) -> None:
        super().__init__()
        self.block = DenseBlock(
            channels,
            growth=config.growth,
            bottleneck=config.bottleneck,
            units=units,
            dropout=config.dropout,
        )
        self.skip_channels = self.block.out_channels
        self.out_channels = self.skip_channels // 2
        self.transition = nn.Conv2d(self.skip_channels, self.out_channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's output, for the decoder, and the next stage's input."""
        skip = self.block(x)
        return skip, F.avg_pool2d(self.transition(F.relu(skip)), 2)


class DecoderStage(nn.Module):
    """Doubles the size, refines by a residual dense block, merges with the encoder's features."""

    def __init__(
        self, channels: int, skip_channels: int, out_channels: int, growth: int, units: int
    ) -> None:
        super().__init__()
        self.refine = ResidualDenseBlock(channels, growth, units)
        self.merge = nn.Sequential(
            nn.Conv2d(channels + skip_channels, out_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
            nn.ReLU(),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        out: Tensor = self.merge(torch.cat((self.refine(x), skip), dim=1))
        return out


class Colorization(nn.Module):
    """Predicts a and b from luminance and the warped colours of the reference."""

    def __init__(self, config: PikFixConfig) -> None:
        super().__init__()
        self.fusion = config.fusion
        self.entry = Entry()
        self.low_confidence_chroma = config.low_confidence_chroma
        self.low_confidence_range = config.low_confidence_range
        input_channels = 4 if self.fusion == "input_ab" else 1  # luminance; a, b and confidence
        self.stem = nn.Conv2d(input_channels, config.stem_channels, 7, padding=3)
        self.encoder = nn.ModuleList()
        channels = config.stem_channels
        skips = [channels]
        fused_channels = []
        for units in config.encoder_units:
            stage = EncoderStage(channels, units, config)
            self.encoder.append(stage)
            skips.append(stage.skip_channels)
            channels = stage.out_channels
            fused_channels.append(channels)
        self.fusion_scales = {
            "input_ab": (),
            "single_scale_histogram": (_SINGLE_FUSION_SCALE,),
        }.get(self.fusion, tuple(range(PYRAMID_LEVELS)))
        self.fusions = nn.ModuleDict(
            {
                str(scale): FusionModule(fused_channels[scale], config)
                for scale in self.fusion_scales
            }
        )
        self.decoder = nn.ModuleList()
        stages = zip(reversed(skips), config.decoder_channels, config.decoder_units, strict=True)
        for skip, out_channels, units in stages:
            self.decoder.append(DecoderStage(channels, skip, out_channels, config.growth, units))
            channels = out_channels
        self.output = nn.Conv2d(channels, 2, 3, padding=1)
        he_initialise(self, output=self.output)

    def forward(
        self, working_l: Tensor, warped: tuple[Tensor, ...], confidence: tuple[Tensor, ...]
    ) -> Tensor:
        """Colorize a batch of photos.

        Args:
            working_l: `[B, 1, h, w]`, L/50 - 1, sides multiples of 32.
            warped: four maps `[B, 2K, h/2^(i+1), w/2^(i+1)]`, i = 1..4.
            confidence: four maps `[B, 1, h/2^(i+1), w/2^(i+1)]`, in [-1, 1].

        Returns:
            ab `[B, 2, h, w]`, a/110 and b/110; in evaluation mode clamped to [-1, 1].
        """
        x = self.entry(working_l)
        warped, confidence = (tuple(map(self.entry, maps)) for maps in (warped, confidence))
        if self.fusion == "input_ab":
            colours = torch.cat((warped[0], confidence[0]), dim=1)
            colours = F.interpolate(colours, scale_factor=4, mode="bilinear", align_corners=False)
            x = torch.cat((x, colours), dim=1)
        x = F.relu(self.stem(x))
        skips = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for scale, stage in enumerate(self.encoder):
            skip, x = stage(x)
            skips.append(skip)
            if scale in self.fusion_scales:
                x = self.fusions[str(scale)](x, warped[scale], confidence[scale])
        for stage in self.decoder:
            x = stage(x, skips.pop())
        ab: Tensor = self.output(x)
        if self.training:
            return ab
        if self.low_confidence_chroma < 1:
            ab = ab * self._chroma_gain(confidence[0]).to(ab.dtype)
        return ab.clamp(-1, 1)

    def _chroma_gain(self, confidence: Tensor) -> Tensor:
        """How much of the predicted chroma to believe, `[B, 1, 1, 1]`.

        A reference that shows the same things is matched with higher confidence than any other
        photo, and its colours are right; where there is none, muted colours err less.
        """
        low, high = self.low_confidence_range
        mean = confidence.float().mean(dim=(1, 2, 3), keepdim=True)
        share = ((mean - low) / (high - low)).clamp(0, 1)
        return self.low_confidence_chroma + (1 - self.low_confidence_chroma) * share
