"""Pixels to picture files, with what the input says about its photo."""

from __future__ import annotations

import io
import math
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from pikfix.photos import attach, metadata
from pikfix.photos.embedded import Texts
from pikfix.photos.errors import PhotoError
from pikfix.photos.profiles import srgb_profile
from pikfix.protocol.options import DEFAULT_QUALITY, FORMATS

_LONGEST_SIDE = {"jpeg": 65535, "webp": 16383}
# From here on JPEG keeps colour at full resolution.
_FULL_CHROMA_QUALITY = 90
_EXIF_LIMIT = 65533
_EXIF_HEADER = b"Exif\x00\x00"
_STRIP_BYTES = 1 << 20
# Three times as fast as zlib's default level and a few percent larger.
_DEFLATE_LEVEL = 3


def check_format(name: str, size: tuple[int, int]) -> None:
    """Check that a format can hold a picture of (height, width).

    Raises:
        PhotoError: ``bad_options``.
    """
    if name not in FORMATS:
        raise PhotoError("bad_options", f"format {name!r} is unknown: use {', '.join(FORMATS)}")
    longest = _LONGEST_SIDE.get(name, math.inf)
    if max(size) > longest:
        raise PhotoError(
            "bad_options",
            f"{name} holds at most {longest} pixels a side, the photo has {size[1]} x {size[0]}:"
            " use format png or tiff",
        )


def holds_deep(name: str, *, grey: bool) -> bool:
    """Whether results of this format are written with 16 bits where the photo had them."""
    return name == "tiff" or (name == "png" and grey)


def encode_photo(
    pixels: npt.NDArray[Any],
    name: str,
    *,
    quality: int = DEFAULT_QUALITY,
    exif: bytes = b"",
    dpi: tuple[float, float] | None = None,
    xmp: bytes = b"",
    iptc: bytes = b"",
    texts: Texts = (),
    icc: bytes = b"",
) -> tuple[bytes, list[str]]:
    """Encode a picture.

    Args:
        pixels: [H, W] grey or [H, W, 3] colour, sRGB unless ``icc`` says else; uint8, or uint16
            where :func:`holds_deep`.
        name: jpeg, png, tiff or webp.
        quality: 1 to 100, for jpeg and webp; JPEG stores colour at full resolution from 90 on.
        exif: block to store, as :class:`~pikfix.photos.decode.Photo` has it.
        dpi: resolution to store.
        xmp: XMP packet to store, likewise.
        iptc: IPTC-IIM datasets to store.
        texts: comments to store, pairs of a keyword and a text.
        icc: colour profile that the pixels are in; empty: sRGB.

    Returns:
        The file's bytes and a list of warnings, of what the format has no place for.

    Raises:
        PhotoError: ``bad_options``, an unknown format or one that cannot hold the picture.
    """
    check_format(name, (pixels.shape[0], pixels.shape[1]))
    grey = pixels.ndim == 2
    if pixels.dtype == np.uint16 and not holds_deep(name, grey=grey):
        raise PhotoError("bad_options", f"{name} cannot hold 16-bit pixels: use format tiff")
    warnings: list[str] = []
    if name in {"tiff", "webp"}:
        exif, warnings = attach.exif_with_texts(exif, texts)
    if name == "jpeg" and len(exif) > _EXIF_LIMIT:
        warnings.append("the EXIF block is too long for JPEG and was dropped")
        exif = b""
    if name == "webp" and dpi is not None:
        exif = _exif_with_resolution(exif, dpi)
    if name == "tiff":
        return _tiff(pixels, exif, dpi, (xmp, iptc), icc), warnings

    image = Image.fromarray(pixels)
    settings, without_place = attach.settings_of(name, xmp, iptc, texts)
    warnings += without_place
    if dpi is not None:
        settings["dpi"] = dpi
    if exif:
        settings["exif"] = exif
    if name == "jpeg":
        settings["quality"] = quality
        settings["subsampling"] = "4:4:4" if quality >= _FULL_CHROMA_QUALITY else "4:2:0"
        if dpi is not None:  # JFIF stores whole numbers
            settings["dpi"] = (round(dpi[0]), round(dpi[1]))
    elif name == "webp":
        settings["quality"] = quality
    else:
        settings["compress_level"] = _DEFLATE_LEVEL
    if icc or not grey:
        settings["icc_profile"] = icc or srgb_profile()
    file = io.BytesIO()
    image.save(file, name.upper(), **settings)
    return file.getvalue(), warnings


def _exif_with_resolution(exif: bytes, dpi: tuple[float, float]) -> bytes:
    """WebP has no field of its own for the resolution."""
    block = metadata.editable(exif)
    block[282], block[283], block[296] = dpi[0], dpi[1], 2
    return block.tobytes()


def _tiff(
    pixels: npt.NDArray[Any],
    exif: bytes,
    dpi: tuple[float, float] | None,
    packets: tuple[bytes, bytes],
    icc: bytes,
) -> bytes:
    """Write TIFF, 8 or 16 bits, deflate with horizontal prediction.

    Pillow's writer has no 16-bit colour and, where it compresses, no EXIF. Its directory class
    has both, and counts the offsets of the strips from the directory's own end.
    """
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    bits = 8 * pixels.itemsize
    rows = max(1, _STRIP_BYTES // (pixels.itemsize * samples * width))
    strips = [_compressed(pixels[top : top + rows]) for top in range(0, height, rows)]
    lengths = [len(strip) for strip in strips]
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    if exif:
        for tag, value in dict(metadata.editable(exif)).items():
            directory[tag] = value
    for tag, packet in zip((700, 33723), packets, strict=True):  # XMP, IPTC
        if packet:
            directory.tagtype[tag] = 1 if tag == 700 else 7
            directory[tag] = packet
    if dpi is not None:
        directory[282], directory[283], directory[296] = dpi[0], dpi[1], 2
    directory[256], directory[257] = width, height
    directory[258] = (bits,) * samples
    directory[259] = 8  # deflate, as Adobe defines it
    directory[262] = 2 if samples == 3 else 1  # RGB, or grey with black as zero
    directory[273] = tuple(int(offset) for offset in np.cumsum([0, *lengths[:-1]]))
    directory[277] = samples
    directory[278] = rows
    directory[279] = tuple(lengths)
    directory[284] = 1  # samples of a pixel lie together
    directory[317] = 2  # horizontal prediction
    if icc or samples == 3:
        directory.tagtype[34675] = 7  # bytes of undefined type
        directory[34675] = icc or srgb_profile()
    file = io.BytesIO()
    directory.save(file)
    for strip in strips:
        file.write(strip)
    return file.getvalue()


def _compressed(rows: npt.NDArray[Any]) -> bytes:
    predicted = rows.astype(rows.dtype.newbyteorder("<"))
    predicted[:, 1:] -= rows[:, :-1]
    return zlib.compress(predicted.tobytes(), _DEFLATE_LEVEL)
