"""What Pillow leaves unread in PNG files: their colours, and how much is left of cut ones.

Colour follows PNG, third edition, section 4.3: of the chunks present the first of cICP, iCCP,
sRGB, and gAMA with cHRM counts.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# As libpng judges: what is this close to sRGB's own gamma is taken as sRGB.
_GAMMA_SLACK = 0.05
_SRGB_CHROMATICITIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_CICP_PRIMARIES = {
    1: _SRGB_CHROMATICITIES,
    9: (0.3127, 0.3290, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_CICP_POWERS = {4: 2.2, 5: 2.8, 8: 1.0}
# Those of video are shown on a display whose curve is sRGB's, near enough.
_CICP_LIKE_SRGB = frozenset({1, 2, 6, 13, 14, 15})
_CICP_HDR = {16: "PQ", 18: "HLG"}
_ROWS = 64


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How samples stand for light.

    Attributes:
        power: light is sample ** power; None: sRGB's curve.
        primaries: x, y of white, red, green and blue; None: sRGB's.
        overrides_profile: whether it counts before an ICC profile (cICP).
        hdr: the name of a curve that is not converted, or None.
    """

    power: float | None = None
    primaries: tuple[float, ...] | None = None
    overrides_profile: bool = False
    hdr: str | None = None

    @property
    def is_srgb(self) -> bool:
        """Whether samples are sRGB as they are."""
        return self.power is None and self.primaries is None

    def to_srgb(self, pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Convert [H, W] or [H, W, 3] in [0, 1] to sRGB."""
        matrix = None
        if pixels.ndim == 3 and self.primaries is not None:
            matrix = np.linalg.inv(_to_xyz(_SRGB_CHROMATICITIES)) @ _to_xyz(self.primaries)
            # White stays white, whichever the file has.
            matrix = (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)
        out = np.empty_like(pixels)
        for top in range(0, len(pixels), _ROWS):
            light = self._light(pixels[top : top + _ROWS])
            if matrix is not None:
                light = np.clip(light @ matrix.T, 0.0, 1.0)
            out[top : top + _ROWS] = _srgb_of(light)
        return out

    def applied(self, image: Image.Image) -> Image.Image:
        """Convert a picture of mode L or RGB to sRGB."""
        if image.mode == "L" or self.primaries is None:
            return image.point(self.table().tolist() * len(image.getbands()))
        unit = np.asarray(image).astype(np.float32) / np.float32(255)
        return Image.fromarray(np.rint(self.to_srgb(unit) * 255.0).astype(np.uint8))

    def table(self) -> npt.NDArray[np.uint8]:
        """Return the sRGB level [256] of each 8-bit level, for grey and for sRGB's primaries."""
        ramp = np.arange(256, dtype=np.float32) / np.float32(255)
        levels: npt.NDArray[np.float32] = self.to_srgb(ramp[None])[0] * 255.0
        return np.rint(levels).astype(np.uint8)

    def _light(self, samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if self.power is not None:
            return samples ** np.float32(self.power)
        linear = ((samples + 0.055) / 1.055) ** np.float32(2.4)
        return np.where(samples > 0.04045, linear, samples / 12.92).astype(np.float32)


def _srgb_of(light: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    curved = 1.055 * light ** np.float32(1 / 2.4) - 0.055
    return np.where(light > 0.0031308, curved, 12.92 * light).astype(np.float32)


def _to_xyz(chromaticities: tuple[float, ...]) -> npt.NDArray[np.float64]:
    points = np.array(chromaticities, np.float64).reshape(4, 2)
    xyz = np.stack([points[:, 0], points[:, 1], 1 - points.sum(axis=1)]) / points[:, 1]
    white, primaries = xyz[:, 0], xyz[:, 1:]
    scaled: npt.NDArray[np.float64] = primaries * np.linalg.solve(primaries, white)
    return scaled


def encoding_of(data: bytes) -> Encoding:
    """Read what the chunks before the picture say about its colours."""
    found: dict[bytes, bytes] = {}
    at = len(SIGNATURE)
    while at + 8 <= len(data) and data[at + 4 : at + 8] != b"IDAT":
        size = int.from_bytes(data[at : at + 4], "big")
        if size <= 64:
            found.setdefault(data[at + 4 : at + 8], data[at + 8 : at + 8 + size])
        else:
            found.setdefault(data[at + 4 : at + 8], b"")
        at += 12 + size
    code = found.get(b"cICP", b"")
    if len(code) == 4 and code[2] == 0:
        return _of_code_points(code[0], code[1])
    if b"sRGB" in found or b"iCCP" in found:
        return Encoding()
    power = primaries = None
    if len(found.get(b"gAMA", b"")) == 4:
        gamma = int.from_bytes(found[b"gAMA"], "big") / 100000
        if 0.02 < gamma < 50 and abs(gamma * 2.2 - 1.0) > _GAMMA_SLACK:
            power = 1.0 / gamma
    if len(found.get(b"cHRM", b"")) == 32:
        primaries = _usable(tuple(one / 100000 for one in struct.unpack(">8I", found[b"cHRM"])))
    return Encoding(power, primaries)


def _usable(primaries: tuple[float, ...]) -> tuple[float, ...] | None:
    """Leave out primaries that are sRGB's, or none at all."""
    if max(abs(a - b) for a, b in zip(primaries, _SRGB_CHROMATICITIES, strict=True)) < 0.003:
        return None
    points = np.array(primaries).reshape(4, 2)
    if not ((points[:, 1] > 0.001) & (points[:, 0] < 1) & (points[:, 1] < 1.2)).all():
        return None
    red, green, blue = points[1:]
    area = np.cross(np.append(green - red, 0), np.append(blue - red, 0))[2]
    return primaries if abs(area) > 0.01 else None


def _of_code_points(primaries: int, transfer: int) -> Encoding:
    points = _CICP_PRIMARIES.get(primaries)
    known = transfer in _CICP_LIKE_SRGB or transfer in _CICP_POWERS
    return Encoding(
        _CICP_POWERS.get(transfer),
        _usable(points) if points else None,
        overrides_profile=True,
        hdr=None if known else _CICP_HDR.get(transfer, f"transfer {transfer}"),
    )


def is_whole(data: bytes) -> bool:
    """Whether the file has its end marker."""
    return b"IEND" in data[-4096:] or b"IEND" in data  # with or without something behind it


def completed(data: bytes) -> bytes | int:
    """Complete a file that was cut off behind its last row.

    Returns:
        The completed file, or the number of whole rows that are there (0 of an interlaced one).
    """
    header = data[16:29]
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 1)
    row = 1 + (width * bits + 7) // 8
    expected = _interlaced_size(width, height, bits) if interlaced else row * height
    kept, body = [], b""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if name == b"IDAT":
            body += data[at + 8 : at + 8 + size]
        elif not body and at + 12 + size <= len(data):
            kept.append(data[at : at + 12 + size])
        at += 12 + size
    try:
        inflated = zlib.decompressobj().decompress(body, expected)
    except zlib.error:
        return 0
    if len(inflated) < expected:
        return 0 if interlaced else len(inflated) // row
    packed = zlib.compress(inflated, 1)
    return SIGNATURE + b"".join(kept) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(name: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + body))
    return struct.pack(">I", len(body)) + name + body + checksum


def _interlaced_size(width: int, height: int, bits: int) -> int:
    total = 0
    for left, top, across, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
        (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
    ):  # fmt: skip
        columns = (width - left + across - 1) // across
        rows = (height - top + down - 1) // down
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total
