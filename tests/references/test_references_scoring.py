import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pikfix.references.errors import LibraryError
from pikfix.references.scoring import (
    Layout,
    Weights,
    pool_features,
    score,
    structure_vectors,
)

SHAPES = ((5, 16), (7, 8), (3, 2))  # channels and side per level


def features(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, c, s, s, generator=generator) ** 2 * 3 for c, s in SHAPES]


def naive(photo, candidate, weights):
    """DISTS' two terms, written out per channel in float64 on maps averaged to 4 x 4."""
    c = 1e-6
    textures = structures = 0.0
    for level, pair in enumerate(zip(photo, candidate, strict=True)):
        x, y = (one.double().numpy() for one in pair)
        for channel in range(len(x)):
            m_x, m_y = x[channel].mean(), y[channel].mean()
            texture = (2 * m_x * m_y + c) / (m_x**2 + m_y**2 + c)
            side = min(4, x.shape[-1])
            block = x.shape[-1] // side
            small = [
                one[channel].reshape(side, block, side, block).mean(axis=(1, 3)).ravel()
                for one in (x, y)
            ]
            covariance = np.cov(small[0], small[1], bias=True)
            structure = (2 * covariance[0, 1] + c) / (covariance[0, 0] + covariance[1, 1] + c)
            textures += weights.alpha[level] / len(x) * texture
            structures += weights.beta[level] / len(x) * structure
    return textures, structures


def test_terms_agree_with_the_formula_in_float64():
    weights = Weights((0.1, 0.2, 0.15), (0.25, 0.2, 0.1))
    one, many = features(0, 1), features(1, 6)
    layout, photo_means, photo_maps = pool_features(one)
    _, means, maps = pool_features(many)
    assert layout == Layout(((5, 4), (7, 4), (3, 2)))
    assert (means.shape, maps.shape) == ((6, layout.channels), (6, layout.values))
    got = score(layout, weights, (photo_means[0], photo_maps[0]), (means, maps))
    for number in range(6):
        expected = naive([f[0] for f in one], [f[number] for f in many], weights)
        assert got[0][number] == pytest.approx(expected[0], abs=1e-5)
        assert got[1][number] == pytest.approx(expected[1], abs=1e-5)


def test_a_picture_scores_one_with_itself_and_less_with_others():
    layout, means, maps = pool_features(features(2, 5))
    weights = Weights.even(3)
    scores = torch.stack(
        [sum(score(layout, weights, (means[i], maps[i]), (means, maps))) for i in range(5)]
    )
    torch.testing.assert_close(scores.diagonal(), torch.ones(5))
    torch.testing.assert_close(scores, scores.T)
    assert (scores - torch.eye(5) < 0.999).all()


def test_half_precision_maps_change_scores_by_less_than_a_thousandth():
    layout, means, maps = pool_features(features(3, 5))
    weights = Weights.even(3)
    exact = score(layout, weights, (means[0], maps[0]), (means, maps))
    stored = score(layout, weights, (means[0], maps[0]), (means, maps.half()))
    torch.testing.assert_close(sum(exact), sum(stored), atol=1e-3, rtol=0)


def test_dead_channels_count_as_equal():
    blank = [torch.zeros(2, 4, 8, 8)]
    layout, means, maps = pool_features(blank)
    texture, structure = score(layout, Weights.even(1), (means[0], maps[0]), (means, maps))
    torch.testing.assert_close(texture + structure, torch.ones(2))


def test_structure_vectors_multiply_to_mean_correlations():
    layout, _, maps = pool_features(features(4, 2))
    vectors = structure_vectors(layout, maps)
    expected, start = [], 0
    for channels, side in layout.levels:
        stop = start + channels * side * side
        level = maps[:, start:stop].view(2, channels, -1).double().numpy()
        rows = [np.corrcoef(level[0, j], level[1, j])[0, 1] for j in range(channels)]
        expected.append(np.mean(rows))
        start = stop
    assert float(vectors[0] @ vectors[1]) == pytest.approx(np.mean(expected), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(levels=st.integers(1, 6), structure=st.floats(0, 1))
def test_even_weights_sum_to_one(levels, structure):
    weights = Weights.even(levels, structure)
    assert sum(weights.alpha) + sum(weights.beta) == pytest.approx(1)
    assert sum(weights.beta) == pytest.approx(structure, abs=1e-9)


@pytest.mark.parametrize(
    ("alpha", "beta"), [((0.5,), (0.4,)), ((0.5, 0.5), (0.0,)), ((1.5,), (-0.5,))]
)
def test_wrong_weights_are_refused(alpha, beta):
    with pytest.raises(LibraryError, match="weights of texture and structure"):
        Weights(alpha, beta)
