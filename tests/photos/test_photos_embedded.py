"""XMP, IPTC, comments, resolution: kept in every result, without what the result makes wrong."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from pikfix.photos import decode_photo, encode_photo

IPTC = b"\x1c\x02\x78\x00\x07Market!" + b"\x1c\x02\x5a\x00\x04Linz"
PREVIEW = b"\x1c\x02\xca\x00\x05" + b"thumb"
XMP = (
    b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF"
    b" xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'><rdf:Description rdf:about=''"
    b' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:t="http://ns.adobe.com/tiff/1.0/"'
    b' xmlns:xmp="http://ns.adobe.com/xap/1.0/" t:Orientation="6" t:ImageWidth="120"'
    b" dc:format='image/x-old' xmp:Rating=\"4\"><dc:title>M\xc3\xa4rz 1931</dc:title>"
    b"<xmp:Thumbnails><rdf:Alt><rdf:li>OLD</rdf:li></rdf:Alt></xmp:Thumbnails>"
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def photoshop(iptc):
    def one(number, content):
        head = b"8BIM" + struct.pack(">HHI", number, 0, len(content))
        return head + content + b"\0" * (len(content) % 2)

    return one(1036, b"an old thumbnail") + one(1028, iptc)


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


@pytest.fixture(scope="module")
def jpeg(rgb, save):
    exif = Image.Exif()
    exif[0x0112] = 6
    extra = segment(0xED, b"Photoshop 3.0\0" + photoshop(IPTC + PREVIEW))
    return save(rgb, "JPEG", xmp=XMP, comment="Großmutter".encode(), extra=extra, exif=exif)


@pytest.fixture(scope="module")
def tiff(rgb):
    tags = [
        (700, "B", len(XMP), XMP, True),
        (33723, "B", len(IPTC), IPTC, True),
        (315, "s", 0, "A. Photographer", True),
    ]
    file = io.BytesIO()
    tifffile.imwrite(file, rgb, photometric="rgb", description="Market", metadata=None,
                     extratags=tags)  # fmt: skip
    return file.getvalue()


@pytest.fixture(scope="module")
def png(rgb, save):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP.decode())
    info.add_text("Author", "A. Photographer")
    info.add_itxt("Comment", "Prag, Karlův most")
    digits = photoshop(IPTC).hex()
    info.add_text("Raw profile type iptc", f"\niptc\n{len(digits) // 2:8d}\n{digits}\n", zip=True)
    return save(rgb, "PNG", pnginfo=info)


def test_jpeg_is_read(jpeg):
    photo = decode_photo(jpeg)
    assert photo.iptc == IPTC
    assert photo.texts == (("Comment", "Großmutter"),)
    assert photo.warnings == ()


@pytest.mark.parametrize("source", ["jpeg", "tiff", "png"])
def test_xmp_is_freed_of_what_became_wrong(source, request):
    photo = decode_photo(request.getfixturevalue(source))
    text = photo.xmp.decode()
    assert "März 1931" in text and 'xmp:Rating="4"' in text
    assert 't:Orientation="1"' in text
    assert f't:ImageWidth="{photo.width}"' in text
    for gone in ("OLD", "Thumbnails", "image/x-old"):
        assert gone not in text


@pytest.mark.parametrize("name", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("source", ["jpeg", "tiff", "png"])
def test_every_result_has_them(source, name, request):
    photo = decode_photo(request.getfixturevalue(source))
    file, warnings = encode_photo(
        photo.pixels, name, exif=photo.exif, xmp=photo.xmp, iptc=photo.iptc, texts=photo.texts
    )
    again = decode_photo(file)
    assert again.xmp == photo.xmp
    assert b"old thumbnail" not in file and b"thumb" not in file
    if name == "webp":
        assert warnings == ["the IPTC data was dropped: WebP has no place for it"]
    else:
        assert warnings == []
        assert again.iptc == IPTC
    if source == "png" and name in {"tiff", "webp"}:
        kept = Image.open(io.BytesIO(file)).getexif()
        assert kept[315] == "A. Photographer"
        assert kept.get_ifd(0x8769)[0x9286] == b"UNICODE\0" + "Prag, Karlův most".encode(
            "utf-16-le"
        )
    elif source == "png":
        said = {text.removeprefix("Author: ") for _, text in again.texts}
        assert said == {"A. Photographer", "Prag, Karlův most"}
    if source == "tiff":
        kept = Image.open(io.BytesIO(file)).getexif()
        assert (kept[270], kept[315]) == ("Market", "A. Photographer")


def test_gif_and_ppm_comments_are_kept(rgb, save):
    assert decode_photo(save(rgb, "GIF", comment=b"scan 17")).texts == (("Comment", "scan 17"),)
    file = b"P5\n# scan 18\n2 1\n255\n\x10\x20"
    assert decode_photo(file).texts == (("Comment", "scan 18"),)


def test_long_packets_are_named(rgb):
    xmp = b"<x>" + b"y" * 70_000 + b"</x>"
    file, warnings = encode_photo(rgb, "jpeg", xmp=xmp, iptc=b"\x1c" * 66_000)
    assert warnings == [
        "the XMP packet is too long for JPEG and was dropped",
        "the IPTC data is too long for JPEG and was dropped",
    ]
    assert decode_photo(file).xmp == b""
    assert decode_photo(encode_photo(rgb, "png", xmp=xmp)[0]).xmp == xmp


def test_texts_of_exif_keep_their_bytes(rgb, save):
    # Pillow would write "?" for every byte above 127.
    file, _ = encode_photo(rgb, "tiff", texts=(("Author", "Jürgen"), ("Copyright", "© Linz")))
    for name in ("jpeg", "png", "tiff", "webp"):
        photo = decode_photo(file)
        file, _ = encode_photo(photo.pixels, name, exif=photo.exif, dpi=(300, 300))
        kept = Image.open(io.BytesIO(file)).getexif()
        assert kept[315].encode("latin-1").decode() == "Jürgen", name
        assert kept[33432].encode("latin-1").decode() == "© Linz", name


def test_color_space_of_exif_follows_the_result(rgb, save):
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 65535, 0x9003: "1931:05:01 12:00:00"}
    kept = Image.Exif()
    kept.load(decode_photo(save(rgb, "PNG", exif=exif)).exif)
    assert kept.get_ifd(0x8769) == {0xA001: 1, 0x9003: "1931:05:01 12:00:00"}


# Resolution -------------------------------------------------------------------------------


def written(pixels, **settings):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **settings)
    return file.getvalue()


def test_tiff_without_a_resolution_gets_none(rgb, save):
    assert decode_photo(save(rgb, "TIFF")).dpi is None


@pytest.mark.parametrize(("unit", "expected"), [(2, (300, 150)), (3, (762, 381)), (1, None)])
def test_resolution_unit_of_tiff(rgb, unit, expected):
    photo = decode_photo(written(rgb, photometric="rgb", resolution=(300, 150),
                                 resolutionunit=unit))  # fmt: skip
    assert photo.dpi == (None if expected is None else pytest.approx(expected))
    assert any("pixels are not square (2" in one for one in photo.warnings) == (expected is None)


def test_exif_without_a_resolution_does_not_make_72(rgb, save):
    exif = Image.Exif()
    exif[0x010E] = "a portrait"
    assert decode_photo(save(rgb, "JPEG", exif=exif)).dpi is None


def test_resolution_turns_with_the_picture(rgb, save):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = decode_photo(save(rgb, "PNG", exif=exif, dpi=(300, 200)))
    assert photo.dpi == pytest.approx((200, 300), rel=1e-3)


# Colours that PNG declares ----------------------------------------------------------------


def with_chunks(file, *chunks):
    import zlib

    body = b"".join(
        struct.pack(">I", len(content)) + name + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )  # fmt: skip
    return file[:33] + body + file[33:]


def gama(value):
    return b"gAMA", struct.pack(">I", round(value * 100000))


def srgb_level(light):
    return np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)


@pytest.mark.parametrize("gamma", [1.0, 0.6])
@pytest.mark.parametrize("kind", ["g8", "c8", "g16"])
def test_gamma_is_applied(rgb, save, gamma, kind):
    pixels = {"g8": rgb[..., 1], "c8": rgb, "g16": rgb[..., 1].astype(np.uint16) * 257}[kind]
    photo = decode_photo(with_chunks(save(pixels, "PNG"), gama(gamma)))
    unit = pixels / (65535.0 if kind == "g16" else 255.0)
    got = photo.pixels / (1.0 if kind == "g16" else 255.0)
    np.testing.assert_allclose(got, srgb_level(unit ** (1 / gamma)), atol=0.51 / 255)


def test_a_linear_photo_comes_out_as_bright_as_it_is(rgb, save):
    true = rgb[..., 1] / 255.0
    light = np.where(true > 0.04045, ((true + 0.055) / 1.055) ** 2.4, true / 12.92)
    stored = np.rint(light * 255).astype(np.uint8)
    photo = decode_photo(with_chunks(save(stored, "PNG"), gama(1.0)))
    assert abs(photo.pixels.mean() - rgb[..., 1].mean()) < 1.0 < rgb[..., 1].mean() - stored.mean()


@pytest.mark.parametrize(
    "chunks",
    [
        [gama(0.45455)],
        [gama(1.0), (b"sRGB", b"\0")],
        [gama(1.0), (b"cICP", bytes([1, 13, 0, 1]))],
    ],
)
def test_what_is_srgb_stays(rgb, save, chunks):
    np.testing.assert_array_equal(decode_photo(with_chunks(save(rgb, "PNG"), *chunks)).pixels, rgb)


def test_cicp_counts_before_a_profile(rgb, save, profile):
    file = save(rgb, "PNG", icc_profile=profile("RGB ", 1.8))
    linear = decode_photo(with_chunks(file, (b"cICP", bytes([1, 8, 0, 1]))))
    np.testing.assert_allclose(linear.pixels / 255.0, srgb_level(rgb / 255.0), atol=0.51 / 255)


def test_profile_counts_before_gamma(rgb, save, profile):
    file = save(rgb, "PNG", icc_profile=profile("RGB ", 1.8))
    np.testing.assert_array_equal(
        decode_photo(with_chunks(file, gama(1.0))).pixels, decode_photo(file).pixels
    )


def test_primaries_are_applied(save):
    pixels = np.array([[[128, 128, 128], [200, 100, 50]]], np.uint8)
    chromaticities = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    photo = decode_photo(with_chunks(save(pixels, "PNG"), (b"cHRM", chromaticities)))
    assert photo.pixels[0, 0].tolist() == [128, 128, 128]
    # color(display-p3 0.7843 0.3922 0.1961) by the CSS Color 4 matrices: 215, 93, 31.
    assert np.abs(photo.pixels[0, 1].astype(int) - [215, 93, 31]).max() <= 1
