"""Where a photo is damaged, and what may have been there: a detector and a filler."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.sizes import resize_antialiased, working_size
from pikfix.layers.unet import UNet
from pikfix.systems.damage.scratch_unet import ScratchUNet

DetectorKind = Literal["blocks", "scratch_unet"]
"""A small U-Net on blocks of 2 x 2 pixels (`layers/unet.py`), or the published one."""

_KNOWN = 1e-3  # a share of known pixels that counts as none


@dataclass(frozen=True)
class DamageConfig:
    """Every choice that changes a tensor's shape or the networks' arithmetic.

    detector_channels, filler_channels: of the U-Nets' levels, from the finest; without a filler
        (no channels) holes are filled smoothly from their surroundings.
    limit: longest side at which damage is found and filled; a larger photo is shrunk to it.
    threshold: probability at which a place counts as half damaged.
    softness: range of probabilities around it over which a place goes from sound to damaged.
    margin: pixels, at that size, that a found place is widened by.
    detector: what the detector is made of.

    Raises:
        ValueError: a field has a value that no network can be built from.
    """

    name: str = "custom"
    detector_channels: tuple[int, ...] = (24, 40, 64, 96, 120)
    filler_channels: tuple[int, ...] = ()
    limit: int = 1024
    threshold: float = 0.5
    softness: float = 0.8
    margin: int = 0
    detector: DetectorKind = "blocks"

    def __post_init__(self) -> None:
        if self.detector not in get_args(DetectorKind):
            raise ValueError(f"detector is {self.detector!r}: one of {get_args(DetectorKind)}")
        for name in ("detector_channels", "filler_channels"):
            channels = getattr(self, name)
            if name == "filler_channels" and not channels:
                continue
            if not 2 <= len(channels) <= 5 or min(channels) < 1:
                raise ValueError(f"{name} is {channels}: two to five positive numbers")
        if self.limit < 32 or self.limit % 32:
            raise ValueError(f"limit is {self.limit}: it must be a multiple of 32")
        low, high = self.threshold - self.softness / 2, self.threshold + self.softness / 2
        if not 0 < low < high < 1 or self.margin < 0:
            raise ValueError(
                f"threshold is {self.threshold}, softness {self.softness} and margin {self.margin}:"
                " from threshold - softness/2 to threshold + softness/2 all must lie between 0 and "
                "1, and the margin must be at least 0"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored inside a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DamageConfig:
        """The inverse of `to_dict`, also after a trip through JSON.

        Raises:
            ValueError: unknown fields, or values that no network can be built from.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown configuration fields: {', '.join(unknown)}")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**fields)


PRESETS: dict[str, DamageConfig] = {
    "compact": DamageConfig(name="compact"),
    "paper": DamageConfig(
        name="paper",
        detector="scratch_unet",
        detector_channels=(64, 128, 256, 512, 1024),
        # Published for a short side of 256: what a photo of 4 : 3 is shrunk to.
        limit=352,
        # Published as a step at 0.4.
        threshold=0.4,
        softness=0.2,
    ),
}
"""`compact`: for a CPU. `paper`: the detector of Wan et al., in whose scale it was trained."""


