"""Synthesis of old photos: what each operation does, where the mask is, what stays the same."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from skimage import data, filters, metrics, transform

from pikfix.training import degradation
from pikfix.training.degradation import (
    DEGRADATIONS,
    STRUCTURED,
    UNSTRUCTURED,
    DegradationConfig,
    degrade,
)
from pikfix.training.degradation_fields import (
    convolve,
    gaussian_kernel,
    grain,
    jagged_line,
    smooth_noise,
)
from pikfix.training.degradation_unstructured import (
    PRINT_BLACK,
    Scale,
    fading,
    gaussian_blur,
    jpeg,
    low_resolution,
    noise,
    toning,
)

ONE = Scale(pixels=1.0, strength=1.0)


@pytest.fixture(scope="module")
def colour():
    return transform.resize(data.astronaut(), (256, 256), anti_aliasing=True).astype(np.float32)


@pytest.fixture(scope="module")
def grey(colour):
    return np.ascontiguousarray(colour @ np.float32([0.299, 0.587, 0.114]))


def only(structured=None, unstructured=(), **more):
    """A configuration with a single kind of damage, which always occurs."""
    return DegradationConfig(
        unstructured=tuple(unstructured), structured=structured or {}, skip=0.0, **more
    )


@pytest.mark.parametrize("preset", sorted(DEGRADATIONS))
@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_result_is_a_picture_and_a_mask(request, preset, kind):
    image = request.getfixturevalue(kind)
    before = image.copy()
    for seed in range(15):
        result = degrade(image, np.random.default_rng(seed), DEGRADATIONS[preset])
        assert result.image.shape == image.shape
        assert result.image.dtype == result.mask.dtype == np.float32
        assert result.mask.shape == image.shape[:2]
        assert 0 <= result.image.min() <= result.image.max() <= 1
        assert 0 <= result.mask.min() <= result.mask.max() <= 1
        assert not np.array_equal(result.image, image)
    np.testing.assert_array_equal(image, before)


def test_the_seed_decides(grey):
    config = DEGRADATIONS["default"]
    first = degrade(grey, np.random.default_rng(5), config)
    again = degrade(grey, np.random.default_rng(5), config)
    other = degrade(grey, np.random.default_rng(6), config)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)


def test_strength_zero_changes_nothing(colour):
    result = degrade(colour, np.random.default_rng(0), DegradationConfig(strength=0))
    np.testing.assert_array_equal(result.image, colour)
    assert result.image is not colour
    assert not result.mask.any()


def test_stronger_is_worse(grey):
    def mean_psnr(name):
        seeds = range(40)
        results = [degrade(grey, np.random.default_rng(s), DEGRADATIONS[name]) for s in seeds]
        return np.mean([metrics.peak_signal_noise_ratio(grey, r.image) for r in results])

    light, default, heavy = mean_psnr("light"), mean_psnr("default"), mean_psnr("heavy")
    assert light > default + 1 > heavy + 2


@pytest.mark.parametrize("shape", [(16, 16), (17, 300), (200, 31, 3), (63, 65)])
def test_odd_shapes(shape):
    image = np.random.default_rng(0).random(shape, dtype=np.float32)
    for seed in range(12):
        result = degrade(image, np.random.default_rng(seed), DEGRADATIONS["heavy"])
        assert result.image.shape == shape
        assert np.isfinite(result.image).all()


@pytest.mark.parametrize("name", sorted(set(STRUCTURED) - {"paper", "halftone"}))
def test_a_defect_lies_within_its_mask(colour, name):
    config = only({name: 1.0})
    touched = 0
    for seed in range(10):
        result = degrade(colour, np.random.default_rng(seed), config)
        outside = result.mask == 0
        np.testing.assert_array_equal(result.image[outside], colour[outside])
        touched += int((np.abs(result.image - colour).max(axis=2) > 0.05).sum())
    assert touched > 0


@pytest.mark.parametrize("name", ["paper", "halftone"])
def test_texture_is_everywhere_and_not_in_the_mask(grey, name):
    result = degrade(grey, np.random.default_rng(1), only({name: 1.0}))
    assert not result.mask.any()
    assert (result.image != grey).mean() > 0.8
    assert abs(float((result.image - grey).mean())) < 0.05


@pytest.mark.parametrize("name", ["holes", "torn_edges"])
def test_lost_parts_are_pure_white(colour, name):
    config = DegradationConfig(structured={name: 1.0})
    for seed in range(20):
        result = degrade(colour, np.random.default_rng(seed), config)
        lost = result.mask == 1
        assert 0 < lost.mean() < 0.35
        assert (result.image[lost] == 1).all()


def test_a_tear_takes_part_of_the_border(grey):
    for seed in range(20):
        mask = degrade(grey, np.random.default_rng(seed), only({"torn_edges": 1.0})).mask
        border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        assert (border == 1).any()


def test_operations_are_left_out_three_times_in_ten(grey, monkeypatch):
    calls = dict.fromkeys(UNSTRUCTURED, 0)
    orders = set()
    order = []

    def counting(name):
        def run(image, rng, scale):
            calls[name] += 1
            order.append(name)
            return image

        return run

    monkeypatch.setattr(degradation, "OPERATIONS", {n: counting(n) for n in UNSTRUCTURED})
    config = DegradationConfig(structured={})
    runs = 600
    small = grey[:16, :16]
    for seed in range(runs):
        order.clear()
        degrade(small, np.random.default_rng(seed), config)
        orders.add(tuple(order))
    for name, count in calls.items():
        assert count / runs == pytest.approx(0.7, abs=0.06), name  # three standard deviations
    assert len(orders) > runs // 2


def test_thinned_damage_occurs_as_often_as_said():
    whole = DegradationConfig()
    half = whole.thinned(0.5)
    assert 1 - half.skip == pytest.approx(0.5 * (1 - whole.skip))
    assert half.structured == {name: 0.5 * value for name, value in whole.structured.items()}
    none = whole.thinned(0.0)
    assert none.skip == 1
    assert not any(none.structured.values())
    with pytest.raises(ValueError, match="skip"):
        whole.thinned(-1)


def test_always_overrides_skip(grey, monkeypatch):
    calls = []
    monkeypatch.setitem(degradation.OPERATIONS, "jpeg", lambda i, r, s: calls.append(1) or i)
    config = DegradationConfig(structured={}, skip=1.0, always=("jpeg",))
    for seed in range(5):
        degrade(grey, np.random.default_rng(seed), config)
    assert len(calls) == 5


def test_convolution_is_scipys(grey):
    blurred = convolve(grey, gaussian_kernel(2.0, 6))
    expected = filters.gaussian(grey, sigma=2.0, mode="reflect", truncate=3.0)
    np.testing.assert_allclose(blurred, expected, atol=2e-6)


def test_blur_and_low_resolution_remove_detail(grey):
    detail = filters.sobel(grey).mean()
    for seed in range(5):
        blurred = gaussian_blur(grey, np.random.default_rng(seed), ONE)
        assert filters.sobel(blurred).mean() < 0.9 * detail
        assert float(blurred.mean()) == pytest.approx(float(grey.mean()), abs=2e-3)
        coarse = low_resolution(grey, np.random.default_rng(seed), ONE)
        assert coarse.shape == grey.shape
        assert metrics.peak_signal_noise_ratio(grey, coarse, data_range=1) > 18


def test_noise_stays_within_the_published_amplitudes():
    flat = np.full((256, 256), 0.5, dtype=np.float32)
    deviations = []
    for seed in range(60):
        out = noise(flat, np.random.default_rng(seed), ONE)
        deviations.append(float((out - flat).std()) * 255)
        assert abs(float((out - flat).mean())) < 0.01
    assert max(deviations) < 52
    assert min(deviations) < 8


def test_jpeg_is_pillows(grey):
    out = jpeg(grey, np.random.default_rng(0), ONE)
    np.testing.assert_array_equal(np.rint(out * 255), out * 255)
    assert 25 < metrics.peak_signal_noise_ratio(grey, out, data_range=1) < 60


def test_fading_lowers_contrast(grey):
    spread = np.mean([fading(grey, np.random.default_rng(s), ONE).std() for s in range(40)])
    assert spread < 0.9 * grey.std()


def test_fading_takes_one_share_off_every_density():
    """The power law of the docstring, found again in three greys without knowing its share."""
    levels = np.array([0.0, 0.25, 0.6, 1.0], dtype=np.float32)
    picture = np.repeat(levels, 64)[None].repeat(64, axis=0)
    even = 0
    for seed in range(40):
        out = fading(picture, np.random.default_rng(seed), ONE)
        if np.ptp(out[:, :64]) > 1e-6:
            continue  # uneven light
        even += 1
        black, dark, light, white = out[0, 32::64].astype(float)
        share = np.log(black / white) / np.log(PRINT_BLACK)
        assert 0.55 <= share <= 1.0
        assert 0.85 <= white <= 1.0
        for value, level in ((dark, 0.25), (light, 0.6)):
            printed = PRINT_BLACK + (1 - PRINT_BLACK) * level
            assert value == pytest.approx(white * printed**share, rel=1e-4)
    assert even > 8


def test_toning_gives_sepia_grey_and_faded_colours(colour, grey):
    kinds = {"sepia": 0, "grey": 0, "colour": 0}
    for seed in range(60):
        out = np.clip(toning(colour, np.random.default_rng(seed), ONE), 0, 1)
        red, green, blue = np.moveaxis(out, 2, 0)
        if np.array_equal(red, green) and np.array_equal(green, blue):
            kinds["grey"] += 1
        elif (red >= green).all() and (green >= blue).all():
            kinds["sepia"] += 1
        else:
            kinds["colour"] += 1
    assert kinds["sepia"] > kinds["grey"] > 5
    assert kinds["colour"] > 5
    assert toning(grey, np.random.default_rng(0), ONE) is grey


def test_defects_grow_with_the_scan():
    small = np.full((256, 256), 0.3, dtype=np.float32)
    large = np.full((1024, 1024), 0.3, dtype=np.float32)
    config = only({"holes": 1.0})

    def share(image):
        masks = [degrade(image, np.random.default_rng(s), config).mask for s in range(10)]
        return np.mean([m.mean() for m in masks])

    assert share(large) == pytest.approx(share(small), rel=0.1)


def test_fields():
    rng = np.random.default_rng(0)
    field = smooth_noise(rng, 100, 80, 20.0)
    assert field.shape == (100, 80)
    assert np.abs(np.diff(field, axis=0)).max() < 0.25  # it takes about 20 pixels to change
    assert grain(rng, 90, 70, 3.0).std() == pytest.approx(1.0, rel=0.02)
    line = jagged_line(rng, (0.0, 0.0), (8.0, 4.0), 0.1, 3)
    assert line.shape == (9, 2)
    np.testing.assert_array_equal(line[[0, -1]], [(0, 0), (8, 4)])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((64, 64)), "float32"),
        (np.zeros((64, 64), np.uint8), "float32"),
        ([[0.0]], "float32"),
        (np.zeros((64, 64, 4), np.float32), r"\[64, 64, 4\]"),
        (np.zeros((2, 64, 64, 3), np.float32), r"\[2, 64, 64, 3\]"),
        (np.zeros((15, 64), np.float32), "64 x 15"),
        (np.full((64, 64), 1.5, np.float32), "1.5"),
        (np.full((64, 64), np.nan, np.float32), "nan"),
    ],
)
def test_wrong_pictures_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        degrade(image, np.random.default_rng(0), DegradationConfig())


@pytest.mark.parametrize(
    "fields",
    [
        {"strength": -1.0},
        {"strength": 9.0},
        {"skip": 1.5},
        {"scan_probability": -0.1},
        {"unstructured": ("blurr",)},
        {"always": ("blurr",)},
        {"structured": {"scratch": 1.0}},
        {"structured": {"dust": 2.0}},
        {"pixel_scale": 0.0},
    ],
)
def test_wrong_configurations_are_refused(fields):
    with pytest.raises(ValueError, match=r"must be|unknown degradation"):
        DegradationConfig(**fields)


def test_needs_no_torch():
    code = "import sys, pikfix.training.degradation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
