"""Files as archives keep them, through both steps with networks that change nothing."""

import io
import json
import math

import numpy as np
import pytest
import tifffile
from imagecodecs import cms_profile, cms_transform
from PIL import Image
from skimage import color as sk
from skimage import data

ADOBE = cms_profile("adobergb")
GAMMA = cms_profile("gray", gamma=2.2)


@pytest.fixture
def steps(load, tmp_path):
    return load("decode_photo"), load("encode_photo", repository=tmp_path)


@pytest.fixture(scope="module")
def deep():
    """Smooth 16-bit colours, [96, 128, 3]."""
    rows, columns = np.mgrid[0:96, 0:128]
    planes = (rows * 600 + columns, columns * 480 + rows * 3, (rows + columns) * 250)
    return np.stack(planes, axis=-1).astype(np.uint16) + 3000


def tiff(pixels, icc=b"", **settings):
    file = io.BytesIO()
    tags = [(34675, "B", None, icc, True)] if icc else []
    photometric = settings.pop("photometric", "rgb" if pixels.ndim == 3 else "minisblack")
    tifffile.imwrite(file, pixels, photometric=photometric, extratags=tags, **settings)
    return file.getvalue()


def through(steps, text, file, **options):
    """The answer to a photo by networks that restore nothing and make no colours."""
    decode, encode = steps
    sent = {"photo": text([file]), "options": text([json.dumps(options).encode()])}
    (decoded,) = decode.run(sent)
    if hasattr(decoded, "message"):
        return decoded.message(), None
    light = decoded["photo_l"]
    ab = np.zeros((1, 2, *light.shape[2:]), np.float32)
    (answer,) = encode.run({"restored_l": light, "ab": ab, "photo_info": decoded["photo_info"]})
    return answer["result"][0, 0], json.loads(answer["report"][0, 0])


def read(result):
    with tifffile.TiffFile(io.BytesIO(result)) as file:
        page = file.pages.first
        return page.asarray(), page.iccprofile


@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("compression", [None, "lzw", "deflate"])
@pytest.mark.parametrize("icc", [b"", GAMMA], ids=["plain", "gamma"])
def test_grey_of_16_bits_comes_back_to_the_level(steps, text, icc, compression, predictor):
    if predictor and compression is None:
        pytest.skip("nothing to predict for")
    ramp = np.arange(0, 65536, 7, dtype=np.uint16)[: 96 * 96].reshape(96, 96)
    file = tiff(ramp, icc, compression=compression, predictor=predictor)
    result, report = through(steps, text, file, color=False, force_photo=True)
    pixels, profile = read(result)
    assert pixels.dtype == np.uint16
    assert (profile or b"") == icc
    # The networks' luminance is a float32 around -1, which cannot tell the first levels of gamma
    # 2.2 apart: they are less than a millionth of white.
    difference = np.abs(pixels.astype(int) - ramp)
    assert difference[ramp > 64].max() <= 1
    assert difference.max() <= 8
    assert report["warnings"] == []


def test_grey_profiles_are_not_taken_for_srgb(steps, text):
    """Gamma 2.2 and sRGB are close, so that one whose tones lie far off shows it."""
    linear = cms_profile("gray", gamma=1.0)
    ramp = np.linspace(2000, 65000, 96 * 96).astype(np.uint16).reshape(96, 96)
    own, _ = through(steps, text, tiff(ramp, linear), color=False, force_photo=True)
    srgb, _ = through(
        steps, text, tiff(ramp, linear), color=False, force_photo=True, profile="srgb"
    )
    pixels, profile = read(own)
    assert profile == linear
    assert np.abs(pixels.astype(int) - ramp).max() <= 2
    pixels, profile = read(srgb)
    assert profile is None
    unit = ramp / 65535
    expected = np.where(unit > 0.0031308, 1.055 * unit ** (1 / 2.4) - 0.055, 12.92 * unit)
    assert np.abs(pixels / 65535 - expected).max() < 2e-4


