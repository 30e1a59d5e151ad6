"""The damage networks: sound pixels leave as they came, holes are filled from around them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from pikfix.layers.unet import UNet
from pikfix.systems.damage.networks import Damage, DamageConfig, smoothly_filled

TINY = DamageConfig(detector_channels=(4, 6, 8), filler_channels=(4, 6, 8), limit=64)


def photos(height: int, width: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 1, height, width, generator=generator) * 2 - 1


class Brightest(torch.nn.Module):
    """A detector that takes white for damage."""

    def forward(self, photo_l: torch.Tensor) -> torch.Tensor:
        return 100 * (photo_l - 0.9)


def scratched(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A grey slope with a bar that is white at the working size as well, and its place."""
    slope = torch.linspace(-0.6, 0.6, width).expand(1, 1, height, width).clone()
    line = torch.zeros_like(slope)
    thick = 2 + 6 * max(height, width) // TINY.limit
    line[..., height // 2 : height // 2 + thick, width // 8 : width // 2] = 1
    return torch.where(line > 0, 1.0, slope), line


@pytest.fixture
def network() -> Damage:
    torch.manual_seed(0)
    return Damage(TINY).eval()


@pytest.mark.parametrize("size", [(64, 64), (33, 51), (1, 1), (200, 120), (17, 400)])
def test_any_size_keeps_its_size(network: Damage, size: tuple[int, int]) -> None:
    photo = photos(*size)
    with torch.no_grad():
        filled, mask = network(photo)
    assert filled.shape == mask.shape == photo.shape
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1
    assert -1 <= float(filled.min()) <= float(filled.max()) <= 1


@pytest.mark.parametrize("size", [(64, 64), (150, 230)])
def test_what_is_not_masked_stays_to_the_last_bit(network: Damage, size: tuple[int, int]) -> None:
    network.detector = Brightest()
    photo, line = scratched(*size)
    with torch.no_grad():
        filled, mask = network(photo)
    changed = filled != photo
    assert not (changed & (mask == 0)).any()
    assert bool(changed[line > 0].float().mean() > 0.75)
    # At the working size a line is as wide as its margin and its soft edge.
    factor = max(1, max(size) / TINY.limit)
    reach = int(np.ceil(factor * (TINY.margin + 3)))
    near = ndimage.binary_dilation(line[0, 0].numpy() > 0, np.ones((3, 3)), iterations=reach)
    assert not (mask[0, 0].numpy() > 0)[~near].any()


def test_a_sound_photo_comes_back_as_it_was(network: Damage) -> None:
    network.detector = Brightest()
    photo = 0.9 * photos(64, 96)
    with torch.no_grad():
        filled, mask = network(photo)
    assert torch.equal(filled, photo)
    assert not mask.any()


def test_smooth_filling_keeps_what_is_known_and_continues_slopes() -> None:
    photo, line = scratched(64, 64)
    hole = torch.nn.functional.max_pool2d(line, 5, 1, 2)
    filled = smoothly_filled(photo, hole)
    torch.testing.assert_close(filled * (1 - hole), photo * (1 - hole))
    truth = torch.linspace(-0.6, 0.6, 64).expand(1, 1, 64, 64)
    assert float(((filled - truth).abs() * hole).max()) < 0.06


def test_smooth_filling_of_an_empty_photo_is_finite() -> None:
    photo = photos(32, 32, 1)
    assert torch.isfinite(smoothly_filled(photo, torch.ones_like(photo))).all()


def test_smooth_filling_takes_the_mean_far_inside() -> None:
    photo = torch.full((1, 1, 64, 64), 0.25)
    hole = torch.zeros_like(photo)
    hole[..., 8:56, 8:56] = 1
    torch.testing.assert_close(smoothly_filled(torch.where(hole > 0, 1.0, photo), hole), photo)


def test_the_unet_looks_past_its_blocks() -> None:
    torch.manual_seed(0)
    net = UNet(1, 1, (4, 6, 8)).eval()
    photo = photos(32, 32, 1).requires_grad_()
    net(photo)[0, 0, 16, 16].backward()
    touched = photo.grad[0, 0].abs() > 0
    assert net.side_multiple == 8
    assert int(touched.any(dim=0).sum()) > 16


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"limit": 100}, "limit is 100"),
        ({"threshold": 1.0}, "threshold is 1.0, softness"),
        ({"margin": -1}, "margin -1:"),
        ({"detector_channels": (4,)}, "detector_channels is"),
        ({"filler_channels": (0, 4)}, "filler_channels is"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(change: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        dataclasses.replace(TINY, **change)


def test_a_configuration_survives_json() -> None:
    assert DamageConfig.from_dict(TINY.to_dict()) == TINY
    with pytest.raises(ValueError, match="unknown configuration fields: depth"):
        DamageConfig.from_dict({**TINY.to_dict(), "depth": 3})
