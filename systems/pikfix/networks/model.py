"""The whole network: restoration, similarity and colorization in one module."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from pikfix.layers.sizes import WORKING_LIMIT, resize_antialiased, working_size
from pikfix.systems.damage.networks import Damage
from pikfix.systems.pikfix.networks.colorization import Colorization
from pikfix.systems.pikfix.networks.config import PikFixConfig
from pikfix.systems.pikfix.networks.restoration import Restoration
from pikfix.systems.pikfix.networks.similarity import Similarity


class PikFixOutput(NamedTuple):
    """What `PikFix` computes; the tensors that pass between the served steps."""

    restored_l: Tensor
    working_l: Tensor
    warped: tuple[Tensor, ...]
    confidence: tuple[Tensor, ...]
    ab: Tensor


def to_working(luminance: Tensor, limit: int = WORKING_LIMIT) -> Tensor:
    """Resize `[B, 1, H, W]` to its working size, bilinearly and antialiased."""
    height, width = luminance.shape[-2:]
    return resize_antialiased(luminance, working_size(height, width, limit))


class PikFix(nn.Module):
    """Restores a grey photo and colorizes it after colour references (Pik-Fix, WACV 2023)."""

    def __init__(self, config: PikFixConfig) -> None:
        super().__init__()
        self.config = config
        self.restoration = Restoration(config)
        self.similarity = Similarity(config)
        self.colorization = Colorization(config)
        self.damage = Damage(config.damage) if config.damage else None

    def forward(self, photo_l: Tensor, reference_lab: Tensor) -> PikFixOutput:
        """Restore and colorize.

        Args:
            photo_l: `[B, 1, H, W]`, L/50 - 1, any H and W.
            reference_lab: `[B, R, 3, H_r, W_r]`, L/50 - 1, a/110, b/110; sides multiples of 32.

        Returns:
            All tensors of the served pipeline; `ab` is at the working size.
        """
        restored_l = self.restored(photo_l)
        working_l = to_working(restored_l)
        warped, confidence = self.similarity(working_l, reference_lab)
        ab = self.colorization(working_l, warped, confidence)
        return PikFixOutput(restored_l, working_l, warped, confidence, ab)

    def restored(self, photo_l: Tensor) -> Tensor:
        """The photos with damage filled, where the configuration finds it, and restored."""
        filled_l = photo_l if self.damage is None else self.damage(photo_l)[0]
        restored_l: Tensor = self.restoration(filled_l)
        return restored_l
