"""Numeric parity of two arrays."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pikfix.evaluation.parity import compare


def test_equal_arrays():
    values = np.random.default_rng(0).random((2, 70, 33), dtype=np.float32)
    parity = compare(values, values.copy())
    assert parity.psnr == math.inf
    assert parity.max_abs == parity.mean_abs == parity.worst_tile == 0
    assert parity.violations(min_psnr=80, max_abs=0, max_worst_tile=0) == []


def test_constant_difference():
    expected = np.zeros((3, 64, 64))
    parity = compare(expected, expected + 0.01, data_range=2.0)
    assert parity.psnr == pytest.approx(20 * math.log10(2 / 0.01))
    assert parity.max_abs == pytest.approx(0.01)
    assert parity.mean_abs == pytest.approx(0.01)
    assert parity.worst_tile == pytest.approx(0.01)


def test_the_worst_tile_is_found_where_the_mean_hides_it():
    expected = np.zeros((1, 2, 300, 300), dtype=np.float32)
    actual = expected.copy()
    actual[0, 1, 290:, 64:96] = 0.5  # in the last, smaller tile of its column
    parity = compare(expected, actual)
    assert parity.worst_tile_at == (0, 1, 288, 64)
    assert parity.worst_tile == pytest.approx(0.5 * math.sqrt(10 / 12))
    assert parity.psnr > 35
    assert parity.violations(min_psnr=35) == []
    (line,) = parity.violations(min_psnr=35, max_worst_tile=0.1)
    assert "(0, 1, 288, 64)" in line


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 70)),
    tile=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_worst_tile_equals_a_loop(shape, tile, seed):
    rng = np.random.default_rng(seed)
    expected, actual = rng.random(shape), rng.random(shape)
    tiles = [
        actual[c, y : y + tile, x : x + tile] - expected[c, y : y + tile, x : x + tile]
        for c in range(shape[0])
        for y in range(0, shape[1], tile)
        for x in range(0, shape[2], tile)
    ]
    worst = max(float(np.sqrt(np.mean(t**2))) for t in tiles)
    assert compare(expected, actual, tile=tile).worst_tile == pytest.approx(worst)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_result_that_is_not_finite_fails(bad):
    expected = np.zeros((40, 40), dtype=np.float32)
    actual = expected.copy()
    actual[35, 3] = bad
    parity = compare(expected, actual)
    assert not parity.finite
    assert parity.psnr == -math.inf
    assert parity.worst_tile_at == (32, 0)
    assert "not finite" in parity.violations()[0]
    assert len(parity.violations(min_psnr=1, max_abs=1, max_worst_tile=1)) == 4
    assert json.loads(json.dumps(parity.to_dict(), allow_nan=False))["psnr"] is None


def test_half_precision_does_not_overflow():
    expected = np.full((100, 100), 300.0, dtype=np.float16)
    parity = compare(expected, expected + np.float16(1), data_range=600)
    assert parity.mean_abs == 1.0


def test_vectors_and_scalars():
    assert compare(np.zeros(5), np.ones(5)).max_abs == 1
    assert compare(np.zeros(()), np.ones(())).worst_tile == 1


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), r"\[2, 3\] and \[3, 2\]"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "empty"),
        (np.array([math.nan]), np.zeros(1), "expected array"),
    ],
)
def test_wrong_arrays_are_refused(expected, actual, message):
    with pytest.raises(ValueError, match=message):
        compare(expected, actual)


def test_needs_no_torch():
    code = "import sys, pikfix.evaluation.parity; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
