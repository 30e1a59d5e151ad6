"""XMP, IPTC and comments in the form that each format of the result has for them."""

from __future__ import annotations

import binascii
import struct
from typing import Any

from PIL import PngImagePlugin

from pikfix.photos import psd
from pikfix.photos.embedded import COMMENT, Texts
from pikfix.photos.metadata import editable, writable

_JPEG_SEGMENT = 65533
_XMP_OVERHEAD = 29
# Where EXIF has a field for what PNG calls by a keyword.
_EXIF_FIELDS = {"Description": 270, "Title": 270, "Author": 315, "Copyright": 33432}
_EXIF_FIELDS["Software"] = 305
_DETAILS, _USER_COMMENT = 0x8769, 0x9286


def named(key: str, text: str) -> str:
    """Return a comment's text for where keywords do not exist."""
    return text if key == COMMENT else f"{key}: {text}"


def settings_of(
    name: str, xmp: bytes, iptc: bytes, texts: Texts
) -> tuple[dict[str, Any], list[str]]:
    """Return Pillow's settings for jpeg, png or webp, and warnings of what has no place."""
    if name == "jpeg":
        return jpeg_settings(xmp, iptc, texts)
    if name == "png":
        return png_settings(xmp, iptc, texts), []
    lost = ["the IPTC data was dropped: WebP has no place for it"] if iptc else []
    return {"xmp": xmp} if xmp else {}, lost


def holds_xmp(name: str, xmp: bytes) -> bool:
    """Whether a format has room for an XMP packet."""
    return name != "jpeg" or len(xmp) + _XMP_OVERHEAD <= _JPEG_SEGMENT


def jpeg_settings(xmp: bytes, iptc: bytes, texts: Texts) -> tuple[dict[str, Any], list[str]]:
    """Return Pillow's settings for JPEG, and warnings of what is too long for its segments."""
    settings: dict[str, Any] = {}
    warnings = []
    extra = b""
    if not holds_xmp("jpeg", xmp):
        warnings.append("the XMP packet is too long for JPEG and was dropped")
    elif xmp:
        settings["xmp"] = xmp
    if iptc:
        block = b"Photoshop 3.0\0" + psd.resource(psd.IPTC, iptc)
        if len(block) > _JPEG_SEGMENT:
            warnings.append("the IPTC data is too long for JPEG and was dropped")
        else:
            extra += b"\xff\xed" + struct.pack(">H", 2 + len(block)) + block
    for key, text in texts:
        comment = named(key, text).encode()
        if len(comment) > _JPEG_SEGMENT:
            warnings.append("a comment is too long for JPEG and was dropped")
        else:
            extra += b"\xff\xfe" + struct.pack(">H", 2 + len(comment)) + comment
    if extra:
        settings["extra"] = extra
    return settings, warnings


def png_settings(xmp: bytes, iptc: bytes, texts: Texts) -> dict[str, Any]:
    """Return Pillow's settings for PNG."""
    info = PngImagePlugin.PngInfo()
    if xmp:
        info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    if iptc:
        # PNG has no chunk for it; ImageMagick, ExifTool and their readers agree on this text.
        block = psd.resource(psd.IPTC, iptc)
        digits = binascii.hexlify(block).decode()
        lines = [digits[at : at + 72] for at in range(0, len(digits), 72)]
        text = "\n".join(["", "iptc", f"{len(block):8d}", *lines, ""])
        info.add_text("Raw profile type iptc", text, zip=True)
    for key, text in texts:
        name = key.encode("latin-1", "replace")[:79].decode("latin-1") or COMMENT
        long = len(text) > 1024
        if text.isascii() or _is_latin(text):
            info.add_text(name, text, zip=long)
        else:
            info.add_itxt(name, text, zip=long)
    return {"pnginfo": info} if info.chunks else {}


def _is_latin(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def exif_with_texts(exif: bytes, texts: Texts) -> tuple[bytes, list[str]]:
    """Put comments into EXIF fields, for formats without comments (TIFF, WebP).

    Returns:
        The block, and a warning where a comment found no field free.
    """
    if not texts:
        return exif, []
    block = editable(exif)
    details = dict(block.get(_DETAILS) or {})
    rest = []
    for key, text in texts:
        field = _EXIF_FIELDS.get(key)
        coded = text.encode().decode("latin-1")
        if field is not None and field not in block:
            block[field] = writable(coded)
        elif field is None or block[field] != coded:
            rest.append(named(key, text))
    warnings = []
    if rest and _USER_COMMENT in details and bytes(details[_USER_COMMENT])[8:].strip(b"\0 "):
        warnings.append("comments were dropped: the format has no field for them that is free")
    elif rest:
        text = "\n".join(rest)
        if text.isascii():
            details[_USER_COMMENT] = b"ASCII\0\0\0" + text.encode()
        else:
            order = "utf-16-be" if block.endian == ">" else "utf-16-le"
            details[_USER_COMMENT] = b"UNICODE\0" + text.encode(order)
    if details:
        block[_DETAILS] = details
    return block.tobytes(), warnings