def test_luminance_of_16_bit_colours_in_any_profile(steps, text, deep):
    file = tiff(deep, ADOBE, compression="lzw", predictor=True)
    decode, _ = steps
    (decoded,) = decode.run({"photo": text([file]), "options": text([b'{"force_photo": true}'])})
    # Adobe RGB (1998): its own primaries, gamma 563/256, white D65.
    linear = (deep / 65535) ** (563 / 256)
    xyz = linear @ np.array([0.2973769, 0.6273491, 0.0752741])
    expected = np.where(xyz > 216 / 24389, 116 * np.cbrt(xyz) - 16, xyz * 24389 / 27)
    found = (decoded["photo_l"][0, 0, :96, :128] + 1) * 50
    srgb = cms_transform(
        deep / 65535, ADOBE, cms_profile("srgb"), colorspace="rgb", outcolorspace="rgb"
    )
    inside = (srgb.min(axis=-1) >= 0) & (srgb.max(axis=-1) <= 1)
    assert inside.mean() > 0.3
    assert np.abs(found - expected)[inside].max() < 0.05
    assert len(np.unique(decoded["photo_l"])) > 4096


def test_a_page_of_text_keeps_every_sample_and_its_profile(steps, text):
    page = np.full((200, 300, 3), 65000, np.uint16)
    page[40:160:12, 30:270] = (500, 1000, 1500)
    page[:, ::7] = 65000
    result, report = through(steps, text, tiff(page, ADOBE))
    assert report["photo"]["content"] == "graphic"
    pixels, profile = read(result)
    assert profile == ADOBE
    assert np.array_equal(pixels, page)


def test_colours_go_into_the_photos_profile(steps, text, load, tmp_path):
    """Colours that a photo has come back as those that it had."""
    photo = np.ascontiguousarray(data.astronaut()[100:196, 100:228])
    unit = cms_transform(
        photo / 255, cms_profile("srgb"), ADOBE, colorspace="rgb", outcolorspace="rgb"
    )
    stored = np.rint(np.clip(unit, 0, 1) * 65535).astype(np.uint16)
    decode, encode = steps
    reference = io.BytesIO()
    Image.fromarray(photo).save(reference, "PNG")
    (decoded,) = decode.run(
        {
            "photo": text([tiff(stored, ADOBE)]),
            "reference": text([reference.getvalue()]),
            "options": text([b'{"force_photo": true}']),
        }
    )
    ab = np.zeros((1, 2, *decoded["photo_l"].shape[2:]), np.float32)
    ab[0, :, :96, :128] = sk.rgb2lab(photo).transpose(2, 0, 1)[1:] / 110
    (answer,) = encode.run(
        {"restored_l": decoded["photo_l"], "ab": ab, "photo_info": decoded["photo_info"]}
    )
    pixels, profile = read(answer["result"][0, 0])
    assert (profile, pixels.dtype) == (ADOBE, np.uint16)
    to_lab = {"colorspace": "rgb", "outcolorspace": "rgb"}
    back = cms_transform(pixels / 65535, ADOBE, cms_profile("srgb"), **to_lab)
    difference = sk.deltaE_ciede2000(sk.rgb2lab(back.clip(0, 1)), sk.rgb2lab(photo))
    assert difference.mean() < 0.2
    assert min(len(np.unique(pixels[..., i])) for i in range(3)) > 256


@pytest.mark.parametrize("bits", [8, 16])
def test_cielab_tiff(steps, text, bits):
    photo = np.ascontiguousarray(data.astronaut()[100:196, 100:228])
    lab = sk.rgb2lab(photo)  # with the white of D65, which TIFF's D50 is adapted to
    top, unit = (255 / 100, 1) if bits == 8 else (65535 / 100, 256)
    stored = np.empty(lab.shape, f"u{bits // 8}")
    stored[..., 0] = np.rint(lab[..., 0] * top)
    signed = np.rint(lab[..., 1:] * unit).astype(f"i{bits // 8}")
    stored[..., 1:] = signed.view(stored.dtype)
    file = tiff(stored, photometric="cielab")
    decode, _ = steps
    (decoded,) = decode.run({"photo": text([file])})
    found = (decoded["photo_l"][0, 0, :96, :128] + 1) * 50
    inside = (photo.min(axis=-1) > 20) & (photo.max(axis=-1) < 235)
    assert np.abs(found - lab[..., 0])[inside].mean() < (0.6 if bits == 8 else 0.5)
    report = json.loads(decoded["photo_info"][0, 0])
    assert not any("bits a sample" in warning for warning in report["warnings"])


