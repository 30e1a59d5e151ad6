"""Photoshop documents: their resources, and deep ones, of which Pillow reads none."""

from __future__ import annotations

import struct

from pikfix.photos.errors import PhotoError

SIGNATURE = b"8BPS\0\x01"
IPTC, RESOLUTION, EXIF, XMP = 1028, 1005, 1058, 1060
_ICC = 1039
_REMEDY = "save it as TIFF, grey or RGB, with 8 or 16 bits a sample"
_CHANNELS = {1: 1, 3: 3}
_MODES = ("bitmap", "grey", "indexed", "RGB", "CMYK", "", "", "multichannel", "duotone", "Lab")


def resources_of(block: bytes) -> dict[int, bytes]:
    """Split a block of Photoshop image resources; what is broken at its end is left out."""
    found: dict[int, bytes] = {}
    at = 0
    while block[at : at + 4] in {b"8BIM", b"MeSa", b"PHUT", b"AgHg", b"DCSR"}:
        name = at + 6
        if name >= len(block):
            break
        start = name + 1 + block[name] + (block[name] + 1) % 2
        size = int.from_bytes(block[start : start + 4], "big")
        if start + 4 + size > len(block):
            break
        number = int.from_bytes(block[at + 4 : at + 6], "big")
        found.setdefault(number, block[start + 4 : start + 4 + size])
        at = start + 4 + size + size % 2
    return found


def resource(number: int, content: bytes) -> bytes:
    """Return one image resource as it is stored."""
    head = b"8BIM" + struct.pack(">HHI", number, 0, len(content))
    return head + content + b"\0" * (len(content) % 2)


def document_resources(data: bytes) -> dict[int, bytes]:
    """Return the image resources of a document."""
    try:
        start, end = _section(data, _section(data, 26)[1])
    except struct.error:
        return {}
    return resources_of(data[start:end])


def _section(data: bytes, at: int) -> tuple[int, int]:
    """Return where the content of a section starts and ends."""
    size = struct.unpack_from(">I", data, at)[0]
    return at + 4, at + 4 + size


def is_deep(data: bytes) -> bool:
    """Whether it is a document of another depth than 1 or 8 bits."""
    return data.startswith(SIGNATURE) and data[22:24] not in {b"\0\x01", b"\0\x08"}


def as_tiff(data: bytes) -> bytes:
    """Wrap the flattened picture of a 16-bit document into a TIFF file.

    Both store planes of big-endian samples, raw or with each row packed in the same way.

    Raises:
        PhotoError: ``unsupported_photo``; ``bad_photo`` where it is cut off.
    """
    try:
        channels, height, width, depth, mode = struct.unpack_from(">HIIHH", data, 12)
        image = _section(data, _section(data, _section(data, 26)[1])[1])[1]
        packed = struct.unpack_from(">H", data, image)[0]
    except struct.error as error:
        raise PhotoError(
            "bad_photo", "the PSD file ends before its picture: send the complete file"
        ) from error
    samples = _CHANNELS.get(mode, 0)
    if depth != 16 or not samples or channels < samples or packed not in {0, 1}:
        name = _MODES[mode] if mode < len(_MODES) else str(mode)
        raise PhotoError(
            "unsupported_photo",
            f"a Photoshop document of {depth} bits, mode {name}, is not supported: {_REMEDY}",
        )
    start = image + 2
    if packed:
        if start + 2 * channels * height > len(data):
            raise PhotoError(
                "bad_photo", "the PSD file ends before its picture: send the complete file"
            )
        rows = struct.unpack_from(f">{channels * height}H", data, start)
        start += 2 * channels * height
        sizes = [sum(rows[plane * height : (plane + 1) * height]) for plane in range(samples)]
    else:
        sizes = [2 * width * height] * samples
    offsets = [start + sum(sizes[:plane]) for plane in range(samples)]
    if offsets[-1] + sizes[-1] > len(data):
        have = max(0, len(data) - start) / max(1, sum(sizes))
        raise PhotoError(
            "bad_photo",
            f"the PSD file is cut off: {have:.0%} of its picture is there: send the complete file",
        )
    profile = document_resources(data).get(_ICC, b"")
    return _tiff(data, (width, height), bool(packed), (offsets, sizes), profile)


def _tiff(
    data: bytes,
    size: tuple[int, int],
    packed: bool,
    planes: tuple[list[int], list[int]],
    profile: bytes,
) -> bytes:
    (width, height), (offsets, sizes) = size, planes
    samples = len(offsets)
    tail = bytearray(len(data) % 2)

    def stored(form: str, values: list[int]) -> int:
        content = struct.pack(f">{len(values)}{form}", *values)
        if len(content) <= 4:
            return int.from_bytes(content.ljust(4, b"\0"), "big")
        at = 8 + len(data) + len(tail)
        tail.extend(content + b"\0" * (len(content) % 2))
        return at

    entries = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, samples, stored("H", [16] * samples)),
        (259, 3, 1, (32773 if packed else 1) << 16),
        (262, 3, 1, (2 if samples == 3 else 1) << 16),
        (273, 4, samples, stored("I", [8 + offset for offset in offsets])),
        (277, 3, 1, samples << 16),
        (278, 4, 1, height),
        (279, 4, samples, stored("I", sizes)),
        (284, 3, 1, (2 if samples > 1 else 1) << 16),
    ]
    if profile:
        entries.append((34675, 7, len(profile), stored("B", list(profile))))
    directory = struct.pack(">H", len(entries))
    directory += b"".join(struct.pack(">HHII", *entry) for entry in entries) + bytes(4)
    head = b"MM\0*" + struct.pack(">I", 8 + len(data) + len(tail))
    return head + data + bytes(tail) + directory
