"""XMP, IPTC and comments of a picture file, freed of what a restored photo makes wrong."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping

from PIL import Image

from pikfix.photos import psd, tiff

Texts = tuple[tuple[str, str], ...]

COMMENT = "Comment"
"""Keyword of a comment that has none in its file."""
XMP_LIMIT = 1 << 24

_NAMESPACES = {
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
    "hdrgm": "http://ns.adobe.com/hdr-gain-map/1.0/",
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "GCamera": "http://ns.google.com/photos/1.0/camera/",
    "GContainer": "http://ns.google.com/photos/1.0/container/",
}
# Properties that tell of the old file: how it stored its pixels, what else it held.
_STALE = (
    ("tiff", "BitsPerSample|Compression|PhotometricInterpretation|SamplesPerPixel"),
    ("tiff", "PlanarConfiguration|YCbCrSubSampling|YCbCrPositioning|YCbCrCoefficients"),
    ("tiff", "TransferFunction|WhitePoint|PrimaryChromaticities|ReferenceBlackWhite"),
    ("tiff", "NativeDigest|XResolution|YResolution|ResolutionUnit"),
    ("exif", "NativeDigest|CompressedBitsPerPixel|ComponentsConfiguration|Gamma"),
    ("dc", "format"),
    ("xmp", "Thumbnails"),
    ("photoshop", "ICCProfile|ColorMode"),
    ("xmpNote", "HasExtendedXMP"),
    ("hdrgm", r"\w+"),
    ("crs", r"\w+"),
    ("GCamera", r"\w+"),
    ("GContainer", "Directory"),
)
# IPTC datasets of record 2 that hold a preview of the old picture.
_PREVIEWS = frozenset({200, 201, 202})
# Texts that repeat what is stored elsewhere, or describe the old file.
_TECHNICAL = re.compile(
    r"Raw profile type|XML:com\.adobe\.xmp|(?:exif|tiff|png|icc|date|jpeg|xmp|photoshop):|Thumb::"
)
_JP2_UUIDS = {
    "xmp": bytes.fromhex("be7acfcb97a942e89c71999491e3afac"),
    "iptc": bytes.fromhex("33c7a4d2b81d4723a0baf1a3e097ad38"),
}
_GIF_XMP = b"\x21\xff\x0bXMP DataXMP"
_EXTENDED_XMP = b"http://ns.adobe.com/xmp/extension/\0"
# Image resources of Photoshop that are kept by another way, or say nothing about the photo.
_QUIET_RESOURCES = frozenset(
    {psd.IPTC, psd.RESOLUTION, psd.EXIF, psd.XMP, 1033, 1036, 1039, 1041, 1057, 1059, 1061}
    | {1000, 1001, 1002, 1003, 1010, 1011, 1012, 1013, 1016, 1019, 1026, 1030, 1037, 1044, 1049}
    | {1062, 1064, 1066, 1067, 1068, 1070, 1071, 1072, 1073, 1074, 1077, 1080, 1082, 1083, 1084}
    | {1050, 1065, 1069, 1024, 1032, 1054, 1035, 1034, 1085, 1086, 1087, 1088, 10000}
)


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What a file says about its photo beside EXIF.

    Attributes:
        xmp: the XMP packet in UTF-8; empty where there is none.
        iptc: IPTC-IIM datasets; empty where there are none.
        texts: (keyword, text) pairs.
        dropped: a warning for each kind of data that was not kept.
    """

    xmp: bytes = b""
    iptc: bytes = b""
    texts: Texts = ()
    dropped: tuple[str, ...] = ()


