"""Masks that come with a photo: what of it is damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.photos.decode import decode_photo
from pikfix.photos.errors import PhotoError

_ASPECT = 0.01
"""How far the aspect of a mask of another size may be from the photo's."""


def decode_mask(file: bytes, size: tuple[int, int], max_pixels: int) -> npt.NDArray[np.float32]:
    """Read the mask of a photo: black is sound, white is damaged.

    Args:
        file: an encoded picture; what has colours counts by its brightest channel.
        size: (height, width) of the upright photo; a mask of another size is scaled to it.
        max_pixels: limit.

    Returns:
        [height, width] float32 in [0, 1].

    Raises:
        PhotoError: ``bad_options``, where it cannot be read or is of another shape.
    """
    try:
        pixels = decode_photo(file, max_pixels).pixels
    except PhotoError as error:
        raise PhotoError("bad_options", f"the mask: {error.message}") from error
    height, width = pixels.shape[:2]
    if abs(height * size[1] - width * size[0]) > _ASPECT * height * size[1]:
        raise PhotoError(
            "bad_options",
            f"the mask is {width} x {height}, the photo {size[1]} x {size[0]}: send a mask of the "
            "photo's size, or of its shape",
        )
    plane: npt.NDArray[Any] = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    unit = plane.astype(np.float32)
    if plane.dtype == np.uint8:
        unit /= 255
    if (height, width) != size:
        # The mean of what is shrunk: a line stays a fainter line, and none falls between pixels.
        how = Image.Resampling.BOX if height > size[0] else Image.Resampling.BILINEAR
        unit = np.asarray(Image.fromarray(unit).resize((size[1], size[0]), how))
    return np.clip(unit, 0.0, 1.0)
