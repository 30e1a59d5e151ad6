from __future__ import annotations

import dataclasses

import pytest
import torch

from pikfix.systems.pikfix.networks import PYRAMID_LEVELS, PikFix, PikFixConfig


def maps(config: PikFixConfig, mean: float) -> tuple[tuple[torch.Tensor, ...], ...]:
    """Warped maps, and confidence of that mean at the finest scale."""
    sides = [64 >> level + 2 for level in range(PYRAMID_LEVELS)]
    warped = tuple(torch.rand(1, config.warped_channels, side, side) for side in sides)
    confidence = [torch.rand(1, 1, side, side) for side in sides]
    confidence[0] += mean - confidence[0].mean()
    return warped, tuple(confidence)


@pytest.mark.parametrize(
    ("mean", "factor"), [(0.2, 0.4), (0.75, 0.4), (0.8, 0.7), (0.85, 1.0), (0.95, 1.0)]
)
def test_colours_of_a_doubtful_reference_are_muted(
    tiny: PikFix, tiny_config: PikFixConfig, mean: float, factor: float
) -> None:
    torch.nn.init.normal_(tiny.colorization.output.weight, std=0.005)
    muted = PikFix(dataclasses.replace(tiny_config, low_confidence_chroma=0.4)).eval()
    muted.load_state_dict(tiny.state_dict())
    luminance = torch.rand(1, 1, 64, 64) * 2 - 1
    warped, confidence = maps(tiny_config, mean)
    full = tiny.colorization(luminance, warped, confidence)
    assert full.abs().amax() < 1  # else clamping would hide the factor
    got = muted.colorization(luminance, warped, confidence)
    torch.testing.assert_close(got, factor * full, atol=1e-5, rtol=1e-4)
    # What is trained is the prediction itself.
    prediction = muted.train().colorization(luminance, warped, confidence)
    torch.testing.assert_close(prediction, full, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "fields", [{"low_confidence_chroma": 1.2}, {"low_confidence_range": (0.9, 0.9)}]
)
def test_impossible_doubt_is_refused(tiny_config: PikFixConfig, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="low_confidence_chroma"):
        dataclasses.replace(tiny_config, **fields)  # type: ignore[arg-type]