def embedded_in(
    data: bytes, image: Image.Image, pages: tuple[tiff.Page, ...], size: tuple[int, int]
) -> Embedded:
    """Read XMP, IPTC and comments.

    Args:
        data: the file.
        image: the file as Pillow opened it, its pixels loaded (PNG may have texts behind them).
        pages: of a TIFF file, those that may hold them: the photo's, then the file's first.
        size: (height, width) of the upright photo.
    """
    dropped: list[str] = []
    resources = _photoshop(data, image, pages)
    if set(resources) - _QUIET_RESOURCES:
        dropped.append("Photoshop's paths and other resources were dropped")
    xmp = _first(pages, 700) or _xmp(data, image) or resources.get(psd.XMP, b"")
    if xmp:
        xmp = clean_xmp(xmp, size)
        if not xmp:
            dropped.append("the XMP packet is damaged and was dropped")
    if any(body.startswith(_EXTENDED_XMP) for _, body in getattr(image, "applist", ())):
        dropped.append("the extended part of the XMP packet was dropped")
    iptc = _first(pages, 33723) or _iptc(data, image) or resources.get(psd.IPTC, b"")
    if iptc.startswith(b"8BIM"):
        iptc = psd.resources_of(iptc).get(psd.IPTC, b"")
    if iptc.strip(b"\0"):
        iptc = clean_iptc(iptc)
        if not iptc:
            dropped.append("the IPTC data is damaged and was dropped")
    else:
        iptc = b""
    return Embedded(xmp, iptc, tuple(_texts(data, image)), tuple(dropped))


def _first(pages: tuple[tiff.Page, ...], tag: int) -> bytes:
    return next((page.raw(tag) for page in pages if page.raw(tag)), b"")


def _photoshop(
    data: bytes, image: Image.Image, pages: tuple[tiff.Page, ...]
) -> Mapping[int, bytes]:
    if data.startswith(psd.SIGNATURE):
        return psd.document_resources(data)
    if pages:
        return psd.resources_of(_first(pages, 34377))
    whole = b"".join(
        body[14:]
        for name, body in getattr(image, "applist", ())
        if name == "APP13" and body.startswith(b"Photoshop 3.0\0")
    )
    return psd.resources_of(whole)


def _xmp(data: bytes, image: Image.Image) -> bytes:
    if image.format == "GIF":
        at = data.find(_GIF_XMP)
        end = data.find(b"\x01\xff\xfe", at) if at >= 0 else -1
        return data[at + len(_GIF_XMP) : end] if end > 0 else b""
    if image.format == "JPEG2000":
        return _uuid_box(data, _JP2_UUIDS["xmp"])
    stored = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    if not stored and image.format == "PNG":
        stored = _raw_profile(image, "xmp")
    return stored.encode() if isinstance(stored, str) else bytes(stored)


def _iptc(data: bytes, image: Image.Image) -> bytes:
    if image.format == "JPEG2000":
        return _uuid_box(data, _JP2_UUIDS["iptc"])
    if image.format == "PNG":
        return _raw_profile(image, "iptc") or _raw_profile(image, "8bim")
    return b""


def _uuid_box(data: bytes, uuid: bytes) -> bytes:
    at = data.find(b"uuid" + uuid)
    if at < 4:
        return b""
    size = int.from_bytes(data[at - 4 : at], "big")
    return data[at + 20 : at - 4 + size] if size else data[at + 20 :]


def _raw_profile(image: Image.Image, kind: str) -> bytes:
    """Read what ImageMagick and ExifTool write into PNG: a length, then hexadecimal digits."""
    text = image.info.get(f"Raw profile type {kind}")
    if not isinstance(text, str):
        return b""
    try:
        return bytes.fromhex("".join(text.strip().split("\n")[2:]))
    except ValueError:
        return b""


def clean_xmp(packet: bytes, size: tuple[int, int]) -> bytes:
    """Return a packet for an upright photo of (height, width) in sRGB; empty where it is broken."""
    text = _decoded(packet)
    if text is None or "<" not in text or len(text) > XMP_LIMIT:
        return b""
    for prefix, names in _STALE:
        text = _without(text, _prefix(text, prefix), names)
    for prefix, name, value in (
        ("tiff", "Orientation", 1),
        ("tiff", "ImageWidth", size[1]),
        ("tiff", "ImageLength", size[0]),
        ("exif", "PixelXDimension", size[1]),
        ("exif", "PixelYDimension", size[0]),
        ("exif", "ColorSpace", 1),
    ):
        text = _with(text, f"{_prefix(text, prefix)}:{name}", value)
    return text.strip("\0\ufeff \n").encode()


