import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage import color as sk
from skimage import data

from pikfix.photos import color

# The bounds that compose() states: L on the scale of 0 to 100.
BOUND_8, BOUND_16 = 0.3, 0.01


def whole(ab):
    return lambda rows: ab[:, rows]


def scaled(lab):
    """Scaled L [H, W] and ab [2, H, W] float32 of skimage's Lab [H, W, 3]."""
    ab = np.ascontiguousarray(lab[..., 1:].transpose(2, 0, 1) / 110.0)
    return (lab[..., 0] / 50.0 - 1.0).astype(np.float32), ab.astype(np.float32)


def any_colors(count=150_000, seed=0):
    """Scaled L and ab all over the networks' range: most of it lies outside sRGB."""
    rng = np.random.default_rng(seed)
    light = rng.uniform(-1, 1, (count // 300, 300)).astype(np.float32)
    return light, rng.uniform(-1, 1, (2, *light.shape)).astype(np.float32)


@given(arrays.arrays(np.float64, (7, 3), elements=st.floats(0, 1)))
def test_rgb_to_lab_is_skimages(rgb):
    np.testing.assert_allclose(color.rgb_to_lab(rgb), sk.rgb2lab(rgb), atol=1e-9)


def test_rgb_to_lab_of_bytes_is_skimages(rgb):
    np.testing.assert_allclose(color.rgb_to_lab(rgb), sk.rgb2lab(rgb), atol=1e-9)


@given(
    arrays.arrays(np.float64, (7, 1), elements=st.floats(0, 100)),
    arrays.arrays(np.float64, (7, 2), elements=st.floats(-110, 110)),
)
@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_lab_to_rgb_is_skimages_outside_the_gamut_too(light, ab):
    lab = np.concatenate([light, ab], axis=-1)
    np.testing.assert_allclose(color.lab_to_rgb(lab), sk.lab2rgb(lab), atol=1e-9)


@given(arrays.arrays(np.float64, (9, 3), elements=st.floats(0, 1)))
def test_round_trip_in_float64(rgb):
    # 1e-4: skimage's constants for the two branches of CIE's f meet to this only.
    np.testing.assert_allclose(color.lab_to_rgb(color.rgb_to_lab(rgb)), rgb, atol=1e-4)


@pytest.mark.parametrize("kind", ["bytes", "float32"])
def test_photo_luminance_is_skimages_l(rgb, kind):
    pixels = rgb if kind == "bytes" else (rgb / 255.0).astype(np.float32)
    light = color.photo_luminance(pixels)
    assert light.dtype == np.float32
    np.testing.assert_allclose(light * 50 + 50, sk.rgb2lab(rgb)[..., 0], atol=3e-5)


def test_grey_luminance_is_that_of_equal_channels():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    equal = np.repeat(grey[..., None], 3, axis=-1)
    expected = sk.rgb2lab(equal)[..., 0]
    np.testing.assert_allclose(color.photo_luminance(grey) * 50 + 50, expected, atol=3e-5)
    np.testing.assert_allclose(
        color.photo_luminance((grey / 255.0).astype(np.float32)),
        color.photo_luminance(grey),
        atol=1e-6,
    )


def test_every_grey_level_comes_back():
    eight = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(color.grey_from_luminance(color.photo_luminance(eight)), eight)
    sixteen = np.arange(65536).reshape(256, 256)
    light = color.photo_luminance((sixteen / 65535.0).astype(np.float32))
    np.testing.assert_array_equal(color.grey_from_luminance(light, deep=True), sixteen)


def test_grey_is_clipped_and_never_stretched():
    light = np.array([[-1.5, -1.0, -0.2, 0.3, 1.0, 1.5]], np.float32)
    clipped = np.clip(light[0], -1, 1) * 50.0 + 50
    lab = np.stack([clipped, 0 * clipped, 0 * clipped], -1)
    expected = np.rint(sk.lab2rgb(lab)[:, 1] * 255)
    np.testing.assert_array_equal(color.grey_from_luminance(light)[0], expected)
    # A picture of little contrast keeps it.
    flat = np.full((4, 4), 0.1, np.float32)
    flat[0, 0] = 0.12
    assert color.grey_from_luminance(flat).max() - color.grey_from_luminance(flat).min() <= 3


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "hubble_deep_field"])
def test_colors_of_photos_come_back_exactly(name):
    pixels = getattr(data, name)()[:200, :300]
    light, ab = scaled(sk.rgb2lab(pixels))
    np.testing.assert_array_equal(color.compose(light, whole(ab)), pixels)


@pytest.mark.parametrize(("deep", "bound"), [(False, BOUND_8), (True, BOUND_16)])
def test_color_never_changes_luminance_beyond_the_bound(deep, bound):
    light, ab = any_colors()
    result = color.compose(light, whole(ab), deep=deep)
    assert result.dtype == (np.uint16 if deep else np.uint8)
    seen = sk.rgb2lab(result / (65535.0 if deep else 255.0))[..., 0]
    assert np.abs(seen - (light * 50.0 + 50.0)).max() <= bound


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_the_bound_is_one_that_clipping_breaks():
    light, ab = any_colors(30_000)
    lab = np.stack([light * 50.0 + 50.0, ab[0] * 110.0, ab[1] * 110.0], axis=-1)
    clipped = sk.rgb2lab(sk.lab2rgb(lab))[..., 0]
    assert np.abs(clipped - lab[..., 0]).max() > 20 * BOUND_8


