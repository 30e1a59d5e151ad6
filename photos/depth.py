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
    if page is not None:
        return max((int(bits) for bits in page.numbers(tiff.BITS)), default=1)
    stated = _of_header(data, image)
    if stated is not None:
        return stated
    if image.mode in {"1", "F"}:
        return 1 if image.mode == "1" else 32
    return 16 if image.mode.startswith("I") else 8


def _of_header(data: bytes, image: Image.Image) -> int | None:
    match image.format:
        case "PNG":
            stated = data[24]  # IHDR is always the first chunk
        case "JPEG2000":
            at = data.find(_J2K_SIZE)
            stated = (data[at + 42] & 127) + 1 if 0 <= at < len(data) - 42 else 8
        case "AVIF":
            at = data.find(b"av1C")
            flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
            stated = (12 if flags & 32 else 10) if flags & 64 else 8
        case "HEIF":
            stated = int(image.info.get("bit_depth") or 8)
        case "SGI":
            stated = 8 * data[3]
        case "PPM":
            found = _PPM_MAXIMUM.match(data[:4096])
            if not found:
                return None
            stated = max(8, int(found[1]).bit_length())
        case _:
            return None
    return stated