def _decoded(packet: bytes) -> str | None:
    packet = packet.rstrip(b"\0") if b"\0<" not in packet and b"<\0" not in packet else packet
    for coding in ("utf-16", "utf-32") if packet[:2] in {b"\xff\xfe", b"\xfe\xff"} else ("utf-8",):
        try:
            text = packet.decode(coding)
        except UnicodeDecodeError:
            continue
        return re.sub(r"encoding=([\"'])[^\"']*\1", 'encoding="UTF-8"', text, count=1)
    return None


def _prefix(text: str, usual: str) -> str:
    """Return the prefix by which a packet calls one of the namespaces."""
    uri = re.escape(_NAMESPACES[usual])
    found = re.search(rf"xmlns:([\w.-]+)\s*=\s*[\"']{uri}[\"']", text)
    return found[1] if found else usual


def _without(text: str, prefix: str, names: str) -> str:
    name = rf"{re.escape(prefix)}:(?:{names})"
    text = re.sub(rf"\s{name}\s*=\s*(?:\"[^\"]*\"|'[^']*')", "", text)
    text = re.sub(rf"<{name}(?:\s[^<>]*)?/>", "", text)
    return re.sub(rf"<({name})(?:\s[^<>]*)?>.*?</\1\s*>", "", text, flags=re.DOTALL)


def _with(text: str, name: str, value: int) -> str:
    text = re.sub(rf"(\s{name}\s*=\s*)(?:\"[^\"]*\"|'[^']*')", rf'\g<1>"{value}"', text)
    return re.sub(rf"(<{name}(?:\s[^<>]*)?>)[^<]*(</{name}\s*>)", rf"\g<1>{value}\g<2>", text)


def clean_iptc(block: bytes) -> bytes:
    """Keep the envelope and the application record, without previews of the old picture."""
    kept = b""
    at = 0
    while at + 5 <= len(block) and block[at] == 0x1C:
        record, number = block[at + 1], block[at + 2]
        size = int.from_bytes(block[at + 3 : at + 5], "big")
        start = at + 5
        if size & 0x8000:
            width = size & 0x7FFF
            size = int.from_bytes(block[start : start + width], "big")
            start += width
        if start + size > len(block):
            break
        if record in {1, 2} and not (record == 2 and number in _PREVIEWS):
            kept += block[at : start + size]
        at = start + size
    return kept


def is_comment(key: str) -> bool:
    """Whether a text of a PNG is a comment: none that describes the old file, or is kept else."""
    return not _TECHNICAL.match(key)


def _texts(data: bytes, image: Image.Image) -> Iterator[tuple[str, str]]:
    if image.format == "PNG":
        for key, text in getattr(image, "text", {}).items():
            if is_comment(key) and str(text).strip():
                yield key, str(text)
        return
    for comment in _comments(data, image):
        text = _plain_text(comment)
        if text:
            yield COMMENT, text


def _comments(data: bytes, image: Image.Image) -> Iterator[bytes]:
    if image.format in {"JPEG", "MPO"}:
        yield from (body for name, body in getattr(image, "applist", ()) if name == "COM")
    elif image.format in {"GIF", "JPEG2000"}:
        comment = image.info.get("comment", b"")
        yield comment if isinstance(comment, bytes) else str(comment).encode()
    elif image.format == "PPM":
        yield from re.findall(rb"^\s*#([^\n]*)$", data[:4096].split(b"\0")[0], re.MULTILINE)
    elif image.format == "TGA":
        yield bytes(image.info.get("id_section", b""))
        if data[-18:-2] == b"TRUEVISION-XFILE":
            at = int.from_bytes(data[-26:-22], "little")
            for start, size in ((2, 41), (43, 324)) if at else ():  # author, comment
                yield data[at + start : at + start + size].replace(b"\0", b"\n")
    elif image.format == "SGI":
        yield data[24:104].split(b"\0")[0]


def _plain_text(comment: bytes) -> str:
    comment = comment.strip(b"\0 \r\n\t")
    try:
        return comment.decode()
    except UnicodeDecodeError:
        return comment.decode("latin-1")