@pytest.mark.parametrize("bits", [8, 16])
def test_cmyk_tiff_without_a_profile(steps, text, bits):
    ink = np.zeros((64, 96, 4))
    ink[..., 3] = np.linspace(0, 1, 96)
    top = 2**bits - 1
    file = tiff(np.rint(ink * top).astype(f"u{bits // 8}"), photometric="separated")
    decode, _ = steps
    (decoded,) = decode.run({"photo": text([file]), "options": text([b'{"force_photo": true}'])})
    found = decoded["photo_l"][0, 0, 0, :96]
    assert found[0] == pytest.approx(1, abs=1e-3)
    assert found[95] == pytest.approx(-1, abs=1e-3)
    assert (np.diff(found) <= 0).all()
    warnings = json.loads(decoded["photo_info"][0, 0])["warnings"]
    assert "CMYK without a usable colour profile: tones are approximate" in warnings


def test_no_page_is_lost_unsaid(steps, text):
    pages = np.stack([data.camera()[:64, :96], data.camera()[64:128, :96]])
    file = tiff(pages, photometric="minisblack")
    message, _ = through(steps, text, file)
    assert message.startswith("[decode_photo] unsupported_photo: the file holds 2 photos")
    assert '{"pages": "first"}' in message
    result, report = through(steps, text, file, pages="first", color=False)
    pixels, _ = read(result)
    assert np.abs(pixels.astype(int) - pages[0]).max() <= 1
    assert report["warnings"] == ["the file holds 2 pages: page 1 was taken"]


@pytest.mark.parametrize(("asked", "dtype"), [(None, "u2"), (8, "u1"), (16, "u2")])
def test_depth_is_chosen(steps, text, asked, dtype):
    ramp = np.arange(0, 65536, 7, dtype=np.uint16)[: 96 * 96].reshape(96, 96)
    result, _ = through(steps, text, tiff(ramp), color=False, force_photo=True, depth=asked)
    assert read(result)[0].dtype == dtype
    shallow = (ramp >> 8).astype(np.uint8)
    result, _ = through(steps, text, tiff(shallow), color=False, force_photo=True, depth=asked)
    assert read(result)[0].dtype == ("u2" if asked == 16 else "u1")
    _, report = through(
        steps, text, tiff(shallow), color=False, force_photo=True, depth=asked, format="jpeg"
    )
    said = "jpeg holds pictures at 8 bits here, 16 were asked for"
    assert (said in report["warnings"]) == (asked == 16)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"depth": 12}, {"depth": True}, {"profile": "adobe"}, {"pages": 1}, {"pages": []}),
        *({"keep_color": 1}, {"keep_color": None}, {"strength": 1.1}, {"strength": True}),
        *({"strength": math.nan}, {"color_strength": "1"}, {"color_strength": -0.1}),
    ],
)
def test_wrong_options_are_named(steps, text, wrong):
    message, _ = through(steps, text, tiff(data.camera()[:64, :96]), **wrong)
    (name,) = wrong
    assert message.startswith(f"[decode_photo] bad_options: {name} must be ")


def changed(steps, text, file, change, **options):
    """As `through`, by networks that change the luminance [1, 1, H, W]."""
    decode, encode = steps
    sent = {"photo": text([file]), "options": text([json.dumps(options).encode()])}
    (decoded,) = decode.run(sent)
    light = change(decoded["photo_l"])
    ab = np.full((1, 2, *light.shape[2:]), 0.5, np.float32)
    (answer,) = encode.run({"restored_l": light, "ab": ab, "photo_info": decoded["photo_info"]})
    return answer["result"][0, 0], json.loads(answer["report"][0, 0])


def inverted(light):
    return -light


@pytest.mark.parametrize("icc", [b"", ADOBE], ids=["srgb", "adobe"])
def test_a_colour_photo_keeps_its_colours(steps, text, icc):
    rng = np.random.default_rng(0)
    smooth = np.array(Image.fromarray(data.astronaut()).resize((400, 400)), np.float64)
    noisy = smooth / 255 * 55000 + 4000 + rng.integers(0, 300, smooth.shape)
    photo = noisy.astype(np.uint16)
    result, report = through(steps, text, tiff(photo, icc), keep_color=True, force_photo=True)
    pixels, _ = read(result)
    assert (report["kept_colors"], report["colorized"]) == (True, False)
    assert report["digital_source_type"].endswith("/algorithmicallyEnhanced")
    assert report["warnings"] == []
    to_srgb = {"colorspace": "rgb", "outcolorspace": "rgb"}
    before, after = (
        cms_transform(one / 65535, icc, cms_profile("srgb"), **to_srgb) if icc else one / 65535
        for one in (photo, pixels)
    )
    apart = sk.deltaE_ciede2000(sk.rgb2lab(before.clip(0, 1)), sk.rgb2lab(after.clip(0, 1)))
    assert apart.mean() < 0.1
    assert min(len(np.unique(pixels[..., i])) for i in range(3)) > 4096


