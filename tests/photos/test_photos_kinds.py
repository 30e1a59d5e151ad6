"""Damaged, not supported, or in want of a package; and which page of a file is the photo."""

import io
import struct
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from pikfix.photos import PhotoError, decode_photo

END_MISSING = "the file's end is missing, behind its picture: all rows were read"


def written(pixels, **settings):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **settings)
    return file.getvalue()


def refused(data, code):
    with pytest.raises(PhotoError) as caught:
        decode_photo(data)
    assert caught.value.code == code, caught.value
    return caught.value.message


# Files that were cut off ------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("tail", [b"", b"\xff", b"\0" * 500])
def test_jpeg_without_its_end_marker_is_read(rgb, save, kind, tail):
    file = save(rgb, "JPEG", quality=90, **kind)
    photo = decode_photo(file[:-2] + tail)
    np.testing.assert_array_equal(photo.pixels, decode_photo(file).pixels)
    assert photo.warnings == (END_MISSING,)


@pytest.mark.parametrize("kind", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("cut", [3, 6, 20, 400])
def test_jpeg_without_all_of_its_picture_is_refused(rgb, save, kind, cut):
    message = refused(save(rgb, "JPEG", quality=90, **kind)[:-cut], "bad_photo")
    assert "damaged or truncated" in message


def test_refusal_says_how_far_a_jpeg_can_be_read(save):
    from skimage import data

    file = save(data.camera(), "JPEG", quality=90)
    for tail in (b"", b"\xff\xd9"):  # with an end marker libjpeg fills the rest, and says nothing
        message = refused(file[: len(file) // 2] + tail, "bad_photo")
        row = int(message.partition("up to row ")[2].split()[0])
        cut = Image.open(io.BytesIO(file[: len(file) // 2] + b"\xff\xd9"))
        whole = np.asarray(Image.open(io.BytesIO(file)))
        good = (np.asarray(cut) == whole).all(axis=1)
        assert 100 < row < 400 and good[: row - 16].all()


def test_a_flat_border_is_no_damage(save):
    pixels = np.full((64, 64), 255, np.uint8)
    pixels[:32, 8:40] = np.arange(32, dtype=np.uint8) * 7
    file = save(pixels, "JPEG", quality=90)
    assert decode_photo(file).warnings == ()


def test_progressive_jpeg_whose_last_scans_are_missing_is_named(rgb, save):
    file = save(rgb, "JPEG", progressive=True)
    last = file.rfind(b"\xff\xda")
    assert "scans" in refused(file[:last], "bad_photo")
    photo = decode_photo(file[:last] + b"\xff\xd9")
    assert photo.warnings == ("the last scans of the JPEG are missing: details are lost",)


@pytest.mark.parametrize("cut", [8, 12, 13, 16, 20])
def test_png_without_its_end_is_read(rgb, save, cut):
    photo = decode_photo(save(rgb, "PNG")[:-cut])
    np.testing.assert_array_equal(photo.pixels, rgb)
    assert photo.warnings == (END_MISSING,)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM"])
def test_what_follows_a_file_does_not_matter(rgb, save, name):
    file = save(rgb, name)
    photo = decode_photo(file + b"appended" * 20)
    np.testing.assert_array_equal(photo.pixels, decode_photo(file).pixels)


def test_refusal_says_how_far_a_png_and_a_tiff_can_be_read(rgb, save):
    noise = np.random.default_rng(0).integers(0, 256, rgb.shape, dtype=np.uint8)
    for name in ("PNG", "TIFF"):
        file = save(noise, name)
        message = refused(file[: len(file) // 2], "bad_photo")
        row = int(message.partition("up to row ")[2].split()[0])
        assert abs(row - len(rgb) // 2) <= 2


# Kinds that are not read ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\xff\x0a" + bytes(40), "a JPEG XL picture"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(60), "CR2"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3"),
        (b"\0\0\0\x18ftypisom\0\0\0\1isomavc1", "a video"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"8BPS\0\2" + bytes(40), "PSB"),
        (b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 32, 3) + bytes(40), "32 bits"),
        (b"\xff\xd8\xff\xc3\0\x0b\x08\0\x10\0\x10\1\1\x11\0" + bytes(40), "lossless"),
        (b"\xff\xd8\xff\xc1\0\x0b\x0c\0\x10\0\x10\1\1\x11\0" + bytes(40), "12 bits"),
    ],
)
def test_other_kinds_are_named_with_a_remedy(data, said):
    message = refused(data, "unsupported_photo")
    assert said in message and "not supported: " in message


def test_raw_files_in_a_tiff_are_named(rgb):
    file = written(rgb[..., 0], photometric=32803, extratags=[])
    assert "develop it" in refused(file, "unsupported_photo")


@pytest.mark.parametrize("kind", [np.uint32, np.int8])
def test_tiff_of_unknown_range_is_named(kind):
    file = written(np.arange(300, dtype=kind).reshape(10, 10, 3), photometric="rgb")
    assert "not supported" in refused(file, "unsupported_photo")


# Packages ---------------------------------------------------------------------------------


@pytest.fixture
def zstd():
    """A page of zeros that says it is compressed with Zstandard; nothing here compresses so."""
    file = bytearray(written(np.zeros((8, 8, 3), np.uint8), photometric="rgb"))
    at = file.find(struct.pack("<HHIHH", 259, 3, 1, 1, 0))
    file[at + 8 : at + 10] = struct.pack("<H", 50000)
    return bytes(file)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python itself has Zstandard")
def test_a_missing_codec_is_named(zstd, monkeypatch):
    from pikfix.photos import tiff_pixels

    def without(data, page):
        raise tiff_pixels.MissingPackageError("imagecodecs")

    monkeypatch.setattr(tiff_pixels, "read", without)
    message = refused(zstd, "missing_package")
    assert "imagecodecs" in message and "pikfix[formats]" in message and "Zstandard" in message


def test_a_missing_reader_of_heic_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    message = refused(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "missing_package")
    assert "pillow-heif" in message and "JPEG, PNG or TIFF" in message


@pytest.mark.parametrize("method", ["zstd", "webp", "lerc", "lzma", "jpegxl"])
def test_every_compression_of_tiff_is_read(rgb, method):
    pytest.importorskip("imagecodecs")
    photo = decode_photo(written(rgb, photometric="rgb", compression=method))
    np.testing.assert_array_equal(photo.pixels, rgb)
    assert photo.warnings == ()


@pytest.mark.parametrize("method", ["zstd", "lzw", "lerc"])
def test_deep_tiff_of_every_compression_keeps_its_levels(method):
    pytest.importorskip("imagecodecs")
    deep = np.random.default_rng(1).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    photo = decode_photo(written(deep, photometric="rgb", compression=method))
    np.testing.assert_array_equal(np.rint(photo.pixels * 65535), deep)


def test_heic_is_read_upright(rgb):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a portrait"
    file = io.BytesIO()
    heif.from_pillow(Image.fromarray(rgb)).save(file, quality=95, exif=exif.tobytes())
    photo = decode_photo(file.getvalue())
    # The writer notes the orientation as a rotation, which the reader applies.
    assert np.abs(photo.pixels.astype(int) - np.rot90(rgb, -1)).mean() < 4
    assert photo.format == "heif"
    with pytest.raises(PhotoError) as caught:
        decode_photo(file.getvalue(), max_pixels=100)
    assert caught.value.code == "photo_too_large"


# Photoshop documents ----------------------------------------------------------------------


def psd(pixels, resources=b"", packed=False):
    """Build a flattened document of 16 bits; rows are packed as literal runs."""
    planes = np.moveaxis(pixels if pixels.ndim == 3 else pixels[..., None], -1, 0).astype(">u2")
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, len(planes), *pixels.shape[:2], 16,
                                 3 if len(planes) > 1 else 1)  # fmt: skip
    head += bytes(4) + struct.pack(">I", len(resources)) + resources + bytes(4)
    if not packed:
        return head + b"\0\0" + planes.tobytes()
    rows = []
    for row in planes.reshape(-1, planes.shape[-1]):
        raw = row.tobytes()
        parts = [raw[at : at + 128] for at in range(0, len(raw), 128)]
        rows.append(b"".join(bytes([len(part) - 1]) + part for part in parts))
    return head + b"\0\1" + b"".join(struct.pack(">H", len(row)) for row in rows) + b"".join(rows)


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
@pytest.mark.parametrize("packed", [False, True])
def test_deep_photoshop_documents_keep_their_levels(shape, packed):
    deep = np.random.default_rng(2).integers(0, 65536, shape, dtype=np.uint16)
    iptc = b"\x1c\x02\x5a\x00\x04Linz"
    resources = b"8BIM" + struct.pack(">HHI", 1028, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
    resources += b"8BIM" + struct.pack(">HHIIHHIHH", 1005, 0, 16, 300 << 16, 1, 1, 300 << 16, 1, 1)
    photo = decode_photo(psd(deep, resources, packed))
    np.testing.assert_array_equal(np.rint(photo.pixels * 65535), deep)
    assert (photo.format, photo.bit_depth, photo.iptc) == ("psd", 16, iptc)
    assert photo.dpi == (300, 300)
    assert "cut off" in refused(psd(deep, resources, packed)[:-200], "bad_photo")


# Pages ------------------------------------------------------------------------------------


def pages(*pictures, **settings):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for pixels, flag in pictures:
            kind = "minisblack" if pixels.ndim == 2 else "rgb"
            writer.write(pixels, subfiletype=flag, photometric=kind, metadata=None, **settings)
    return file.getvalue()


@pytest.mark.parametrize("flag", [1, 4, 5])
def test_a_smaller_copy_or_a_mask_that_comes_first_is_passed_over(rgb, flag):
    first = np.ascontiguousarray(rgb[::4, ::4])
    file = pages((first if flag == 1 else first[..., 0] > 99, flag), (rgb, 0))
    photo = decode_photo(file)
    np.testing.assert_array_equal(photo.pixels, rgb)
    detail = "1 a mask" if flag == 4 else "1 of reduced resolution"
    assert photo.warnings == (f"the file holds 2 pages: page 2 was taken (of the others {detail})",)


def test_old_flag_of_a_smaller_copy(rgb):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        small = np.ascontiguousarray(rgb[::4, ::4])
        writer.write(small, photometric="rgb", metadata=None, extratags=[(255, "H", 1, 2, True)])
        writer.write(rgb, photometric="rgb", metadata=None)
    np.testing.assert_array_equal(decode_photo(file.getvalue()).pixels, rgb)


@pytest.mark.parametrize("big", [False, True])
def test_photo_below_a_smaller_copy_keeps_what_the_first_page_says(rgb, big):
    file = io.BytesIO()
    deep = rgb.astype(np.uint16) * 257
    xmp = (700, "B", 9, b"<x>1</x> ", True)
    with tifffile.TiffWriter(file, bigtiff=big) as writer:
        small = np.ascontiguousarray(rgb[::4, ::4])
        writer.write(small, photometric="rgb", subfiletype=1, subifds=1, metadata=None,
                     description="Market", extratags=[xmp])  # fmt: skip
        writer.write(deep, photometric="rgb", subfiletype=0, metadata=None)
    photo = decode_photo(file.getvalue())
    np.testing.assert_array_equal(np.rint(photo.pixels * 65535), deep)
    assert photo.xmp == b"<x>1</x>"
    assert photo.warnings[0].startswith("the file holds 2 pages: page 1.1 was taken")
    if not big:  # Pillow reads no EXIF from BigTIFF
        kept = Image.Exif()
        kept.load(photo.exif)
        assert kept[270] == "Market"


def test_the_larger_of_smaller_copies_is_taken_where_there_is_nothing_else(rgb):
    file = pages((np.ascontiguousarray(rgb[::4, ::4]), 1), (np.ascontiguousarray(rgb[::2, ::2]), 1))
    np.testing.assert_array_equal(decode_photo(file).pixels, rgb[::2, ::2])


def test_the_limit_holds_for_the_page_that_is_taken(rgb):
    file = pages((np.ascontiguousarray(rgb[::4, ::4]), 1), (rgb, 0))
    with pytest.raises(PhotoError) as caught:
        decode_photo(file, max_pixels=5000)
    assert caught.value.code == "photo_too_large"


def test_directories_in_a_circle_end(rgb):
    file = bytearray(pages((rgb[..., 0], 0)))
    start = struct.unpack_from("<I", file, 4)[0]
    count = struct.unpack_from("<H", file, start)[0]
    struct.pack_into("<I", file, start + 2 + 12 * count, start)
    np.testing.assert_array_equal(decode_photo(bytes(file)).pixels, rgb[..., 0])
