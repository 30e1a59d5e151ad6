"""A drawn face takes the tones of the one that it replaces, and is let into the photo."""

from __future__ import annotations

import numpy as np

from pikfix.systems.latent.faces.detection import Array, opencv

_LEVELS = 256
_ERODED = 3  # times, by a square of 9 x 9
_SQUARE = 9
_FEATHER = 25  # side of the Gaussian, whose deviation OpenCV takes from it: 4.1
REACH = _ERODED * (_SQUARE // 2) + _FEATHER // 2
"""Pixels around a mask that its edge depends on."""


def matched(source: Array, reference: Array, inside: Array) -> Array:
    """Give a picture the histogram of another, channel by channel.

    Each of 256 levels becomes the first one whose share of the reference's pixels at or below it
    is at least the level's own share. What lies between two levels that the source has becomes
    what lies between theirs.

    Args:
        source: `[H, W, 3]` in [0, 255].
        reference: `[H, W, 3]` in [0, 255].
        inside: `[H, W]`, above 0 for the pixels that are counted.
    """
    counted = inside > 0
    if not counted.any():
        return source
    out = np.empty_like(source)
    for channel in range(source.shape[2]):
        shares, wanted = (_shares(x[..., channel][counted]) for x in (source, reference))
        levels = np.flatnonzero(np.diff(shares, prepend=0))
        table = np.searchsorted(wanted, shares[levels], side="left")
        out[..., channel] = np.interp(source[..., channel], levels, table)
    return out


def _shares(values: Array) -> Array:
    levels = np.clip(np.rint(values), 0, _LEVELS - 1).astype(np.int64)
    counts = np.bincount(levels.ravel(), minlength=_LEVELS).cumsum()
    # Whole numbers over one number: equal shares are equal to the last bit.
    shares: Array = counts / counts[-1]
    return shares


def feathered(inside: Array) -> Array:
    """A mask of 0 and 1, narrower by 12 pixels, with a soft edge that ends where it ended."""
    cv2 = opencv()
    square = np.ones((_SQUARE, _SQUARE), np.uint8)
    narrow = cv2.erode(inside, square, iterations=_ERODED)
    soft: Array = cv2.GaussianBlur(narrow, (_FEATHER, _FEATHER), 0)
    return soft


def blended(photo: Array, drawn: Array, mask: Array) -> Array:
    """`photo` where the mask is 0, to the last bit, `drawn` where it is 1; `[H, W, 3]`."""
    out: Array = photo + mask[..., None] * (drawn - photo)
    return out
