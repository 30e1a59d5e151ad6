"""Metrics against scikit-image and published values."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from skimage import color, data, exposure, metrics

from pikfix.evaluation.baselines import grey, histogram_match, match_channel
from pikfix.evaluation.metrics import (
    PSNR_CAP,
    ciede2000,
    colorfulness,
    find_lpips,
    mean_ciede2000,
    psnr,
    ssim,
)
from pikfix.evaluation.pictures import split_lab


def tensor(pixels):
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def pair():
    truth = data.astronaut()[:200, 100:291]
    rng = np.random.default_rng(0)
    noisy = np.clip(truth + rng.normal(0, 20, truth.shape), 0, 255).astype(np.uint8)
    return tensor(noisy), tensor(truth)


def channels_last(picture):
    return picture.permute(1, 2, 0).double().numpy()


def test_psnr_is_skimages(pair):
    picture, truth = map(channels_last, pair)
    expected = metrics.peak_signal_noise_ratio(truth, picture, data_range=1.0)
    assert psnr(*pair) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_equal_pictures_is_finite(pair):
    assert psnr(pair[1], pair[1]) == PSNR_CAP


def test_ssim_is_skimages_gaussian_ssim(pair):
    picture, truth = map(channels_last, pair)
    _, full = metrics.structural_similarity(
        truth,
        picture,
        data_range=1.0,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    # The two mirror the border differently: skimage repeats the outermost pixel.
    assert ssim(*pair) == pytest.approx(float(full.mean()), abs=5e-4)
    assert ssim(pair[1], pair[1]) == pytest.approx(1.0, abs=1e-6)


def test_colorfulness(pair):
    picture = channels_last(pair[1]) * 255
    rg = picture[..., 0] - picture[..., 1]
    yb = 0.5 * (picture[..., 0] + picture[..., 1]) - picture[..., 2]
    expected = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    assert colorfulness(pair[1]) == pytest.approx(expected, rel=1e-9)
    assert colorfulness(grey(split_lab(pair[1])[0])) < 0.2  # the white point is rounded


# Sharma, Wu and Dalal 2005, table 1: pairs 1, 4, 7, 9, 14, 17, 20 and 34.
SHARMA = [
    ((50.0, 2.6772, -79.7751), (50.0, 0.0, -82.7485), 2.0425),
    ((50.0, -1.3802, -84.2814), (50.0, 0.0, -82.7485), 1.0),
    ((50.0, 0.0, 0.0), (50.0, -1.0, 2.0), 2.3669),
    ((50.0, 2.49, -0.001), (50.0, -2.49, 0.0009), 7.1792),
    ((50.0, -0.001, 2.49), (50.0, 0.0011, -2.49), 4.7461),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
    ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("first", "second", "expected"), SHARMA)
def test_ciede2000_of_the_published_pairs(first, second, expected):
    assert ciede2000(np.array(first), np.array(second)) == pytest.approx(expected, abs=5e-5)
    assert ciede2000(np.array(second), np.array(first)) == pytest.approx(expected, abs=5e-5)


def test_ciede2000_is_skimages():
    rng = np.random.default_rng(0)
    low, high = np.array([0, -100, -100]), np.array([100, 100, 100])
    first, second = rng.uniform(low, high, (2, 20000, 3))
    second[:2000, 1:] = 0  # greys
    second[2000:6000] = first[2000:6000] + rng.normal(0, 1, (4000, 3))
    np.testing.assert_allclose(
        ciede2000(first, second), color.deltaE_ciede2000(first, second), atol=1e-6
    )


def test_mean_ciede2000_of_pictures(pair):
    first, second = (color.rgb2lab(channels_last(p)) for p in pair)
    expected = color.deltaE_ciede2000(first, second).mean()
    assert mean_ciede2000(*pair) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("metric", [psnr, ssim, mean_ciede2000])
def test_sizes_must_agree(metric):
    with pytest.raises(ValueError, match=r"\[3, 20, 20\] and \[3, 20, 21\]"):
        metric(torch.zeros(3, 20, 20), torch.zeros(3, 20, 21))


def test_lpips_is_absent_without_its_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert find_lpips() is None


@pytest.mark.skipif(find_lpips() is None, reason="no LPIPS weights on this machine")
def test_lpips_of_equal_pictures_is_zero(pair):
    assert importlib.util.find_spec("torchvision") is not None
    lpips = find_lpips()
    assert lpips(pair[1], pair[1]) == pytest.approx(0, abs=1e-6)
    assert lpips(*pair) > 0.02


def test_grey_baseline_keeps_luminance(pair):
    luminance, _ = split_lab(pair[1])
    again, ab = split_lab(grey(luminance))
    torch.testing.assert_close(again, luminance, atol=2e-4, rtol=0)
    assert ab.abs().max() < 1e-3


def test_matching_a_channel_is_skimages():
    source, reference = data.camera()[:150], data.coins()
    expected = exposure.match_histograms(source, reference)
    np.testing.assert_allclose(match_channel(source, reference), expected, atol=1e-9)


def test_histogram_match_takes_the_references_colours_and_keeps_luminance(pair):
    luminance, _ = split_lab(pair[1])
    warm = torch.rand(3, 60, 60) * torch.tensor([0.9, 0.5, 0.2])[:, None, None]
    result = histogram_match(luminance, warm)
    again, ab = split_lab(result)
    assert ab[1].mean() > 0.1  # yellow to red, as the reference
    in_gamut = (result > 0).all(0) & (result < 1).all(0)
    torch.testing.assert_close(again[0][in_gamut], luminance[0][in_gamut], atol=2e-3, rtol=0)
    cold = histogram_match(luminance, warm.flip(0))
    assert split_lab(cold)[1][1].mean() < -0.1
