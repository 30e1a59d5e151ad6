"""Cracks, flakes and stamps: coverage that is seeded, in range, and as wide as the scale says."""

from __future__ import annotations

import numpy as np
import pytest

from pikfix.systems.damage.samples import DAMAGED_FROM, Sample, SampleConfig, draw
from pikfix.training.degradation_cracks import crack_network, flakes, stamped, walk
from pikfix.training.degradation_structured import Layer
from pikfix.training.degradation_unstructured import Scale

STAMP = np.zeros((400, 400), np.uint8)
STAMP[150:250, 190:210] = 255
SLOPE = np.tile(np.linspace(0.2, 0.6, 128, dtype=np.float32), (128, 1))


def coverage(kind, scale: float, seed: int, side: int = 192) -> np.ndarray:
    layers = kind(side, side, np.random.default_rng(seed), Scale(scale, 1.0))
    return np.max([layer.coverage for layer in layers], axis=0)


def lines(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Crack networks without the flakes beside some of them."""
    return [Layer(walk(height, width, rng, scale))]


def stamped_once(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list:
    return stamped(height, width, rng, scale, [STAMP])


@pytest.mark.parametrize("kind", [crack_network, flakes, stamped_once])
def test_layers_are_seeded_and_in_range(kind) -> None:
    for seed in range(20):
        layers = kind(96, 128, np.random.default_rng(seed), Scale(1.5, 1.0))
        again = kind(96, 128, np.random.default_rng(seed), Scale(1.5, 1.0))
        for one, other in zip(layers, again, strict=True):
            assert one.coverage.shape == (96, 128)
            assert one.coverage.dtype == np.float32
            assert one.coverage.min() >= 0
            assert one.coverage.max() <= 1
            np.testing.assert_array_equal(one.coverage, other.coverage)


def test_cracks_grow_wider_with_the_scale() -> None:
    thin, thick = (
        np.mean([coverage(lines, scale, seed).sum() for seed in range(40)]) for scale in (1.0, 4.0)
    )
    assert 2.5 < thick / thin < 9.0  # four times as wide; thin ones may end earlier


def test_a_crack_is_a_line_not_an_area() -> None:
    shares = [float((coverage(crack_network, 1.0, seed) > 0.5).mean()) for seed in range(30)]
    assert 0.001 < np.median(shares) < 0.15


def test_a_stamp_is_as_large_as_the_scale_says() -> None:
    areas = {
        scale: np.mean([coverage(stamped_once, scale, seed, 400).sum() for seed in range(60)])
        for scale in (0.5, 1.5)
    }
    assert 4.0 < areas[1.5] / areas[0.5] < 16.0  # the square of 3, but for cut edges


def samples(config: SampleConfig, count: int = 40) -> list[Sample]:
    return [draw(SLOPE, np.random.default_rng(seed), config, [STAMP]) for seed in range(count)]


def test_a_sample_differs_from_its_truth_where_it_is_damaged_alone() -> None:
    config = SampleConfig(damaged=1.0, later=0.0)
    some = 0
    for sample in samples(config):
        change = np.abs(sample.photo - sample.truth)
        assert (change[sample.damaged > 0] > 0).all()
        sound = (sample.judged > 0) & (sample.damaged == 0)
        assert change[sound].max(initial=0) <= DAMAGED_FROM
        some += bool(sample.damaged.any())
    assert some > 30


def test_an_undamaged_sample_is_its_truth() -> None:
    for sample in samples(SampleConfig(damaged=0.0, later=0.0), 10):
        np.testing.assert_array_equal(sample.photo, sample.truth)
        assert not sample.damaged.any()
        assert sample.judged.all()


def test_every_kind_of_defect_can_be_seen() -> None:
    for kind in SampleConfig().occurrence:
        only = SampleConfig(damaged=1.0, later=0.0, printed=0.0, occurrence={kind: 1.0})
        assert any(sample.damaged.any() for sample in samples(only, 15)), kind
