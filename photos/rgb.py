"""Photos in colour as translation takes and gives them: sRGB, (x - 0.5) / 0.5."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pikfix.photos.color import in_bands

_ROWS = 128
_SAME = 1
"""Levels of 255 by which channels of a grey pixel may differ: that of rounding."""


def photo_rgb(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A whole photo as translation takes it.

    Args:
        pixels: [H, W] grey or [H, W, 3] sRGB; uint8, or floating point in [0, 1].

    Returns:
        [3, H, W] float32 in [-1, 1].
    """
    scale = np.float32(2 / 255 if pixels.dtype == np.uint8 else 2)
    out = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel, plane in enumerate(out):
        source = pixels if pixels.ndim == 2 else pixels[..., channel]
        np.multiply(source, scale, out=plane, casting="unsafe")
        np.subtract(plane, np.float32(1), out=plane)
    return out


def rgb_levels(rgb: npt.NDArray[np.float32], *, deep: bool = False) -> npt.NDArray[Any]:
    """The inverse of `photo_rgb`; values outside [-1, 1] are clipped, never stretched.

    Returns:
        [H, W, 3] uint8, or uint16 with ``deep``.
    """
    top = np.float32(65535 if deep else 255)
    out = np.empty((*rgb.shape[1:], 3), np.uint16 if deep else np.uint8)

    def convert(band: slice) -> None:
        for start in range(band.start, band.stop, _ROWS):
            rows = slice(start, min(start + _ROWS, band.stop))
            for channel, plane in enumerate(rgb[:, rows]):
                unit = np.clip(plane, -1, 1) * np.float32(0.5) + np.float32(0.5)
                out[rows, :, channel] = np.rint(unit * top)

    in_bands(out.shape[0], out.shape[1], convert)
    return out


def is_grey(pixels: npt.NDArray[Any]) -> bool:
    """Whether a photo is grey: it has one channel, or its channels say the same everywhere.

    Args:
        pixels: [H, W] or [H, W, 3]; uint8, or floating point in [0, 1].
    """
    if pixels.ndim == 2:
        return True
    same = _SAME if pixels.dtype == np.uint8 else _SAME / 255
    for start in range(0, pixels.shape[0], _ROWS):
        rows = pixels[start : start + _ROWS]
        if rows.dtype == np.uint8:
            rows = rows.astype(np.int16)
        if (np.abs(rows[..., 1:] - rows[..., :1]) > same).any():
            return False
    return True
