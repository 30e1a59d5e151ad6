"""Masks that come with a photo: what of it is damaged, and how that is filled."""

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


def filled(pixels: npt.NDArray[Any], marked: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    """Fill what is marked smoothly from its surroundings.

    Pull and push (Gortler et al., The Lumigraph, SIGGRAPH 1996) down to a single pixel: a hole of
    any size closes.

    Args:
        pixels: [H, W] or [H, W, 3]; uint8, or floating point in [0, 1].
        marked: [H, W] in [0, 1]; from a quarter on nothing of the photo is trusted there.

    Returns:
        As `pixels`, and the same wherever nothing is marked.

    Raises:
        PhotoError: ``bad_options``, where all of the photo is marked.
    """
    known = np.clip(1 - 4 * marked, 0, 1)
    if not known.any():
        raise PhotoError(
            "bad_options", "the mask marks all of the photo: leave black what is to be kept"
        )
    out = pixels.copy()
    touched = marked > 0
    for plane in [out] if out.ndim == 2 else [out[..., channel] for channel in range(3)]:
        values = _pushed(plane.astype(np.float32), known)[touched]
        plane[touched] = np.rint(values) if plane.dtype == np.uint8 else values
    return out


def _pushed(
    values: npt.NDArray[np.float32], known: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Values [H, W] as far as they are known, and beyond that those of half the size."""
    height, width = values.shape
    if max(height, width) == 1 or known.min() >= 1:
        return values
    share = _quartered(known)
    means = _quartered(values * known) / np.maximum(share, np.float32(1e-6))
    # A quarter of a pixel's area that is known is enough to know it.
    coarse = _pushed(means, np.minimum(4 * share, 1))
    size = (2 * coarse.shape[1], 2 * coarse.shape[0])
    finer = Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR)
    out: npt.NDArray[np.float32] = known * values
    out += (1 - known) * np.asarray(finer)[:height, :width]
    return out


def _quartered(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Means of 2 x 2 places; an odd edge counts twice."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    out: npt.NDArray[np.float32] = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).mean(
        axis=(1, 3)
    )
    return out
