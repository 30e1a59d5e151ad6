"""Whether a JPEG file holds all of its picture; Pillow does not pass on what libjpeg notices."""

from __future__ import annotations

import io
import random
import struct

import numpy as np
from PIL import Image, ImageFile

END = b"\xff\xd9"
# Bytes that decode to something; none begins a marker.
_NOISE = bytes(random.Random(0).choices(range(1, 255), k=4096))
_SCAN, _PROGRESSIVE = 0xDA, (0xC2, 0xCA)
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})


def missing_end(data: bytes) -> bytes | None:
    """Return the file with the end marker that it lacks; None where it has one.

    Files that were recovered from a disk are filled up with zeros, which would decode to something.
    """
    if data.rfind(END) > data.rfind(b"\xff\xda"):  # a thumbnail's is before the last scan
        return None
    filled = data.endswith(bytes(8))
    return (data.rstrip(b"\0") if filled else data).removesuffix(b"\xff") + END


def rows_missing_from(data: bytes, shown: Image.Image, shrink_to: int | None = None) -> int | None:
    """Find the first row, as stored, that the picture data no longer reaches.

    Where data ran out, libjpeg goes on with the last colours. A picture that is there to its end
    does not depend on what follows its data: so it is decoded once more with noise there.

    Args:
        data: a JPEG file that ends with an end marker.
        shown: what it decodes to.
        shrink_to: the side that it was allowed to shrink to.

    Returns:
        The row of ``shown``; None where nothing is missing.
    """
    end = data.rfind(END)
    noisy: ImageFile.ImageFile = Image.open(
        io.BytesIO(data[:end] + _NOISE + END), formats=("JPEG",)
    )
    if shrink_to is not None:
        noisy.draft(None, (shrink_to, shrink_to))
    plain = np.asarray(shown)
    differs = np.flatnonzero((plain != np.asarray(noisy)).reshape(len(plain), -1).any(axis=1))
    return int(differs[0]) if len(differs) else None


def ends_flat(image: Image.Image) -> bool:
    """Whether the last rows are of one colour in each row, as where data ran out."""
    rows = np.asarray(image.crop((0, max(0, image.height - 4), *image.size)))
    return bool((rows == rows[:, :1]).all()) or bool((rows[-1] == rows[-1, -1]).all())


def lacks_scans(data: bytes) -> bool:
    """Whether a progressive file lacks a scan: each coefficient must come to its last bit."""
    precision: dict[int, list[int]] = {}
    progressive = False
    at = 2
    while 0 <= at < len(data) - 3:
        if data[at] != 0xFF or data[at + 1] in {0x00, 0xFF} or data[at + 1] in _STANDALONE:
            at = data.find(b"\xff", at + 1)  # within a scan
            continue
        marker = data[at + 1]
        if marker == END[1]:
            break
        length = struct.unpack_from(">H", data, at + 2)[0]
        body = data[at + 4 : at + 2 + length]
        if marker in {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}:
            progressive = marker in _PROGRESSIVE
            precision = {body[6 + 3 * i]: [99] * 64 for i in range(body[5])}
        elif marker == _SCAN:
            count = body[0]
            first, last, bits = body[1 + 2 * count : 4 + 2 * count]
            for component in body[1 : 1 + 2 * count : 2]:
                levels = precision.get(component, [0] * 64)
                for place in range(first, min(last, 63) + 1):
                    levels[place] = bits & 15 if progressive else 0
        at += 2 + length
    if progressive:
        return any(level for levels in precision.values() for level in levels)
    return any(levels[0] == 99 for levels in precision.values())


def unsupported(data: bytes) -> tuple[str, str] | None:
    """Name a JPEG file of a kind that libjpeg does not read here: what it is, what to do."""
    at = 2
    while data[:2] == b"\xff\xd8" and at < len(data) - 9 and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            if marker in {0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF}:
                return "a lossless or hierarchical JPEG", "convert it to PNG or TIFF"
            if data[at + 4] != 8:
                return f"a JPEG of {data[at + 4]} bits a sample", "convert it to PNG or TIFF"
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if marker != 0xFF else 1
    return None