@settings(max_examples=60)
@given(
    st.floats(-1, 1, width=32), st.floats(-1, 1, width=32), st.floats(-1, 1, width=32)
)  # fmt: skip
def test_the_bound_holds_for_any_color(light, a, b):
    plane = np.array([[light]], np.float32)
    result = color.compose(plane, whole(np.array([[[a]], [[b]]], np.float32)))
    assert abs(sk.rgb2lab(result)[0, 0, 0] - (plane[0, 0] * 50.0 + 50.0)) <= BOUND_8


def test_colors_outside_srgb_keep_their_hue_and_only_lose_chroma():
    light, ab = any_colors(30_000, seed=1)
    wanted = ab.transpose(1, 2, 0) * 110.0
    got = sk.rgb2lab(color.compose(light, whole(ab), deep=True) / 65535.0)[..., 1:]
    # Twice the area between the two chroma vectors over the wanted length: the distance of the
    # result from the line that leads to grey.
    length = np.hypot(wanted[..., 0], wanted[..., 1])
    cross = got[..., 0] * wanted[..., 1] - got[..., 1] * wanted[..., 0]
    coloured = length > 1
    assert np.abs(cross[coloured] / length[coloured]).max() < 0.3
    assert (np.hypot(got[..., 0], got[..., 1]) <= length + 0.3).all()


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_gamut_mapping_gives_up_no_more_chroma_than_it_must():
    light, ab = any_colors(3_000, seed=2)
    got = sk.rgb2lab(color.compose(light, whole(ab), deep=True) / 65535.0)
    chroma = np.hypot(got[..., 1], got[..., 2])
    wanted = np.hypot(ab[0], ab[1]) * 110.0
    reduced = (wanted > chroma * 1.02 + 1) & (chroma > 5)
    assert reduced.mean() > 0.3
    # One percent more chroma would leave sRGB: skimage's unclipped linear values say so.
    more = got[reduced] * [1, 1.01, 1.01]
    linear = sk.lab2xyz(more) @ np.linalg.inv(sk.colorconv.xyz_from_rgb).T
    assert ((linear < 0) | (linear > 1)).any(axis=-1).mean() > 0.98


def test_white_and_black_stay_so_whatever_the_chroma():
    ab = np.full((2, 1, 2), 0.5, np.float32)
    result = color.compose(np.array([[-1.0, 1.0]], np.float32), whole(ab))
    np.testing.assert_array_equal(result[0], [[0, 0, 0], [255, 255, 255]])


def test_zero_chroma_is_grey():
    light = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)
    result = color.compose(light, whole(np.zeros((2, 64, 64), np.float32))).astype(int)
    grey = color.grey_from_luminance(light).astype(int)
    # A level more or less: skimage's white point and matrix agree to 1e-4.
    assert np.abs(result - grey[..., None]).max() <= 1
    assert (result == grey[..., None]).mean() > 0.97


@pytest.mark.parametrize(("ab_shape", "padded", "size"), [
    ((32, 64), (256, 512), (250, 500)),
    ((64, 32), (64, 32), (33, 17)),
    ((352, 512), (2048, 3072), (300, 3000)),
    ((32, 32), (128, 32), (1, 1)),
])  # fmt: skip
def test_chroma_is_upsampled_as_pytorch_does_it(ab_shape, padded, size):
    torch = pytest.importorskip("torch")
    ab = np.random.default_rng(0).uniform(-1, 1, (2, *ab_shape)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(ab)[None], padded, mode="bilinear", align_corners=False
    )[0, :, : size[0], : size[1]]
    planes = color.ChromaPlanes(ab, padded, size)
    rows = [slice(top, min(top + 37, size[0])) for top in range(0, size[0], 37)]
    got = np.concatenate([planes.rows(part) for part in rows], axis=1)
    # Both hold source coordinates in float32: 3e-5 of a pixel at 512.
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)


def test_photo_in_bands_is_the_same_as_in_one(monkeypatch):
    """Each core has a band of rows where the photo is large enough."""
    pixels = np.tile(data.astronaut(), (2, 1, 1))
    light, ab = color.photo_luminance(pixels), color.lab_planes(pixels)[1:] * 1.3
    grey, colours = color.grey_from_luminance(light), color.compose(light, whole(ab))
    used = set()

    def rows(part):
        used.add(threading.get_ident())
        return ab[:, part]

    monkeypatch.setattr(color, "_THREAD_PIXELS", 1 << 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    np.testing.assert_array_equal(color.photo_luminance(pixels), light)
    np.testing.assert_array_equal(color.grey_from_luminance(light), grey)
    np.testing.assert_array_equal(color.compose(light, rows), colours)
    assert len(used) >= 2


def test_lab_planes_are_scaled_lab(rgb):
    planes = color.lab_planes(rgb)
    lab = sk.rgb2lab(rgb).transpose(2, 0, 1)
    np.testing.assert_allclose(planes[0] * 50 + 50, lab[0], atol=1e-4)
    np.testing.assert_allclose(planes[1:] * 110, lab[1:], atol=1e-4)
    np.testing.assert_allclose(color.lab_planes(rgb[..., 0])[1:], 0, atol=1e-4)


def test_lab_planes_of_a_whole_photo_and_of_its_deep_form():
    """Of more pixels than are converted at a time."""
    pixels = np.ascontiguousarray(data.astronaut()[:400])
    lab = sk.rgb2lab(pixels).transpose(2, 0, 1)
    for form in (pixels, pixels / 255.0, (pixels / 255.0).astype(np.float32)):
        planes = color.lab_planes(form)
        np.testing.assert_allclose(planes[0] * 50 + 50, lab[0], atol=1e-4)
        np.testing.assert_allclose(planes[1:] * 110, lab[1:], atol=2e-4)
