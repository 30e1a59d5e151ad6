"""Grey levels of a reduced picture, on which what it holds is judged."""

from __future__ import annotations

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

Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def reduced(pixels: npt.NDArray[Any], side: int) -> tuple[Plane, int]:
    """Grey levels 0 to 255 at a whole fraction of the size, and the divisor."""
    factor = max(1, -(-max(pixels.shape[:2]) // side))
    if pixels.dtype != np.uint8:  # decimated first, since Pillow has no 16-bit colour
        step = max(1, factor // 2)
        pixels = np.rint(np.clip(pixels[::step, ::step], 0, 1) * 255).astype(np.uint8)
        image = Image.fromarray(pixels).convert("L").reduce(max(1, factor // step))
        return np.asarray(image, dtype=np.float32), step * max(1, factor // step)
    image = Image.fromarray(pixels).reduce(factor) if factor > 1 else Image.fromarray(pixels)
    return np.asarray(image.convert("L"), dtype=np.float32), factor