def test_kept_colours_follow_the_restored_luminance(steps, text):
    photo = np.ascontiguousarray(data.astronaut()[100:196, 100:228])
    lighter = np.float32(0.2)
    result, report = changed(
        steps, text, tiff(photo), lambda light: light * (1 - lighter) + lighter, keep_color=True
    )
    before, after = sk.rgb2lab(photo), sk.rgb2lab(read(result)[0])
    assert np.abs(after[..., 0] - (before[..., 0] * 0.8 + 20)).max() < 0.3
    middle = (photo.min(axis=-1) > 60) & (photo.max(axis=-1) < 200)
    assert np.abs(after - before)[middle][:, 1:].mean() < 0.5
    assert report["kept_colors"] is True


def test_a_grey_photo_has_no_colours_to_keep(steps, text):
    grey = np.ascontiguousarray(data.camera()[100:196, 100:228])
    _, report = through(steps, text, tiff(grey), keep_color=True)
    assert report["kept_colors"] is False
    message, _ = through(steps, text, tiff(grey), keep_color=True, color=False)
    assert message.startswith("[decode_photo] bad_options: keep_color asks for colours")


@pytest.mark.parametrize("strength", [0.0, 0.25, 1.0])
def test_strength_of_the_restoration(steps, text, strength):
    grey = np.ascontiguousarray(data.camera()[100:196, 100:228])
    result, _ = changed(steps, text, tiff(grey), inverted, strength=strength, color=False)
    light = sk.rgb2lab(np.repeat(grey[..., None], 3, axis=-1))[..., 0]
    found = sk.rgb2lab(np.repeat(read(result)[0][..., None], 3, axis=-1))[..., 0]
    expected = light + strength * ((100 - light) - light)
    assert np.abs(found - expected).max() < 0.3


def test_strength_of_the_colours(steps, text):
    grey = np.full((96, 128), 128, np.uint8)
    grey[::3] = 120
    reference = io.BytesIO()
    Image.fromarray(data.coffee()[:64, :64]).save(reference, "PNG")
    decode, encode = steps
    found = {}
    for strength in (1.0, 0.5, 0.0):
        options = json.dumps({"color_strength": strength, "force_photo": True}).encode()
        (decoded,) = decode.run(
            {
                "photo": text([tiff(grey)]),
                "reference": text([reference.getvalue()]),
                "options": text([options]),
            }
        )
        ab = np.full((1, 2, *decoded["photo_l"].shape[2:]), 0.2, np.float32)
        (answer,) = encode.run(
            {"restored_l": decoded["photo_l"], "ab": ab, "photo_info": decoded["photo_info"]}
        )
        lab = sk.rgb2lab(read(answer["result"][0, 0])[0])
        found[strength] = np.hypot(lab[..., 1], lab[..., 2]).mean()
    assert found[1.0] == pytest.approx(22 * 2**0.5, abs=0.7)
    assert found[0.5] == pytest.approx(11 * 2**0.5, abs=0.7)
    assert found[0.0] < 0.2


@pytest.mark.parametrize("kind", ["grey", "gamma", "grey16", "adobe", "colour8"])
def test_nothing_to_do_leaves_every_sample(steps, text, kind):
    grey = np.ascontiguousarray(data.camera()[100:196, 100:228])
    colour = np.ascontiguousarray(data.astronaut()[100:196, 100:228])
    pixels, icc = {
        "grey": (grey, b""),
        "gamma": (grey, GAMMA),
        "grey16": (grey * np.uint16(257) - np.uint16(3), GAMMA),
        "adobe": (colour * np.uint16(255) + np.uint16(77), ADOBE),
        "colour8": (colour, ADOBE),
    }[kind]
    options = {"keep_color": True} if pixels.ndim == 3 else {"color": False}
    result, report = changed(steps, text, tiff(pixels, icc), inverted, strength=0, **options)
    found, profile = read(result)
    assert np.array_equal(found, pixels)
    assert found.dtype == pixels.dtype
    assert (profile or b"") == icc or (icc == b"" and pixels.ndim == 3)
    # It is said, and the picture not marked as changed.
    assert report["warnings"] == ["left as it is: strength is 0 and no colours are added"]
    assert report["digital_source_type"] is None