class Damage(nn.Module):
    """Finds damage in luminance and fills it from its surroundings."""

    def __init__(self, config: DamageConfig) -> None:
        super().__init__()
        self.config = config
        self.detector: UNet | ScratchUNet = (
            ScratchUNet(config.detector_channels)
            if config.detector == "scratch_unet"
            else UNet(1, 1, config.detector_channels)
        )
        self.filler = UNet(3, 1, config.filler_channels) if config.filler_channels else None
        # Untrained, it finds little; damage is rare.
        nn.init.constant_(self.detector.output.get_parameter("bias"), -2.5)
        if self.filler is not None:
            # Untrained, it leaves the smooth filling as it is.
            for parameter in self.filler.output.parameters():
                nn.init.zeros_(parameter)

    def forward(self, photo_l: Tensor) -> tuple[Tensor, Tensor]:
        """Find and fill.

        Args:
            photo_l: `[B, 1, H, W]`, L/50 - 1, any H and W.

        Returns:
            filled_l: the photo, changed where it is damaged and nowhere else.
            damage_mask: `[B, 1, H, W]` in [0, 1], how far each pixel was replaced: exactly 0 where
                the photo is as it came.
        """
        height, width = photo_l.shape[-2:]
        small_l = resize_antialiased(photo_l, working_size(height, width, self.config.limit))
        mask = self.replaced(self.probability(small_l))
        filled = self.fill(small_l, mask)
        both = torch.cat((mask, filled), dim=1)
        both = F.interpolate(both, (height, width), mode="bilinear", align_corners=False)
        mask, filled = both[:, :1], both[:, 1:]
        return photo_l + mask * (filled.clamp(-1, 1) - photo_l), mask

    def probability(self, photo_l: Tensor) -> Tensor:
        """The probability that each pixel is damaged; sides must be multiples of 32."""
        return torch.sigmoid(self.detector(photo_l).float())

    def replaced(self, probability: Tensor) -> Tensor:
        """How far pixels are replaced, for the probability that they are damaged.

        From nothing to all over a range around the threshold: a step would make a whole pixel of
        the last bit in which two runtimes differ. What is found is widened by the margin, and gets
        a soft edge of one pixel.
        """
        damaged = ((probability - self.config.threshold) / self.config.softness + 0.5).clamp(0, 1)
        reach = 2 * self.config.margin + 1
        return softened(F.max_pool2d(damaged, reach, stride=1, padding=self.config.margin))

    def fill(self, photo_l: Tensor, mask: Tensor) -> Tensor:
        """The photo with damaged places filled; `[B, 1, H, W]`, sides multiples of 32.

        Args:
            photo_l: `[B, 1, H, W]`, L/50 - 1.
            mask: `[B, 1, H, W]` in [0, 1], how far each pixel is to be replaced; from a quarter on
                nothing of the photo is trusted there.
        """
        unknown = hole(mask)
        smooth = smoothly_filled(photo_l, unknown)
        if self.filler is None:
            return smooth
        change = self.filler(torch.cat((smooth, photo_l, unknown), dim=1))
        filled: Tensor = smooth + unknown * change
        return filled


def hole(mask: Tensor) -> Tensor:
    """How far the photo is distrusted, for how far it is replaced: from a quarter on, wholly."""
    return (4 * mask).clamp(0, 1)


def softened(mask: Tensor) -> Tensor:
    """A mask with an edge of one pixel more."""
    return F.avg_pool2d(mask, 3, stride=1, padding=1, count_include_pad=False)


def smoothly_filled(photo_l: Tensor, hole: Tensor, levels: int = 5) -> Tensor:
    """Fill holes by averages of what surrounds them: near a border fine, in the middle coarse.

    Pull and push (Gortler et al., The Lumigraph, SIGGRAPH 1996): averages of the known pixels at
    half the size, a quarter and so on; then, from the coarsest, each unknown share of a level is
    taken from the level below.

    Args:
        photo_l: `[B, 1, H, W]`, sides multiples of 2 to the power of `levels`.
        hole: the same shape, 1 where the photo is unknown, 0 where it is known.
        levels: halvings.
    """
    known = 1 - hole
    weighted = [(photo_l * known, known)]
    for _ in range(levels):
        value, weight = weighted[-1]
        value, weight = F.avg_pool2d(value, 2), F.avg_pool2d(weight, 2)
        # A level trusts an average as soon as a quarter of it is known.
        gain = (4 * weight).clamp(max=1) / weight.clamp(min=_KNOWN)
        weighted.append((value * gain, weight * gain))
    value, weight = weighted[-1]
    everywhere = value.mean(dim=(2, 3), keepdim=True)
    share = weight.mean(dim=(2, 3), keepdim=True).clamp(min=_KNOWN)
    filled = value + (1 - weight) * everywhere / share
    for value, weight in reversed(weighted[:-1]):
        larger = F.interpolate(filled, scale_factor=2, mode="bilinear", align_corners=False)
        filled = value + (1 - weight) * larger
    return filled
