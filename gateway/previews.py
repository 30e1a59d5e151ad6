"""Pictures as a browser shows them, and a result with fainter colours."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.gateway.problems import Problem
from pikfix.photos import (
    PhotoError,
    decode_photo,
    encode_photo,
    grey_from_luminance,
    photo_luminance,
)
from pikfix.photos.encode import holds_deep

LARGEST_SIDE = 4096
_QUALITY = 92


class Previews:
    """Decodes one picture at a time: a large one needs memory."""

    def __init__(self) -> None:
        self._one_at_a_time = asyncio.Lock()

    async def small(self, path: Path, side: int) -> bytes:
        """A JPEG of a picture file, upright, in sRGB, with a long side of at most ``side``.

        Raises:
            Problem: 422; it cannot be read.
        """
        async with self._one_at_a_time:
            return await self._do(_small, path, side)

    async def fainter(self, path: Path, format: str, strength: float, quality: int) -> bytes:
        """A result with a share of its colours, in sRGB; see :func:`faded`.

        Raises:
            Problem: 422; it cannot be read.
        """
        async with self._one_at_a_time:
            return await self._do(_fainter, path, format, strength, quality)

    @staticmethod
    async def _do(function: Any, *args: Any) -> bytes:
        try:
            data: bytes = await asyncio.to_thread(function, *args)
        except PhotoError as error:
            raise Problem(
                422, error.code, "The picture cannot be given so", error.message
            ) from error
        return data


def _small(path: Path, side: int) -> bytes:
    pixels = decode_photo(path.read_bytes(), shrink_to=side).pixels
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, subsampling="4:4:4")
    return buffer.getvalue()


def faded(pixels: npt.NDArray[Any], strength: float) -> npt.NDArray[Any]:
    """Mix a picture with the grey of the same luminance.

    The mix is that of sRGB values, as a browser makes it of two pictures one over the other: what
    is saved is what was seen there.

    Args:
        pixels: [H, W, 3], uint8 or floating point in [0, 1].
        strength: share of the colours, 0 to 1.

    Returns:
        As ``pixels``; [H, W] grey with ``strength`` 0.
    """
    deep = pixels.dtype != np.uint8
    grey = grey_from_luminance(photo_luminance(pixels), deep=deep)
    if deep:
        grey = grey.astype(np.float32) / np.float32(65535)
    if strength == 0:
        return grey
    mixed = pixels * np.float32(strength) + grey[..., None] * np.float32(1 - strength)
    return mixed if deep else np.rint(mixed).astype(np.uint8)


def _fainter(path: Path, format: str, strength: float, quality: int) -> bytes:
    photo = decode_photo(path.read_bytes())
    if photo.photos > 1:
        raise PhotoError(
            "bad_options",
            f"the result holds {photo.photos} photos, of which one alone would be left: restore the"
            ' file with {"pages": "first"} for fainter colours, or take the result as it is',
        )
    pixels = photo.pixels if photo.pixels.ndim == 2 else faded(photo.pixels, strength)
    if pixels.dtype != np.uint8:
        deep = holds_deep(format, grey=pixels.ndim == 2)
        peak, kind = (65535, np.uint16) if deep else (255, np.uint8)
        pixels = np.rint(pixels * np.float32(peak)).astype(kind)
    data, _ = encode_photo(
        pixels,
        format,
        quality=quality,
        exif=photo.exif,
        dpi=photo.dpi,
        xmp=photo.xmp,
        iptc=photo.iptc,
        texts=photo.texts,
    )
    return data
