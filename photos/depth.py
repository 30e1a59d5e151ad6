"""Bits per sample as a file's header says, where Pillow's mode does not."""

from __future__ import annotations

import re

from PIL import Image

from pikfix.photos import tiff

_PPM_MAXIMUM = re.compile(
    rb"P[36](?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+\d+(?:\s+|#[^\n]*\n)+(\d+)"
)
_J2K_SIZE = b"\xff\x4f\xff\x51"


def declared(data: bytes, image: Image.Image, page: tiff.Page | None) -> int:
    """Return the bits per sample of an opened file."""
    name = image.format
    if page is not None:
        return max((int(bits) for bits in page.numbers(tiff.BITS)), default=1)
    if name == "PNG":
        return data[24]  # IHDR is always the first chunk
    if name == "JPEG2000":
        at = data.find(_J2K_SIZE)
        if at >= 0 and at + 42 < len(data):
            return (data[at + 42] & 127) + 1
    if name == "AVIF":
        at = data.find(b"av1C")
        flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
        return (12 if flags & 32 else 10) if flags & 64 else 8
    if name == "HEIF":
        return int(image.info.get("bit_depth") or 8)
    if name == "PPM":
        found = _PPM_MAXIMUM.match(data[:4096])
        if found:
            return max(8, int(found[1]).bit_length())
    if name == "SGI" and data[3] == 2:
        return 16
    if image.mode == "1":
        return 1
    if image.mode == "F":
        return 32
    return 16 if image.mode.startswith("I") else 8
