"""The damage step: a photo with its damage filled, and where that is."""

from __future__ import annotations

from torch import Tensor, nn

from pikfix.networks.damage import Damage, DamageConfig
from pikfix.systems.base import Step, TensorSpec

NAME = "damage"

PHOTO_L = TensorSpec("photo_l", (1, "H", "W"))
FILLED_L = TensorSpec("filled_l", (1, "H", "W"))
DAMAGE_MASK = TensorSpec("damage_mask", (1, "H", "W"))


class DamageStep(nn.Module):
    """photo_l, whole photos, to filled_l and damage_mask."""

    def __init__(self, damage: Damage) -> None:
        super().__init__()
        self.damage = damage

    def forward(self, photo_l: Tensor) -> tuple[Tensor, Tensor]:
        filled_l, mask = self.damage(photo_l)
        return filled_l, mask


def steps(config: DamageConfig) -> tuple[Step, ...]:
    """The one step."""
    return (
        Step(
            "damage",
            (PHOTO_L,),
            (FILLED_L, DAMAGE_MASK),
            system=NAME,
            config=config,
            module=DamageStep,
            # A sound pixel leaves as it came, to the last bit.
            lowest_precision="fp32",
            cacheable=True,
        ),
    )
