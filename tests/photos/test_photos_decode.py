"""Files that must be read right: every format, mode, depth, orientation and profile."""

import io
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from skimage import data

from pikfix.photos import decode_photo, profiles

LOSSLESS = {"PNG": {}, "TIFF": {}, "BMP": {}, "WEBP": {"lossless": True}, "PPM": {}, "TGA": {}}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_return_their_pixels(rgb, save, name):
    photo = decode_photo(save(rgb, name, **LOSSLESS[name]))
    np.testing.assert_array_equal(photo.pixels, rgb)
    assert (photo.height, photo.width) == rgb.shape[:2]
    assert (photo.format, photo.mode, photo.bit_depth) == (name.lower(), "RGB", 8)
    assert photo.warnings == ()


def test_jpeg_returns_pillows_pixels(rgb, save):
    file = save(rgb, "JPEG", quality=90)
    photo = decode_photo(file)
    np.testing.assert_array_equal(photo.pixels, np.asarray(Image.open(io.BytesIO(file))))
    assert photo.format == "jpeg"


@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP", "GIF"])
def test_grey_stays_one_plane_or_equal_channels(rgb, save, name):
    grey = rgb[..., 1]
    pixels = decode_photo(save(grey, name)).pixels
    expected = grey if pixels.ndim == 2 else np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("name", ["PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_pixel(save, name, mode):
    pixel = Image.new(mode, (1, 1), 137 if mode == "L" else (137, 137, 137))
    photo = decode_photo(save(pixel, name, **({"lossless": True} if name == "WEBP" else {})))
    assert photo.pixels.shape[:2] == (1, 1)
    assert np.abs(photo.pixels.astype(int) - 137).max() <= (1 if name == "JPEG" else 0)


def test_one_bit(save):
    bits = np.random.default_rng(0).integers(0, 2, (20, 30)).astype(bool)
    for name in ("PNG", "TIFF"):
        photo = decode_photo(save(Image.fromarray(bits), name))
        np.testing.assert_array_equal(photo.pixels, bits * 255)
        assert photo.bit_depth == 1


def test_palette(rgb, save):
    image = Image.fromarray(rgb).quantize(32)
    photo = decode_photo(save(image, "PNG"))
    np.testing.assert_array_equal(photo.pixels, np.asarray(image.convert("RGB")))
    assert photo.mode == "P"
    assert photo.warnings == ()


def test_palette_with_a_transparent_entry(rgb, save):
    image = Image.fromarray(rgb).quantize(32)
    indices = np.asarray(image)
    photo = decode_photo(save(image, "PNG", transparency=int(indices[0, 0])))
    expected = np.where(
        (indices == indices[0, 0])[..., None], 255, np.asarray(image.convert("RGB"))
    )
    np.testing.assert_array_equal(photo.pixels, expected)
    assert photo.warnings == ("transparent parts were placed on white",)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_on_white(rgb, save, mode, name):
    alpha = np.tile(np.linspace(0, 255, rgb.shape[1]).astype(np.uint8), (rgb.shape[0], 1))
    colors = rgb if mode == "RGBA" else rgb[..., :1]
    image = Image.fromarray(np.concatenate([colors, alpha[..., None]], axis=-1))
    settings = {"lossless": True, "exact": True} if name == "WEBP" else {}
    photo = decode_photo(save(image, name, **settings))
    share = alpha[..., None] / 255.0
    expected = colors * share + 255 * (1 - share)
    got = photo.pixels if photo.pixels.ndim == 3 else photo.pixels[..., None]
    assert np.abs(got - expected).max() <= 1
    assert photo.warnings == ("transparent parts were placed on white",)


def test_opaque_alpha_needs_no_warning(rgb, save):
    photo = decode_photo(save(Image.fromarray(rgb).convert("RGBA"), "PNG"))
    np.testing.assert_array_equal(photo.pixels, rgb)
    assert photo.warnings == ()


@pytest.mark.parametrize("transparency", [0, 77])
@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_with_a_transparent_level(save, mode, transparency):
    grey = np.full((8, 8), 200, np.uint8)
    grey[:4] = transparency if mode == "L" else 0
    image = Image.fromarray(grey).convert(mode, dither=Image.Dither.NONE)
    stored = np.asarray(image.convert("L"))
    photo = decode_photo(save(image, "PNG", transparency=transparency if mode == "L" else 0))
    np.testing.assert_array_equal(photo.pixels[4:], stored[4:])
    np.testing.assert_array_equal(photo.pixels[:4], 255)


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_cmyk_without_profile(save, name):
    cmyk = np.zeros((32, 32, 4), np.uint8)
    cmyk[:16], cmyk[16:] = (200, 40, 10, 20), (0, 0, 0, 100)
    settings = {"quality": 100} if name == "JPEG" else {}
    photo = decode_photo(save(Image.fromarray(cmyk, "CMYK"), name, **settings))
    ink = cmyk / 255.0
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert np.abs(photo.pixels - expected).max() <= 4
    assert photo.mode == "CMYK"
    assert photo.warnings == ("CMYK without a usable colour profile: tones are approximate",)


def test_lab_tiff(save):
    lab = np.zeros((4, 4, 3), np.uint8)
    lab[..., 0] = 128  # L = 50.2, a = b = 0: mid grey
    photo = decode_photo(save(Image.fromarray(lab, "LAB"), "TIFF"))
    assert np.abs(photo.pixels.astype(int) - 119).max() <= 2


def test_animation_gives_its_first_frame(save):
    frames = [np.full((10, 12), level, np.uint8) for level in (60, 120, 180)]
    rest = [Image.fromarray(frame) for frame in frames[1:]]
    for name in ("GIF", "WEBP", "PNG"):
        settings = {"lossless": True} if name == "WEBP" else {}
        file = save(frames[0], name, save_all=True, append_images=rest, **settings)
        photo = decode_photo(file)
        np.testing.assert_array_equal(photo.pixels[..., 0] if name == "WEBP" else photo.pixels, 60)
        assert photo.warnings == ("the file holds several pictures: the first was taken",)


def test_pages_of_tiff_give_the_first(save):
    pages = [Image.new("L", (6, 5), level) for level in (10, 20)]
    photo = decode_photo(save(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert (photo.pixels == 10).all()
    assert photo.warnings == ("the file holds 2 pages: page 1 was taken",)


def test_pictures_of_a_phone_are_jpeg(rgb, save):
    image = Image.fromarray(rgb)
    photo = decode_photo(save(image, "MPO", save_all=True, append_images=[image]))
    assert photo.format == "jpeg"
    assert photo.pixels.shape == rgb.shape


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_exif_orientation_is_applied_once(rgb, save, name, orientation):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = orientation, "a portrait"
    exif[0x8769] = {0xA002: rgb.shape[1], 0xA003: rgb.shape[0]}
    file = save(rgb, name, exif=exif.tobytes(), **({"lossless": True} if name == "WEBP" else {}))
    photo = decode_photo(file)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))))
    np.testing.assert_array_equal(photo.pixels, expected)
    if orientation not in {1, 4, 5}:
        assert photo.pixels[0, 0].tolist() != rgb[0, 0].tolist() or name == "JPEG"
    kept = Image.Exif()
    kept.load(photo.exif)
    assert kept[0x0112] == 1
    assert kept[0x010E] == "a portrait"
    details = kept.get_ifd(0x8769)
    assert (details[0xA003], details[0xA002]) == photo.pixels.shape[:2]


