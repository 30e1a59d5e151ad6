"""What a file is that no decoder here opens, told by its first bytes."""

from __future__ import annotations

import re

# Signature at the file's start -> what it is, and what to do with it.
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF", "a PDF document", "save its page as PNG or TIFF"),
    (b"%!PS", "a PostScript (EPS) drawing", "save it as PNG or TIFF"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript (EPS) drawing", "save it as PNG or TIFF"),
    (b"\xff\x0a", "a JPEG XL picture", "convert it to PNG, TIFF or JPEG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture", "convert it to PNG, TIFF or JPEG"),
    (b"\xff\xd8\xff\xf7", "a JPEG-LS picture", "convert it to PNG or TIFF"),
    (b"II\xbc\x01", "a JPEG XR picture", "convert it to PNG or TIFF"),
    (b"II*\0\x10\0\0\0CR", "a camera's raw file (CR2)", "develop it and save it as TIFF"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)", "develop it and save it as TIFF"),
    (b"IIRO", "a camera's raw file (ORF)", "develop it and save it as TIFF"),
    (b"IIRS", "a camera's raw file (ORF)", "develop it and save it as TIFF"),
    (b"MMOR", "a camera's raw file (ORF)", "develop it and save it as TIFF"),
    (b"IIU\0", "a camera's raw file (RW2)", "develop it and save it as TIFF"),
    (b"\0MRM", "a camera's raw file (MRW)", "develop it and save it as TIFF"),
    (b"FOVb", "a camera's raw file (X3F)", "develop it and save it as TIFF"),
    (b"gimp xcf", "a GIMP document (XCF)", "export it as PNG or TIFF"),
    (b"v/1\x01", "an OpenEXR picture", "convert it to PNG or TIFF with 8 or 16 bits"),
    (b"#?RADIANCE", "a Radiance HDR picture", "convert it to PNG or TIFF with 8 or 16 bits"),
    (b"SIMPLE  =", "a FITS file", "convert it to PNG or TIFF with 8 or 16 bits"),
    (b"AT&TFORM", "a DjVu document", "save its page as PNG or TIFF"),
    (b"FORM", "an IFF picture", "convert it to PNG or TIFF"),
    (b"BPG\xfb", "a BPG picture", "convert it to PNG or TIFF"),
    (b"FLIF", "a FLIF picture", "convert it to PNG or TIFF"),
    (b"DDS ", "a DDS texture", "convert it to PNG or TIFF"),
    (b"\0\0\x01\0", "an icon (ICO)", "convert it to PNG"),
    (b"icns", "an icon (ICNS)", "convert it to PNG"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)", "save it as PNG"),
    (b"8BPS\0\x02", "a large Photoshop document (PSB)", "save it as TIFF"),
    (b"PK\x03\x04", "a ZIP archive or office document", "unpack it and send the photos"),
    (b"Rar!", "an archive", "unpack it and send the photos"),
    (b"7z\xbc\xaf", "an archive", "unpack it and send the photos"),
    (b"\x1f\x8b", "a compressed file (gzip)", "unpack it and send the photo"),
    (b"\x1aE\xdf\xa3", "a video", "save one of its frames as PNG or JPEG"),
)
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_BOX_BRANDS = (
    (re.compile(rb"crx "), "a camera's raw file (CR3)", "develop it and save it as TIFF"),
    (
        re.compile(rb"isom|iso\d|mp4\d|M4V|qt  |avc1|3gp|mmp4|dash|MSNV"),
        "a video",
        "save one of its frames as PNG or JPEG",
    ),
)
_MARKUP = re.compile(rb"\s*(?:<\?xml[^>]*>|<!--.*?-->|<!DOCTYPE[^>]*>|\s)*<svg[\s>]", re.DOTALL)
_DICOM = slice(128, 132)


def is_heif(data: bytes) -> bool:
    """Whether it is a HEIF picture compressed with HEVC, as phones store them (HEIC)."""
    if data[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, size, 4))}
    if brands & _HEIF_BRANDS:
        return True
    return data[8:12] in {b"mif1", b"msf1", b"heif"} and not brands & {b"avif", b"avis"}


def is_avif(data: bytes) -> bool:
    """Whether it is an AVIF picture."""
    return data[4:8] == b"ftyp" and not is_heif(data) and b"avi" in data[8:40]


def unsupported(data: bytes) -> tuple[str, str] | None:
    """Name a file of a known kind that is not read.

    Returns:
        What it is and what to do with it; None for a file of no kind known here.
    """
    for signature, what, remedy in _SIGNATURES:
        if data.startswith(signature):
            return what, remedy
    if data[4:8] == b"ftyp":
        for brands, what, remedy in _BOX_BRANDS:
            if brands.match(data[8:12]):
                return what, remedy
    if data[_DICOM] == b"DICM":
        return "a DICOM file", "convert it to PNG or TIFF with 8 or 16 bits"
    if _MARKUP.match(data[:1024]):
        return "an SVG drawing", "save it as PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "a video", "save one of its frames as PNG or JPEG"
    return None


_READ = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"8BPS", "PSD"),
    (b"qoif", "QOI"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)


def name_of(data: bytes) -> str | None:
    """Name the format, of those that are read, that a file begins like."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        return "HEIF" if is_heif(data) else "AVIF" if is_avif(data) else None
    return next((name for signature, name in _READ if data.startswith(signature)), None)
