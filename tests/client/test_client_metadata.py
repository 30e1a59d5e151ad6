"""A picture given as a PIL image arrives with what it says about itself, or the report tells."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import ExifTags, Image
from skimage import data

from pikfix.client._inputs import encode_photo
from pikfix.photos import decode_photo
from pikfix.photos import encode_photo as write_photo

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    b'syntax-ns#"><rdf:Description xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:creator>Anna '
    b"Sm\xc3\xad\xc5\xa1ek</dc:creator></rdf:Description></rdf:RDF></x:xmpmeta>"
)
IPTC = b"\x1c\x02\x78\x00\x09Our house\x1c\x02\x50\x00\x04Anna"  # caption, author
PIXELS = np.ascontiguousarray(data.astronaut()[:60, 160:240])


def exif_block(orientation=1):
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "Anna"
    exif[ExifTags.Base.ImageDescription] = "Our house"
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "1931:07:01 12:00:00"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    return exif.tobytes()


def file_of(name, grey=False):
    """A file of a format with everything that pikfix's own writer puts in."""
    pixels = PIXELS[..., 1] if grey else PIXELS
    texts = (("Comment", "Found in the attic"),)
    return write_photo(
        pixels, name, exif=exif_block(), dpi=(300.0, 300.0), xmp=XMP, iptc=IPTC, texts=texts
    )[0]


def said(photo):
    return {
        "dpi": None if photo.dpi is None else tuple(round(one) for one in photo.dpi),
        "xmp": photo.xmp,
        "iptc": photo.iptc,
        "texts": photo.texts,
    }


def tags(block):
    exif = Image.Exif()
    if block:
        exif.load(block)
    nested = {
        (ifd, tag): value
        for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
        for tag, value in exif.get_ifd(ifd).items()
    }
    # The resolution is compared by itself, and the directories' places differ.
    own = {tag: exif[tag] for tag in exif if tag not in (282, 283, 296, 34665, 34853)}
    return own | nested


@pytest.mark.parametrize("name", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("grey", [False, True])
def test_an_image_arrives_as_its_file_would(name, grey):
    file = file_of(name, grey)
    expected = decode_photo(file)
    sent = encode_photo(Image.open(io.BytesIO(file)))
    arrived = decode_photo(sent.data)
    assert (sent.here, sent.notes) == (True, ())
    assert said(arrived) == said(expected)
    assert tags(arrived.exif) == tags(expected.exif)
    assert tags(expected.exif)[ExifTags.Base.Artist] == "Anna"
    assert expected.xmp
    np.testing.assert_array_equal(arrived.pixels, expected.pixels)


@pytest.mark.parametrize("derive", [Image.Image.copy, lambda image: image.convert("L")])
def test_an_image_derived_from_a_jpeg_keeps_what_pil_keeps(derive):
    sent = encode_photo(derive(Image.open(io.BytesIO(file_of("jpeg")))))
    arrived = decode_photo(sent.data)
    assert arrived.iptc == IPTC
    assert arrived.texts == (("Comment", "Found in the attic"),)
    assert b"Anna" in arrived.xmp
    assert tags(arrived.exif)[ExifTags.Base.Artist] == "Anna"
    assert (arrived.dpi, sent.notes) == ((pytest.approx(300, abs=0.1),) * 2, ())


def test_orientation_is_applied_once():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", exif=exif_block(6), dpi=(300, 200))
    sent = encode_photo(Image.open(file))
    arrived, expected = decode_photo(sent.data), decode_photo(file.getvalue())
    assert arrived.pixels.shape == expected.pixels.shape == (80, 60, 3)
    assert tags(arrived.exif) == tags(expected.exif)
    assert said(arrived) == said(expected)
    assert expected.dpi == (200, 300)


def test_a_tiff_without_resolution_gets_none():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "TIFF")
    assert decode_photo(encode_photo(Image.open(file)).data).dpi is None


def test_an_image_in_cmyk_keeps_all_but_its_comments_which_are_named():
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert("CMYK").save(
        file, "JPEG", exif=exif_block(), dpi=(300, 300), xmp=XMP, comment=b"Found in the attic"
    )
    sent = encode_photo(Image.open(file))
    arrived = decode_photo(sent.data)
    assert sent.notes == ("the comments of an image in CMYK were not sent",)
    assert (arrived.mode, arrived.dpi) == ("CMYK", (300, 300))
    assert tags(arrived.exif)[ExifTags.Base.Artist] == "Anna"
    assert b"Anna" in arrived.xmp


def test_what_the_caller_put_in_is_sent_or_named(kind, server):
    image = Image.fromarray(PIXELS)
    image.info.update({"Author": "Anna", "dpi": (400, 400), "project": {"box": 7}})
    image.getexif()[ExifTags.Base.Copyright] = "Anna"
    with kind(server.url) as client:
        report = client.restore(image).report
    (request,) = server.requests
    from fake_triton import inputs_of

    arrived = decode_photo(inputs_of(request)["photo"].flat[0])
    assert report.warnings[0] == "not sent of the image's info: project"
    assert arrived.texts == (("Author", "Anna"),)
    assert tags(arrived.exif)[ExifTags.Base.Copyright] == "Anna"
    assert [round(one) for one in arrived.dpi] == [400, 400]


@pytest.mark.parametrize("damage", [{"exif": b"Exif\0\0MM broken"}, {"photoshop": {0x0404: b"x"}}])
def test_damaged_data_costs_no_photo(damage):
    image = Image.fromarray(PIXELS)
    image.info.update(damage)
    arrived = decode_photo(encode_photo(image).data)
    np.testing.assert_array_equal(arrived.pixels, PIXELS)


def test_an_array_has_nothing_to_lose():
    sent = encode_photo(PIXELS)
    assert (sent.here, sent.notes) == (True, ())
    arrived = decode_photo(sent.data)
    assert (arrived.exif, arrived.xmp, arrived.dpi, arrived.texts) == (b"", b"", None, ())
