"""Colour of more than 8 bits in files of which Pillow keeps 8, by the codecs that keep all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

# Two decoders round differently, and AVIF's and HEIC's chroma is enlarged by one of them.
_TOLERANCE = 3.0


def _png(data: bytes) -> npt.NDArray[Any]:
    from imagecodecs import png_decode  # noqa: PLC0415 - need not be installed

    stored: npt.NDArray[Any] = png_decode(data)
    return stored


def _jpeg2000(data: bytes) -> npt.NDArray[Any]:
    from imagecodecs import jpeg2k_decode  # noqa: PLC0415 - as above

    stored: npt.NDArray[Any] = jpeg2k_decode(data)
    return stored


def _avif(data: bytes) -> npt.NDArray[Any]:
    from imagecodecs import avif_decode  # noqa: PLC0415 - as above

    stored: npt.NDArray[Any] = avif_decode(data)
    return stored


_DECODERS: Mapping[str, Callable[[bytes], npt.NDArray[Any]]] = MappingProxyType(
    {"PNG": _png, "JPEG2000": _jpeg2000, "AVIF": _avif}
)


def read(data: bytes, name: str, bits: int) -> npt.NDArray[np.float32] | None:
    """Decode a file in colour.

    Args:
        data: the file.
        name: its format, as Pillow calls it.
        bits: per sample.

    Returns:
        [H, W, 3] or, with alpha, [H, W, 4] in [0, 1]; None where no codec gives more than Pillow.
    """
    decode = _DECODERS.get(name)
    if decode is None or bits <= 8:
        return None
    try:
        stored = decode(data)
    # Not installed, or damaged: it is read again by Pillow, whose error is the one that is told.
    except Exception:
        return None
    if stored.dtype != np.uint16 or stored.ndim != 3 or stored.shape[-1] not in {3, 4}:
        return None
    unit: npt.NDArray[np.float32] = stored.astype(np.float32) / np.float32((1 << bits) - 1)
    return np.minimum(unit, np.float32(1))


def agrees(unit: npt.NDArray[np.float32], shown: Image.Image) -> bool:
    """Whether deep pixels are the picture that Pillow shows: upright alike, in the same colours."""
    levels = np.asarray(shown.convert("RGB"))
    if levels.shape[:2] != unit.shape[:2]:
        return False
    step = max(1, min(levels.shape[:2]) // 256)
    apart = unit[::step, ::step, :3] * np.float32(255) - levels[::step, ::step]
    return float(np.abs(apart).mean()) < _TOLERANCE
