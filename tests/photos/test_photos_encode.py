import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from pikfix.photos import PhotoError, decode_photo, encode_photo

FORMATS = ("jpeg", "png", "tiff", "webp")


@pytest.fixture(scope="module")
def exif():
    block = Image.Exif()
    block[0x010E], block[0x0112] = "Grandmother, 1931", 1
    block[0x8769] = {0x9003: "1931:05:01 12:00:00"}
    block[0x8825] = {1: "N", 2: (46.0, 30.0, 0.0)}
    return block.tobytes()


def opened(file):
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_result_keeps_size_exif_and_resolution(rgb, exif, name, grey):
    pixels = rgb[..., 1] if grey else rgb
    file, warnings = encode_photo(pixels, name, exif=exif, dpi=(300.0, 200.0))
    assert warnings == []
    image = opened(file)
    assert image.format == name.upper()
    assert image.size == (rgb.shape[1], rgb.shape[0])
    assert image.mode == ("L" if grey and name != "webp" else "RGB")
    kept = image.getexif()
    assert kept[0x010E] == "Grandmother, 1931"
    assert kept.get(0x0112, 1) == 1
    assert kept.get_ifd(0x8769)[0x9003] == "1931:05:01 12:00:00"
    assert kept.get_ifd(0x8825)[2] == (46.0, 30.0, 0.0)
    photo = decode_photo(file)
    assert photo.dpi == pytest.approx((300, 200), rel=1e-3)
    assert photo.warnings == ()
    if name in {"png", "tiff"}:
        np.testing.assert_array_equal(photo.pixels, pixels)


@pytest.mark.parametrize("name", FORMATS)
def test_grey_has_no_tint(name):
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(16, axis=0)
    file, _ = encode_photo(ramp, name)
    shown = np.asarray(opened(file).convert("RGB")).astype(int)
    # WebP stores colour differences: its own conversion is a level off here and there.
    assert np.ptp(shown, axis=-1).max() <= (1 if name == "webp" else 0)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (33, 1)])
@pytest.mark.parametrize("name", FORMATS)
def test_tiny_pictures(name, size):
    file, _ = encode_photo(np.full((*size, 3), 100, np.uint8), name)
    assert opened(file).size == (size[1], size[0])
    assert np.abs(decode_photo(file).pixels.astype(int) - 100).max() <= 2


@pytest.mark.parametrize("shape", [(37, 50), (37, 50, 3), (1, 1, 3), (900, 700, 3)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_tiff_is_read_alike_by_pillow_and_tifffile(shape, kind, exif):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(kind).max + 1, shape).astype(kind)
    file, _ = encode_photo(pixels, "tiff", exif=exif, dpi=(600, 600))
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(file)), pixels)
    if kind == np.uint8 or len(shape) == 2:
        np.testing.assert_array_equal(np.asarray(opened(file)), pixels)
    photo = decode_photo(file)
    scale = 65535.0 if kind == np.uint16 else 1.0
    np.testing.assert_array_equal(np.rint(photo.pixels * scale), pixels)
    assert photo.bit_depth == 8 * pixels.itemsize


def test_deep_grey_png(exif):
    pixels = np.random.default_rng(0).integers(0, 65536, (37, 50), dtype=np.uint16)
    file, _ = encode_photo(pixels, "png", exif=exif)
    np.testing.assert_array_equal(np.asarray(opened(file)), pixels)


@pytest.mark.parametrize(
    ("name", "shape"), [("png", (4, 4, 3)), ("jpeg", (4, 4)), ("webp", (4, 4))]
)
def test_deep_pixels_need_a_format_that_holds_them(name, shape):
    with pytest.raises(PhotoError, match="use format tiff") as caught:
        encode_photo(np.zeros(shape, np.uint16), name)
    assert caught.value.code == "bad_options"


def test_jpeg_chroma_is_whole_from_quality_90_on(rgb):
    from PIL import JpegImagePlugin

    sampling = {
        quality: JpegImagePlugin.get_sampling(opened(encode_photo(rgb, "jpeg", quality=quality)[0]))
        for quality in (89, 90, 100)
    }
    assert sampling == {89: 2, 90: 0, 100: 0}  # Pillow: 0 is 4:4:4, 2 is 4:2:0


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_quality_sets_the_size(rgb, name):
    sizes = [len(encode_photo(rgb, name, quality=quality)[0]) for quality in (10, 50, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 3


@pytest.mark.parametrize(("name", "size"), [("webp", (1, 16384)), ("jpeg", (65536, 1))])
def test_formats_have_a_longest_side(name, size):
    with pytest.raises(PhotoError, match="use format png or tiff") as caught:
        encode_photo(np.zeros(size, np.uint8), name)
    assert caught.value.code == "bad_options"


def test_unknown_format():
    with pytest.raises(PhotoError, match="'bmp' is unknown: use jpeg, png, tiff, webp"):
        encode_photo(np.zeros((2, 2), np.uint8), "bmp")


def test_exif_too_long_for_jpeg_is_dropped_with_a_warning(rgb):
    block = Image.Exif()
    block[0x010E] = "x" * 70_000
    file, warnings = encode_photo(rgb, "jpeg", exif=block.tobytes())
    assert warnings == ["the EXIF block is too long for JPEG and was dropped"]
    assert len(opened(file).getexif()) == 0
    file, warnings = encode_photo(rgb, "png", exif=block.tobytes())
    assert warnings == []
    assert len(opened(file).getexif()[0x010E]) == 70_000


def test_color_says_that_it_is_srgb(rgb):
    for name in FORMATS:
        icc = opened(encode_photo(rgb, name)[0]).info["icc_profile"]
        assert "sRGB".encode("utf-16-be") in icc
        photo = decode_photo(encode_photo(rgb, name)[0])
        assert photo.warnings == ()
