"""Files that cannot be read: one PhotoError, with a code and one line that says what to do."""

import io
import tracemalloc

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from pikfix.photos import Photo, PhotoError, decode_photo

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")


def refused(data, code="bad_photo", **limits):
    with pytest.raises(PhotoError) as caught:
        decode_photo(data, **limits)
    error = caught.value
    assert error.code == code
    assert str(error) == error.message
    assert "\n" not in error.message
    assert ": " in error.message, "what is wrong, then what to do"
    return error.message


def test_empty_file():
    assert refused(b"") == "the file is empty: send the bytes of a picture file"


@pytest.mark.parametrize("text", [b"hello", b"Dear editor,\n" * 500, b"\0" * 4096])
def test_text_renamed_to_jpg(text):
    assert refused(text).startswith("not a picture")


def test_formats_that_run_programs_are_no_photos(rgb, save):
    message = refused(save(rgb, "EPS"), "unsupported_photo")
    assert message == "a PostScript (EPS) drawing is not supported: save it as PNG or TIFF"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_file(rgb, save, name, share):
    noise = np.random.default_rng(0).integers(0, 256, rgb.shape, dtype=np.uint8)
    file = save(noise, name)
    message = refused(file[: int(len(file) * share)])
    assert "truncated" in message or "damaged" in message


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's name for a cut TIFF directory
@pytest.mark.parametrize("name", FORMATS)
def test_only_the_first_bytes(rgb, save, name):
    refused(save(rgb, name)[:20])


def test_truncated_deep_tiff():
    file = io.BytesIO()
    tifffile.imwrite(file, np.ones((50, 50, 3), np.uint16), photometric="rgb")
    refused(file.getvalue()[: len(file.getvalue()) // 2])


@pytest.fixture
def no_decoding(monkeypatch):
    def load(self):
        raise AssertionError("decoded a picture that its header should have ruled out")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_001, 20_000, 60_000])
@pytest.mark.usefixtures("no_decoding")
def test_header_declares_more_than_100_megapixels(png, side):
    file = png(np.zeros((4, 4, 3), np.uint8), size=(side, side))
    tracemalloc.start()
    message = refused(file, code="photo_too_large")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "limit is 100 megapixels" in message
    assert peak < 5_000_000


@pytest.mark.usefixtures("no_decoding")
def test_header_of_a_deep_tiff_is_checked_too():
    file = io.BytesIO()
    tifffile.imwrite(file, np.ones((50, 50, 3), np.uint16), photometric="rgb")
    assert "50 x 50 pixels" in refused(file.getvalue(), "photo_too_large", max_pixels=2499)


def test_the_limit_is_the_callers(rgb, save):
    file = save(rgb, "PNG")
    pixels = rgb.shape[0] * rgb.shape[1]
    refused(file, code="photo_too_large", max_pixels=pixels - 1)
    assert decode_photo(file, max_pixels=pixels).pixels.shape == rgb.shape


@pytest.mark.usefixtures("no_decoding")
def test_a_side_may_be_limited_too(save):
    file = save(np.zeros((3, 200), np.uint8), "PNG")
    message = refused(file, "photo_too_large", max_side=199)
    assert "200 x 3 pixels" in message and "199 a side" in message


def test_a_side_at_its_limit_passes(save):
    file = save(np.zeros((3, 200), np.uint8), "PNG")
    assert decode_photo(file, max_side=200).pixels.shape == (3, 200)


def test_the_limit_may_exceed_pillows(save, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    file = save(np.zeros((30, 30), np.uint8), "PNG")
    assert decode_photo(file, max_pixels=1000).pixels.shape == (30, 30)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint32])
def test_samples_without_a_known_range(kind):
    file = io.BytesIO()
    tifffile.imwrite(file, np.arange(100, dtype=kind).reshape(10, 10))
    message = refused(file.getvalue(), "unsupported_photo")
    assert "8 or 16 bits" in message


@pytest.mark.parametrize("value", [-0.5, 255.0, np.nan])
def test_floating_point_samples_without_a_known_range(value):
    pixels = np.full((10, 10), 0.5, np.float32)
    pixels[3, 3] = value
    file = io.BytesIO()
    tifffile.imwrite(file, pixels)
    assert "outside [0, 1]" in refused(file.getvalue(), "unsupported_photo")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_photo(rgb, save):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40
    photo = decode_photo(save(rgb, "PNG", exif=exif))
    np.testing.assert_array_equal(photo.pixels, rgb)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kind=st.sampled_from(FORMATS), picks=st.data())
@pytest.mark.filterwarnings("ignore")  # Pillow warns about the damage it reads past
def test_damaged_files_are_read_or_refused(rgb, save, kind, picks):
    exif = Image.Exif()
    exif[0x0112], exif[0x8769] = 6, {0x9003: "1931:05:01 12:00:00"}
    file = bytearray(
        save(rgb[:24, :20], kind, **({} if kind in {"BMP", "GIF"} else {"exif": exif.tobytes()}))
    )
    for _ in range(picks.draw(st.integers(1, 6))):
        file[picks.draw(st.integers(0, len(file) - 1))] = picks.draw(st.integers(0, 255))
    file = file[: picks.draw(st.integers(1, len(file)))]
    try:
        photo = decode_photo(bytes(file), max_pixels=1_000_000)
    except PhotoError as error:
        assert error.code in {"bad_photo", "photo_too_large", "unsupported_photo"}
    else:
        assert isinstance(photo, Photo)
        assert photo.pixels.ndim in {2, 3}
