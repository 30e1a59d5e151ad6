"""The damage step: a photo with its damage filled, and where that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pikfix.systems.base import Step, TensorSpec
from pikfix.systems.damage.networks import Damage

PHOTO_L = TensorSpec("photo_l", (1, "H", "W"))
FILLED_L = TensorSpec("filled_l", (1, "H", "W"))
DAMAGE_MASK = TensorSpec("damage_mask", (1, "H", "W"))


class DamageStep(nn.Module):
    """photo_l, whole photos, to filled_l and damage_mask; without networks nothing is damaged."""

    def __init__(self, damage: Damage | None) -> None:
        super().__init__()
        self.damage = damage

    def forward(self, photo_l: Tensor) -> tuple[Tensor, Tensor]:
        if self.damage is None:
            return photo_l.clamp(-1, 1), torch.zeros_like(photo_l)
        filled_l, mask = self.damage(photo_l)
        return filled_l, mask


def damage_step(system: str, config: Any, networks: Callable[[Any], Damage | None]) -> Step:
    """The step of a system whose model has the damage networks.

    Args:
        system: whose step it is.
        config: the configuration it belongs to.
        networks: takes the model to its damage networks, or to None.
    """
    return Step(
        "damage",
        (PHOTO_L,),
        (FILLED_L, DAMAGE_MASK),
        system=system,
        config=config,
        module=lambda model: DamageStep(networks(model)),
        # A sound pixel leaves as it came, to the last bit.
        lowest_precision="fp32",
        priority=5,
        nice=12,
        cacheable=True,
    )
