import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pikfix.photos import padding


def bounced(position, size):
    """Walk the index one by one, turning at each end."""
    index, step = 0, 1
    for _ in range(position):
        if not 0 <= index + step < size:
            step = -step
        index += step if size > 1 else 0
    return index


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 70), st.integers(0, 70))
def test_padding_reflects_again_and_again(height, width, below, right):
    plane = np.arange(height * width, dtype=np.float32).reshape(height, width)
    padded = padding.pad_reflect(plane, (height + below, width + right))
    rows = [bounced(row, height) for row in range(height + below)]
    columns = [bounced(column, width) for column in range(width + right)]
    np.testing.assert_array_equal(padded, plane[np.ix_(rows, columns)])
    np.testing.assert_array_equal(padding.crop(padded, (height, width)), plane)


def test_padding_is_numpys_where_one_reflection_is_enough():
    planes = np.random.default_rng(0).random((3, 40, 50))
    expected = np.pad(planes, ((0, 0), (0, 24), (0, 14)), mode="reflect")
    np.testing.assert_array_equal(padding.pad_reflect(planes, (64, 64)), expected)


def test_one_pixel_fills_its_bucket():
    assert (padding.pad_reflect(np.full((1, 1), 0.3), (32, 32)) == 0.3).all()


@pytest.mark.parametrize("shape", [(9, 20), (20, 9)])
def test_padding_refuses_a_smaller_shape(shape):
    with pytest.raises(ValueError, match="cannot pad 10 x 10"):
        padding.pad_reflect(np.zeros((10, 10)), shape)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_buckets_hold_the_photo_in_multiples_of_32(height, width):
    shape = padding.bucket_shape(height, width)
    for side, padded in zip((height, width), shape, strict=True):
        assert padded >= side
        assert padded % 32 == 0
        longest = padding.DEFAULT_BUCKET_SIDES[-1]
        if side > longest:
            assert padded - side < 32
        else:
            assert padded == min(s for s in padding.DEFAULT_BUCKET_SIDES if s >= side)


def test_buckets_of_another_table():
    assert padding.bucket_shape(33, 517, (64, 512)) == (64, 544)


def test_default_table_wastes_at_most_a_third_of_a_side_from_384_on():
    sides = [side for side in padding.DEFAULT_BUCKET_SIDES if side >= 384]
    assert all(after / before <= 4 / 3 for before, after in itertools.pairwise(sides))


def test_bucket_table_is_sorted_and_checked():
    assert padding.check_bucket_sides([512, 64, 64]) == (64, 512)
    for wrong in ([0], [-32], [100]):
        with pytest.raises(ValueError, match="multiple of 32"):
            padding.check_bucket_sides(wrong)
