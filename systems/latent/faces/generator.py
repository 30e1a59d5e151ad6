"""The generator of faces: from coarse to fine, shown the degraded face at every size.

SPADE (Park et al., CVPR 2019) as Wan et al. (CVPR 2020) use it: the condition is the face.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.blocks import InstanceNorm
from pikfix.layers.sizes import SIDE_MULTIPLE

Norm = Literal["instance", "running"]

SLOPE = 0.2
"""Of every LeakyReLU."""


@dataclass(frozen=True)
class FaceConfig:
    """Every choice that changes a tensor's shape or the generator's arithmetic.

    side: that faces are aligned to, in pixels; the same weights draw other sides as well.
    width: channels at full size; 16 times as many at the coarsest.
    hidden: channels of what a face is seen as.
    norm: what features are normed by: each face's own statistics, or running ones, as in the
        published weights.

    Raises:
        ValueError: a field has a value that no network can be built from.
    """

    name: str = "custom"
    side: int = 256
    width: int = 64
    hidden: int = 128
    norm: Norm = "instance"

    def __post_init__(self) -> None:
        if self.side < 64 or self.side % SIDE_MULTIPLE:
            raise ValueError(f"side is {self.side}: it must be a multiple of 32, at least 64")
        for name in ("width", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm is {self.norm!r}: one of {get_args(Norm)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored inside a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FaceConfig:
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ValueError: unknown fields, or values that no network can be built from.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown configuration fields: {', '.join(unknown)}")
        return cls(**values)


PRESETS: dict[str, FaceConfig] = {
    "paper": FaceConfig(name="paper"),
    "compact": FaceConfig(name="compact", width=18, hidden=48),
}
"""`paper`: the published layout at full width. `compact`: the same layout for a CPU."""


class Spade(nn.Module):
    """Features are normed, then scaled and shifted place by place after what the face shows."""

    def __init__(self, channels: int, config: FaceConfig) -> None:
        super().__init__()
        self.running = nn.BatchNorm2d(channels, affine=False) if config.norm == "running" else None
        self.own = InstanceNorm()
        self.seen = nn.Conv2d(3, config.hidden, 3, padding=1)
        self.scale = nn.Conv2d(config.hidden, channels, 3, padding=1)
        self.shift = nn.Conv2d(config.hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, face: Tensor) -> Tensor:
        normed = self.own(x) if self.running is None else self.running(x)
        seen = F.relu(self.seen(_resized(face, x.shape[-2], x.shape[-1])))
        modulated: Tensor = normed * (1 + self.scale(seen)) + self.shift(seen)
        return modulated


class SpadeBlock(nn.Module):
    """A residual block with such norms; a shortcut of its own where the width changes."""

    def __init__(self, channels: int, out_channels: int, config: FaceConfig) -> None:
        super().__init__()
        middle = min(channels, out_channels)
        self.first_norm = Spade(channels, config)
        self.first = nn.Conv2d(channels, middle, 3, padding=1)
        self.second_norm = Spade(middle, config)
        self.second = nn.Conv2d(middle, out_channels, 3, padding=1)
        self.shortcut_norm: Spade | None = None
        self.shortcut: nn.Conv2d | None = None
        if channels != out_channels:
            self.shortcut_norm = Spade(channels, config)
            self.shortcut = nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, face: Tensor) -> Tensor:
        change = self.first(F.leaky_relu(self.first_norm(x, face), SLOPE))
        change = self.second(F.leaky_relu(self.second_norm(change, face), SLOPE))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x = self.shortcut(self.shortcut_norm(x, face))
        out: Tensor = x + change
        return out


class FaceGenerator(nn.Module):
    """Draws aligned faces anew.

    Args:
        config: what it is made of.
    """

    def __init__(self, config: FaceConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width << 4] * 3 + [config.width << power for power in (3, 2, 1, 0)]
        self.entry = nn.Conv2d(3, widths[0], 3, padding=1)
        before = [widths[0], *widths[:-1]]
        self.blocks = nn.ModuleList(
            SpadeBlock(*pair, config) for pair in zip(before, widths, strict=True)
        )
        self.output = nn.Conv2d(config.width, 3, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_normal_(layer.weight, 0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, face_rgb: Tensor) -> Tensor:
        """Draw faces anew.

        Args:
            face_rgb: `[B, 3, h, w]`, (sRGB - 0.5) / 0.5, sides multiples of 32.

        Returns:
            drawn_rgb: the same shape, in (-1, 1).
        """
        height, width = face_rgb.shape[-2:]
        x = self.entry(_resized(face_rgb, height // SIDE_MULTIPLE, width // SIDE_MULTIPLE))
        for index, block in enumerate(self.blocks):
            # The third block is at the size of the second.
            if index not in (0, 2):
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = block(x, face_rgb)
        return torch.tanh(self.output(F.leaky_relu(x, SLOPE)))


def _resized(face: Tensor, height: int, width: int) -> Tensor:
    """By single samples, as published: not averaged where it shrinks."""
    return F.interpolate(face, (height, width), mode="bilinear", align_corners=False)
