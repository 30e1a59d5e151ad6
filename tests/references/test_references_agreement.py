import dataclasses
from pathlib import Path

import numpy as np
import pytest
from skimage import color

from pikfix.references.agreement import BANDS, consensus, palette
from pikfix.references.library import CANDIDATES, Match, suitable
from pikfix.references.pictures import reduce_luminance, reduce_picture


def scaled(lab):
    """Lab [H, W, 3] as the product's planes."""
    return np.stack([lab[..., 0] / 50 - 1, lab[..., 1] / 110, lab[..., 2] / 110])


def test_a_palette_has_the_mean_colour_of_each_band(samples):
    lab = color.rgb2lab(samples["coffee_1.png"])
    found = palette(scaled(lab)).reshape(BANDS, 2)
    place = np.clip(lab[..., 0] / 100 * BANDS - 0.5, 0, BANDS - 1)
    for band in range(BANDS):
        weight = np.clip(1 - np.abs(place - band), 0, 1) + 0.0
        share = 0.02 * place.size
        expected = [
            (np.sum(weight * lab[..., c]) + share * lab[..., c].mean()) / (weight.sum() + share)
            for c in (1, 2)
        ]
        np.testing.assert_allclose(found[band] * 110, expected, atol=1e-3)


def test_an_empty_band_has_the_whole_pictures_colour():
    lab = np.stack([np.full((8, 8), 0.9), np.full((8, 8), 0.2), np.full((8, 8), -0.1)])
    np.testing.assert_allclose(
        palette(lab.astype(np.float32)), np.tile([0.2, -0.1], BANDS), atol=1e-6
    )


def test_pictures_carry_their_palette(samples):
    pixels = samples["chelsea_1.png"]
    picture = reduce_picture(pixels)
    assert np.abs(picture.palette).max() > 0.02
    assert not reduce_luminance(picture.luminance).palette.any()
    lighter = np.clip(pixels * 1.05, 0, 255).astype(np.uint8)
    assert np.abs(reduce_picture(lighter).palette - picture.palette).max() < 0.02


def test_the_geometric_median_comes_first_and_an_outlier_last():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=8)
    palettes = centre + 0.1 * rng.normal(size=(9, 8))
    palettes[4] = centre
    palettes[7] = centre + 3
    order = consensus(palettes)
    assert sorted(order) == list(range(9))
    assert order[0] == 4
    assert order[-1] == 7


@pytest.mark.parametrize("palettes", [np.zeros((0, 8)), np.eye(2, 8), np.zeros((5, 8))])
def test_where_colours_decide_nothing_the_order_stays(palettes):
    assert consensus(palettes) == list(range(len(palettes)))


def test_only_the_best_candidates_agree_about_the_first():
    def match(number, score, colour):
        name = f"{number}.png"
        return Match(name, Path(name), score, score / 2, score / 2, (colour,) * 8)

    # A dissenter leads by score; those behind the candidates would make it the common colour.
    ranked = [match(0, 0.9, 1.0)]
    ranked += [match(i, 0.89 - i / 1000, i / 1000) for i in range(1, CANDIDATES)]
    ranked += [match(i, 0.85 - i / 1000, 1.0) for i in range(CANDIDATES, 3 * CANDIDATES)]
    found = suitable(ranked, 0.0)
    assert len(found) == CANDIDATES
    assert found[0].name == f"{CANDIDATES // 2}.png"
    assert found[-1].name == "0.png"
    # What scores too low has no say either.
    poor = [dataclasses.replace(one, score=0.1) for one in ranked[1:]]
    assert suitable([ranked[0], *poor], 0.0) == [ranked[0]]