def test_every_orientation_is_a_different_view(rgb, save):
    seen = set()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        seen.add(decode_photo(save(rgb, "PNG", exif=exif)).pixels.tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize("value", [0, 9, 77])
def test_senseless_orientation_is_ignored(rgb, save, value):
    exif = Image.Exif()
    exif[0x0112] = value
    np.testing.assert_array_equal(decode_photo(save(rgb, "PNG", exif=exif)).pixels, rgb)


def test_exif_of_tiff_leaves_the_storage_tags_out(rgb, save):
    photo = decode_photo(save(rgb, "TIFF", description="a farm", dpi=(600, 600)))
    kept = Image.Exif()
    kept.load(photo.exif)
    assert kept[270] == "a farm"
    assert not {256, 257, 258, 259, 262, 273, 277, 278, 279} & set(kept)
    assert photo.dpi == (600, 600)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "BMP"])
def test_resolution(rgb, save, name):
    dpi = decode_photo(save(rgb, name, dpi=(300, 200))).dpi
    assert dpi == pytest.approx((300, 200), rel=1e-3)


def test_no_metadata(rgb, save):
    photo = decode_photo(save(rgb, "PNG"))
    assert (photo.exif, photo.dpi) == (b"", None)


# Depth ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep():
    return np.random.default_rng(3).integers(0, 65536, (40, 30), dtype=np.uint16)


