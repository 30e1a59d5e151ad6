import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import color as sk
from skimage import data

from pikfix.layers.sizes import WORKING_LIMIT, working_size
from pikfix.photos import Photo, PhotoError, steps
from pikfix.protocol.options import Options
from pikfix.protocol.report import ReferenceUse


def photo_of(pixels, **settings):
    return Photo(
        pixels, settings.pop("format", "jpeg"), "RGB", settings.pop("bit_depth", 8), **settings
    )


def test_wrong_options_of_a_request():
    with pytest.raises(PhotoError, match="quality must be a whole number") as caught:
        steps.read_options(b'{"quality": 0}')
    assert caught.value.code == "bad_options"


def test_deadline():
    steps.check_deadline(None)
    steps.check_deadline("")
    steps.check_deadline("{}")
    steps.check_deadline('{"deadline_unix_ms": 5000, "other": "x"}', now=4.999)
    steps.check_deadline('{"deadline_unix_ms": 99999999999999}')
    with pytest.raises(PhotoError, match="passed 250 ms ago") as caught:
        steps.check_deadline('{"deadline_unix_ms": 5000}', now=5.25)
    assert caught.value.code == "deadline_exceeded"
    with pytest.raises(PhotoError, match="the deadline passed"):
        steps.check_deadline('{"deadline_unix_ms": 1}')


@pytest.mark.parametrize("value", ['"soon"', "1.5", "true", "[]"])
def test_deadline_of_a_wrong_type(value):
    with pytest.raises(PhotoError, match="must be an integer") as caught:
        steps.check_deadline(f'{{"deadline_unix_ms": {value}}}')
    assert caught.value.code == "bad_options"


def test_config_values():
    parameters = {"max_pixels": {"string_value": " 500 "}, "model_version": {"string_value": "7a"}}
    assert steps.config_value(parameters, "max_pixels", 9) == 500
    assert steps.config_value(parameters, "reference_side", 256) == 256
    assert steps.config_value(parameters, "model_version", "1") == "7a"
    for wrong in ("", "0", "-3", "1e6", "many"):
        with pytest.raises(ValueError, match="parameter max_pixels"):
            steps.config_value({"max_pixels": {"string_value": wrong}}, "max_pixels", 9)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 600))
def test_reference_shape(height, width, side):
    shape = steps.reference_shape((height, width), side)
    assert all(length % 32 == 0 and 32 <= length <= side for length in shape)
    scale = min(1.0, side / max(height, width))
    for length, original in zip(shape, (height, width), strict=True):
        # Within half a multiple of the aspect, but for the least and the largest side.
        assert abs(length - original * scale) <= 16 or length in {32, side // 32 * 32}


def test_photos_are_matched_at_the_networks_limit():
    assert steps.WORKING_SIDE == WORKING_LIMIT


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 300))
def test_references_are_as_long_as_the_photo_is_where_it_is_matched(height, width, padding):
    padded = (height + padding, width + padding)
    side = steps.matching_side((height, width), padded, 512)
    assert side % 32 == 0 and 32 <= side <= 512
    # The networks' own formula, whose sides are rounded to multiples of 32.
    working = max(working_size(*padded)) * max(height, width) / max(padded)
    assert abs(side - working) <= 32
    assert steps.matching_side((height, width), padded, 256) == min(side, 256)


def test_reference_planes_are_antialiased_lab():
    # Stripes of one pixel average to their mean; picking pixels would alias.
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = (200, 40, 40)
    even = np.full((100, 60, 3), (10, 90, 200), np.uint8)
    planes = steps.reference_planes([steps.Reference(stripes), steps.Reference(even)], (64, 32))
    assert planes.shape == (2, 3, 64, 32)
    assert planes.dtype == np.float32
    for plane, mean in zip(planes, ([100, 20, 20], [10, 90, 200]), strict=True):
        lab = sk.rgb2lab(np.array([[mean]]) / 255.0)[0, 0]
        scaled = np.array([lab[0] / 50 - 1, lab[1] / 110, lab[2] / 110])
        inner = plane[:, 4:-4, 4:-4]
        assert np.abs(inner - scaled[:, None, None]).max() < 0.02


def test_references_of_any_kind_are_decoded(save):
    pixels = data.coffee()
    deep = (data.camera().astype(np.uint16)) * 257
    files = [save(pixels, "JPEG"), b"", save(deep, "PNG"), save(pixels, "GIF")]
    references = steps.decode_references(files, 10**8, 8, 64)
    assert [reference.pixels.ndim for reference in references] == [3, 2, 3]
    assert all(reference.pixels.dtype == np.uint8 for reference in references)
    assert max(references[0].pixels.shape) < 400 < max(pixels.shape), "JPEG is decoded small"
    np.testing.assert_array_equal(references[1].pixels, data.camera())
    assert steps.reference_planes(references, (32, 64)).shape == (3, 3, 32, 64)


