from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pikfix.layers.sizes import working_size
from pikfix.systems.damage.networks import Damage
from pikfix.systems.pikfix.networks import PRESETS, PikFix, PikFixConfig

SIDES = st.integers(1, 20_000)


@given(SIDES, SIDES)
def test_working_sizes_are_small_multiples_of_32(height: int, width: int) -> None:
    h, w = working_size(height, width)
    assert h % 32 == 0
    assert w % 32 == 0
    assert min(h, w) >= 32
    assert max(h, w) <= 512


@given(st.integers(1, 16), st.integers(1, 16))
def test_sizes_that_fit_are_kept(rows: int, columns: int) -> None:
    assert working_size(32 * rows, 32 * columns) == (32 * rows, 32 * columns)


def test_large_photos_keep_their_aspect() -> None:
    assert working_size(2048, 3072) == (352, 512)
    assert working_size(640, 480) == (512, 384)


def test_compact_stays_within_its_budget() -> None:
    model = PikFix(dataclasses.replace(PRESETS["compact"], damage=None)).eval()
    assert sum(p.numel() for p in model.parameters()) <= 12_000_000
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 256, 256), torch.zeros(1, 1, 3, 256, 256))
    # The counter does not see into the fused correlation: 2 (C + 2K) per pair of positions.
    config = model.config
    per_pair = 2 * (config.feature_channels + config.warped_channels)
    pairs = sum((256 >> scale + 2) ** 4 for scale in range(4))
    assert counter.get_total_flops() + per_pair * pairs <= 45e9


def test_compact_damage_networks_stay_within_theirs() -> None:
    config = PRESETS["compact"].damage
    assert config is not None
    model = Damage(config).eval()
    assert sum(p.numel() for p in model.parameters()) <= 3_000_000
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 512, 512))
    assert counter.get_total_flops() <= 12e9


def test_output_of_an_untrained_network_is_grey(tiny_config: PikFixConfig) -> None:
    out = PikFix(tiny_config).eval()(torch.rand(1, 1, 64, 64), torch.rand(1, 1, 3, 64, 64))
    assert not out.ab.any()


def test_a_batch_is_its_photos_one_by_one(tiny: PikFix) -> None:
    photo = torch.rand(2, 1, 72, 100) * 2 - 1
    lab = torch.rand(2, 2, 3, 64, 32) - 0.5
    together = tiny(photo, lab)
    for index in range(2):
        alone = tiny(photo[index : index + 1], lab[index : index + 1])
        torch.testing.assert_close(alone.ab, together.ab[index : index + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            alone.restored_l, together.restored_l[index : index + 1], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("similarity", "some"),
        ("fusion", "late"),
        ("temperature", 0.0),
        ("sigma", -0.1),
        ("dropout", 1.0),
        ("restoration_levels", (4, 8)),
    ],
)
def test_impossible_configurations_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        PikFixConfig(**{field: value})


def test_configuration_survives_json() -> None:
    import json

    for config in PRESETS.values():
        assert PikFixConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="widht"):
        PikFixConfig.from_dict({"widht": 3})


def test_fields_of_earlier_checkpoints_keep_their_meaning() -> None:
    old = {"doubtful_chroma": 0.5, "doubtful_confidence": [0.6, 0.7]}
    config = PikFixConfig.from_dict(old)
    assert (config.low_confidence_chroma, config.low_confidence_range) == (0.5, (0.6, 0.7))
    assert not set(old) & set(config.to_dict())
