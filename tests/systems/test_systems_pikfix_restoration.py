from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from pikfix.systems.pikfix.networks import PikFix, PikFixConfig
from pikfix.systems.pikfix.networks.restoration import Restoration


def test_untrained_restoration_is_the_identity(tiny_config: PikFixConfig) -> None:
    photo = torch.rand(2, 1, 40, 56) * 2 - 1
    torch.testing.assert_close(Restoration(tiny_config).eval()(photo), photo)


@pytest.mark.parametrize("size", [(1, 1), (33, 17), (64, 64), (8, 250)])
def test_any_size_comes_back_at_its_own(tiny: PikFix, size: tuple[int, int]) -> None:
    out = tiny.restoration(torch.rand(1, 1, *size) * 2 - 1)
    assert out.shape == (1, 1, *size)
    assert out.isfinite().all()
    assert out.abs().max() <= 1


@pytest.mark.parametrize(
    ("changes", "halo"),
    [
        ({}, 128),
        ({"restoration_units": 8, "restoration_growth": 2}, 224),
        ({"restoration_levels": (1, 2), "restoration_blocks": 1}, 32),
    ],
)
def test_receptive_field_is_within_the_halo(
    tiny_config: PikFixConfig, changes: dict[str, Any], halo: int
) -> None:
    tiny = PikFix(dataclasses.replace(tiny_config, **changes)).eval()
    torch.nn.init.normal_(tiny.restoration.output.weight, std=0.1)
    radius = tiny.config.restoration_halo
    assert radius == halo
    photo = torch.rand(1, 1, 32, 2 * radius + 160, dtype=torch.float64).mul_(1.6).sub_(0.8)
    restoration = tiny.restoration.double()
    changed = photo.clone()
    column = 80
    changed[..., column] = 0.95
    difference = restoration.repaired(photo) - restoration.repaired(changed)
    difference = difference.abs().amax(dim=(0, 1, 2))
    reached = difference.nonzero().flatten()
    assert reached.max() - column <= radius
    # The coarse levels do see far: holes are closed from their surroundings.
    assert reached.max() - column > radius / 3


def test_single_level_ablation_sees_only_its_surroundings(tiny_config: PikFixConfig) -> None:
    config = dataclasses.replace(tiny_config, restoration_levels=(1,), tone_channels=0)
    restoration = Restoration(config).eval()
    torch.nn.init.normal_(restoration.output.weight)
    photo = torch.rand(1, 1, 16, 128) - 0.5
    changed = photo.clone()
    changed[..., 0] = 0.9
    difference = (restoration(photo) - restoration(changed)).abs().amax(dim=(0, 1, 2))
    assert difference.nonzero().max() < 32