def test_bad_references_are_named(save):
    good = save(data.camera()[:40, :40], "PNG")
    for bad, limit in ((b"text", 10**8), (good[:100], 10**8), (good, 99)):
        with pytest.raises(PhotoError, match=r"^reference \d: .*: ") as caught:
            steps.decode_references([good, bad] if limit > 99 else [bad], limit, 8, 64)
        assert caught.value.code == "bad_reference"
    with pytest.raises(PhotoError, match="3 references were sent: send at most 2") as caught:
        steps.decode_references([good] * 3, 10**8, 2, 64)
    assert caught.value.code == "bad_reference"


def test_sets_of_references_are_repeated_evenly():
    one, two = np.full((1, 3, 32, 64), 0.1), np.stack([np.full((3, 32, 64), v) for v in (0.2, 0.3)])
    joined = steps.join_references([one, two, steps.grey_reference()], (32, 64))
    assert joined.shape == (3, 2, 3, 32, 64)
    np.testing.assert_allclose(joined[:, :, 0, 0, 0], [[0.1, 0.1], [0.2, 0.3], [0, 0]], rtol=1e-6)


def test_references_without_a_common_number_are_refused():
    planes = [np.zeros((count, 3, 32, 32), np.float32) for count in (5, 7)]
    with pytest.raises(PhotoError, match="one photo per request") as caught:
        steps.join_references(planes, (32, 32))
    assert caught.value.code == "bad_reference"


def test_notes_survive_the_way_through_the_networks():
    photo = photo_of(np.zeros((3, 4), np.uint8), exif=b"Exif\0\0\xff\xfe", dpi=(300.0, 150.5))
    reference = steps.Reference(np.zeros((2, 2, 3), np.uint8), "library", "farm.jpg", 0.8, "00ff")
    notes = steps.take_notes(photo, Options(quality=80), [reference], library=True)
    assert steps.PhotoNotes.from_json(notes.to_json()) == notes
    assert notes.references == [ReferenceUse("library", "farm.jpg", 0.8, sha256="00ff")]
    assert (notes.size, notes.format, notes.quality, notes.colorize) == ((3, 4), "jpeg", 80, True)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b'{"version": 1}', b'{"version": 2}'])
def test_notes_of_another_origin_are_refused(text):
    with pytest.raises(PhotoError, match="photo_info is not what decode_photo writes") as caught:
        steps.PhotoNotes.from_json(text)
    assert caught.value.code == "bad_tensor"


@pytest.mark.parametrize(
    ("given_", "asked", "expected"),
    [
        ("jpeg", None, "jpeg"),
        ("tiff", None, "tiff"),
        ("webp", None, "webp"),
        ("gif", None, "png"),
        ("bmp", None, "png"),
        ("gif", "jpeg", "jpeg"),
    ],
)
def test_format_of_the_result(given_, asked, expected):
    photo = photo_of(np.zeros((3, 4), np.uint8), format=given_)
    notes = steps.take_notes(photo, Options(format=asked), [], library=False)
    assert notes.format == expected


def test_why_a_photo_stays_grey():
    photo = photo_of(np.zeros((3, 4), np.uint8))

    def warnings(options, library):
        notes = steps.take_notes(photo, options, [], library=library)
        assert not notes.colorize
        return notes.warnings

    expected = "left grey: no reference was sent and the server has no library"
    assert warnings(Options(), False) == [expected]
    assert "library has none that suits" in warnings(Options(), True)[0]
    assert warnings(Options(color=False), False) == [], "it was asked for"


def test_loss_of_the_photos_own_colours_is_told():
    photo = photo_of(data.astronaut(), format="png")

    def warned(photo, options):
        notes = steps.take_notes(photo, options, [], library=False)
        return any("own colours were not used" in warning for warning in notes.warnings)

    assert warned(photo, Options())
    assert not warned(photo, Options(color=False)), "it was asked for"
    assert not warned(photo_of(data.camera(), format="png"), Options())


def test_loss_of_depth_is_told():
    photo = photo_of(np.zeros((3, 4), np.float32), format="png", bit_depth=16)
    reference = steps.Reference(np.zeros((2, 2, 3), np.uint8))

    def warned(name, references):
        notes = steps.take_notes(photo, Options(format=name), references, library=False)
        return any("at 8 bits" in warning for warning in notes.warnings)

    assert warned("jpeg", [])
    assert warned("png", [reference])
    assert not warned("png", [])
    assert not warned("tiff", [reference])


def test_format_that_cannot_hold_the_photo_is_refused_before_the_networks_run():
    photo = photo_of(np.zeros((1, 20_000), np.uint8))
    with pytest.raises(PhotoError, match="webp holds at most 16383") as caught:
        steps.take_notes(photo, Options(format="webp"), [], library=False)
    assert caught.value.code == "bad_options"


def test_shrunk_references_look_like_whole_ones(save):
    pixels = data.astronaut()
    reference = steps.decode_references([save(pixels, "JPEG", quality=95)], 10**8, 8, 64)[0]
    assert reference.pixels.shape == (128, 128, 3)
    whole = steps.reference_planes([steps.Reference(pixels)], (64, 64))
    small = steps.reference_planes([reference], (64, 64))
    assert np.abs(whole - small).mean() < 0.02
    assert Image.fromarray(reference.pixels).mode == "RGB"