@pytest.fixture(scope="module")
def deep_rgb():
    return np.random.default_rng(4).integers(0, 65536, (40, 30, 3), dtype=np.uint16)


def written(pixels, **settings):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **settings)
    return file.getvalue()


def assert_deep(photo, expected):
    assert photo.pixels.dtype == np.float32
    assert photo.bit_depth == 16
    assert photo.deep
    np.testing.assert_array_equal(np.rint(photo.pixels * 65535.0), expected)
    assert photo.warnings == ()


@pytest.mark.parametrize("name", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_every_level(deep, save, name):
    assert_deep(decode_photo(save(deep, name)), deep)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["minisblack", "miniswhite"])
def test_16_bit_grey_tiff_of_either_order_and_sense(deep, order, kind):
    file = written(deep, byteorder=order, photometric=kind)
    assert_deep(decode_photo(file), deep if kind == "minisblack" else 65535 - deep)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bit_color_tiff(deep_rgb, order, compression, planar):
    stored = deep_rgb if planar == "contig" else deep_rgb.transpose(2, 0, 1)
    file = written(
        stored, photometric="rgb", byteorder=order, compression=compression, planarconfig=planar
    )
    assert_deep(decode_photo(file), deep_rgb)


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_16_bit_color_tiff_is_turned_upright(deep_rgb, orientation):
    file = written(deep_rgb, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    turns = {3: 2, 6: 3, 8: 1}[orientation]
    assert_deep(decode_photo(file), np.rot90(deep_rgb, turns))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_16_bit_grey_tiff_is_turned_upright(deep, orientation):
    file = written(deep, photometric="minisblack", extratags=[(274, "H", 1, orientation, True)])
    turns = {3: 2, 6: 3, 8: 1}[orientation]
    assert_deep(decode_photo(file), np.rot90(deep, turns))


def test_16_bit_color_tiff_with_alpha(deep_rgb, deep):
    file = written(
        np.concatenate([deep_rgb, deep[..., None]], axis=-1),
        photometric="rgb",
        extrasamples=["unassalpha"],
    )
    photo = decode_photo(file)
    alpha = deep[..., None] / 65535.0
    expected = deep_rgb / 65535.0 * alpha + 1 - alpha
    np.testing.assert_allclose(photo.pixels, expected, atol=1e-6)
    assert photo.warnings == ("transparent parts were placed on white",)


def test_16_bit_color_png_is_read_at_8_bits_and_says_so(deep_rgb, png, monkeypatch):
    assert_deep(decode_photo(png(deep_rgb)), deep_rgb)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    photo = decode_photo(png(deep_rgb))
    assert np.abs(photo.pixels - deep_rgb / 257.0).max() <= 1
    assert photo.warnings == ("the file holds 16 bits a sample: 8 were read",)
    assert (photo.bit_depth, photo.deep) == (16, False)


def test_16_bit_color_tiff_without_a_codec_is_read_at_8_bits(deep_rgb, monkeypatch):
    def no_codec(*args, **kwargs):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", no_codec)
    photo = decode_photo(written(deep_rgb, photometric="rgb"))
    assert np.abs(photo.pixels - deep_rgb / 257.0).max() <= 1
    assert photo.warnings == ("the file holds 16 bits a sample: 8 were read",)


def test_16_bit_color_tiff_without_tifffile_is_read_at_8_bits(deep_rgb, monkeypatch):
    file = written(deep_rgb, photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    photo = decode_photo(file)
    assert np.abs(photo.pixels - deep_rgb / 257.0).max() <= 1
    assert photo.warnings == ("the file holds 16 bits a sample: 8 were read",)


def test_floating_point_tiff():
    grey = np.linspace(0, 1, 200, dtype=np.float32).reshape(10, 20)
    np.testing.assert_array_equal(decode_photo(written(grey)).pixels, grey)


# Profiles ---------------------------------------------------------------------------------


def srgb_level(light):
    return np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)


def test_srgb_profile_changes_nothing(rgb, save):
    from PIL import ImageCms

    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = decode_photo(save(rgb, "PNG", icc_profile=icc))
    np.testing.assert_array_equal(photo.pixels, rgb)
    assert photo.warnings == ()


@pytest.mark.parametrize("gamma", [1.0, 1.8])
@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_rgb_profile_is_converted(rgb, save, profile, gamma, name):
    photo = decode_photo(save(rgb, name, icc_profile=profile("RGB ", gamma)))
    expected = 255 * srgb_level((rgb / 255.0) ** gamma)
    assert np.abs(photo.pixels - expected).max() <= 3
    assert np.abs(photo.pixels - expected).mean() < 0.6
    assert photo.warnings == ()


def test_grey_profile_is_converted(rgb, save, profile):
    grey = rgb[..., 1]
    photo = decode_photo(save(grey, "PNG", icc_profile=profile("GRAY", 1.8)))
    assert photo.pixels.ndim == 2
    error = np.abs(photo.pixels - 255 * srgb_level((grey / 255.0) ** 1.8))
    assert error.max() <= 3
    assert error.mean() < 0.6
    assert photo.warnings == ()


def test_profile_of_deep_grey_keeps_its_gradations(save, profile):
    ramp = np.arange(0, 65536, 13, dtype=np.uint16)[None].repeat(2, axis=0)
    photo = decode_photo(save(ramp, "PNG", icc_profile=profile("GRAY", 1.8)))
    expected = srgb_level((ramp / 65535.0) ** 1.8)
    # Above the deepest shadows, which LittleCMS itself places a level or two off.
    assert np.abs(photo.pixels - expected)[:, ramp[0] > 6000].max() < 0.6 / 255
    assert len(np.unique(photo.pixels)) > 4000
    assert (np.diff(photo.pixels[0]) >= 0).all()


def test_profile_of_deep_color_keeps_its_depth(deep_rgb, profile):
    tags = [(34675, "B", None, profile("RGB ", 1.8), True)]
    photo = decode_photo(written(deep_rgb, photometric="rgb", extratags=tags))
    expected = srgb_level((deep_rgb / 65535.0) ** 1.8)
    # LittleCMS rounds the primaries as the profile has them, to 1/65536.
    assert np.abs(photo.pixels - expected)[deep_rgb.min(axis=-1) > 3000].max() < 0.5 / 255
    assert len(np.unique(photo.pixels[..., 0])) > 1000
    assert photo.warnings == ()


def test_without_its_package_a_profile_of_deep_color_costs_depth(deep_rgb, profile, monkeypatch):
    monkeypatch.setattr(profiles, "_cms_transform", lambda: None)
    tags = [(34675, "B", None, profile("RGB ", 1.9), True)]
    photo = decode_photo(written(deep_rgb, photometric="rgb", extratags=tags))
    expected = srgb_level((deep_rgb / 65535.0) ** 1.9)
    assert np.abs(photo.pixels - expected).max() < 4 / 255
    assert photo.warnings == ("the colour profile was applied at 8 bits a sample",)


@pytest.mark.parametrize("kind", ["broken", "of another space"])
def test_profile_that_cannot_be_used_is_named(rgb, save, profile, kind):
    icc = b"no profile" if kind == "broken" else profile("GRAY", 1.8)
    photo = decode_photo(save(rgb, "PNG", icc_profile=icc))
    np.testing.assert_array_equal(photo.pixels, rgb)
    assert len(photo.warnings) == 1
    assert photo.warnings[0].startswith("the colour profile was not used")


def test_shrinking_a_jpeg_stays_above_the_side_asked_for(save):
    pixels = data.astronaut()
    file = save(pixels, "JPEG", quality=95)
    photo = decode_photo(file, shrink_to=100)
    assert photo.pixels.shape == (128, 128, 3)
    small = np.asarray(Image.fromarray(pixels).resize((128, 128), Image.Resampling.BOX))
    assert np.abs(photo.pixels.astype(int) - small).mean() < 3
    assert decode_photo(file).pixels.shape == (512, 512, 3)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_deep_colour_of_jpeg_2000_and_avif(deep_smooth, bits):
    import imagecodecs

    stored = deep_smooth >> (16 - bits)
    unit = stored / (2**bits - 1)
    files = [imagecodecs.jpeg2k_encode(stored, level=0, codecformat="jp2", bitspersample=bits)]
    if bits < 16:
        files.append(imagecodecs.avif_encode(stored, level=95, bitspersample=bits))
    for file, bound in zip(files, (1e-6, 0.02), strict=False):
        photo = decode_photo(file)
        assert (photo.bit_depth, photo.deep, photo.warnings) == (bits, True, ())
        assert np.abs(photo.pixels - unit).max() < bound
        assert len(np.unique(photo.pixels[..., 1])) > 256


@pytest.fixture
def deep_smooth():
    rows, columns = np.mgrid[0:96, 0:128]
    planes = (rows * 600 + columns, columns * 480 + rows * 3, (rows + columns) * 250)
    return np.stack(planes, axis=-1).astype(np.uint16) + 3000
