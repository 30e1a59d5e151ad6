"""Grey levels of a reduced picture, on which what it holds is judged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

MIN_INSIDE, MAX_OUTSIDE = 0.72, 0.06
"""At an edge of a photo on paper: shares of pixels that are not paper, inside and outside of it."""
MIN_AREA = 0.15
"""Of the photo on its paper."""
MIN_DEPTH = 14.0
"""Grey levels between a margin and the middle of what is within it."""

Plane = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class Levels:
    """The grey levels of one picture, at whole fractions of its size.

    Attributes:
        pixels: the picture, [H, W] grey or [H, W, 3] sRGB; uint8, or floating point in [0, 1].
    """

    def __init__(self, pixels: npt.NDArray[Any]) -> None:
        self.pixels = pixels
        self._planes: dict[int, tuple[Plane, int]] = {}

    def within(self, side: int) -> tuple[Plane, int]:
        """Grey levels of the picture with its longer side at most ``side``, and the divisor.

        Those who ask for one size share one plane, which is not to be changed.
        """
        factor = max(1, -(-max(self.pixels.shape[:2]) // side))
        if factor not in self._planes:
            self._planes[factor] = _reduced(self.pixels, factor)
        return self._planes[factor]


def _reduced(pixels: npt.NDArray[Any], factor: int) -> tuple[Plane, int]:
    if pixels.dtype != np.uint8:  # decimated first, since Pillow has no 16-bit colour
        step = max(1, factor // 2)
        pixels = np.rint(np.clip(pixels[::step, ::step], 0, 1) * 255).astype(np.uint8)
        image = Image.fromarray(pixels).convert("L").reduce(max(1, factor // step))
        return np.asarray(image), step * max(1, factor // step)
    if factor == 1 and pixels.ndim == 2:
        return pixels, 1
    image = Image.fromarray(pixels).reduce(factor) if factor > 1 else Image.fromarray(pixels)
    return np.asarray(image.convert("L")), factor


def away_from(grey: Plane, tone: float, tolerance: float) -> Mask:
    """Which pixels lie more than a tolerance from a tone, all in levels.

    Bounds of whole levels, since bytes are compared many at a time.
    """
    low = max(0, math.ceil(tone - tolerance))
    high = min(255, math.floor(tone + tolerance))
    away: Mask = grey < low
    away |= grey > high
    return away


def median_distance(grey: Plane, tone: float) -> float:
    """The median of the pixels' distances from a tone, in levels.

    From the counts of the 256 levels: no pixel needs to be sorted.
    """
    apart = np.abs(np.arange(256) - tone)
    nearest = np.argsort(apart)
    below = np.cumsum(np.bincount(grey.ravel(), minlength=256)[nearest])
    # Of an even number of pixels there are two in the middle.
    middle = np.searchsorted(below, [(grey.size - 1) // 2, grey.size // 2], side="right")
    return float(apart[nearest[middle]].mean())
