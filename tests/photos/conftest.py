"""Files that no library here writes: 16-bit colour PNG, false headers, small ICC profiles."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from skimage import data


@pytest.fixture(autouse=True)
def _own_pixel_limit():
    limit = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture(scope="session")
def rgb():
    return np.ascontiguousarray(data.astronaut()[40:140, 160:280])


@pytest.fixture(scope="session")
def save():
    """Encode an array or image with Pillow: save(pixels, "PNG", **settings) -> bytes."""

    def encode(picture, name, **settings):
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        file = io.BytesIO()
        image.save(file, name, **settings)
        return file.getvalue()

    return encode


@pytest.fixture(scope="session")
def png():
    """Build a PNG by hand: png(pixels) of uint8 or uint16 colour; size overrides the header."""

    def build(pixels, size=None):
        height, width = size or pixels.shape[:2]
        depth = 8 * pixels.itemsize
        big = pixels.astype(pixels.dtype.newbyteorder(">"))
        rows = b"".join(b"\0" + row.tobytes() for row in big)
        header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )

    return build


@pytest.fixture(scope="session")
def profile():
    """Build an ICC v2 profile of a pure power curve: profile("GRAY" or "RGB ", gamma)."""

    def s15(value):
        return struct.pack(">i", round(value * 65536))

    def xyz(*values):
        return b"XYZ \0\0\0\0" + b"".join(map(s15, values))

    def build(space, gamma):
        curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
        text = b"a power curve\0"
        description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
        tags = {
            b"desc": description + bytes(-len(description) % 4),
            b"cprt": b"text\0\0\0\0none\0\0\0\0",
            b"wtpt": xyz(0.9642, 1.0, 0.8249),
        }
        if space == "GRAY":
            tags[b"kTRC"] = curve
        else:  # sRGB's primaries, adapted to D50
            tags |= {
                b"rXYZ": xyz(0.43607, 0.22249, 0.01392),
                b"gXYZ": xyz(0.38515, 0.71687, 0.09708),
                b"bXYZ": xyz(0.14307, 0.06061, 0.71410),
                b"rTRC": curve,
                b"gTRC": curve,
                b"bTRC": curve,
            }
        offset = 128 + 4 + 12 * len(tags)
        table, body = struct.pack(">I", len(tags)), b""
        for name, content in tags.items():
            table += name + struct.pack(">II", offset + len(body), len(content))
            body += content
        head = struct.pack(">I4sI4s4s4s", offset + len(body), b"\0\0\0\0", 0x02100000, b"mntr",
                           space.encode(), b"XYZ ")  # fmt: skip
        head += bytes(12) + b"acsp" + bytes(28) + s15(0.9642) + s15(1.0) + s15(0.8249)
        return head.ljust(128, b"\0") + table + body

    return build
