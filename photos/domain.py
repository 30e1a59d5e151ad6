"""What part of a picture is a photo: borders around it, pages of text, drawings.

The networks were trained on photos alone. Paper around a photo gets a ragged edge from them, and
letters lose their strokes; both are found here, so that they can be left as they are.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pikfix.photos.borders import Rectangle, find_rectangle
from pikfix.photos.graphics import is_graphic
from pikfix.photos.levels import Levels, Mask
from pikfix.photos.turned import Corners, find_corners, inside

__all__ = ["Content", "Rectangle", "find_content", "photo_within"]

Kind = Literal["photo", "graphic"]

# Smaller pictures tell too little.
_MIN_SIDE = 48


@dataclasses.dataclass(frozen=True)
class Content:
    """What a picture holds.

    Attributes:
        kind: ``graphic`` for text, line drawings and whatever has two tones alone.
        rectangle: where the photo is, if there is a border around it; else None.
        corners: those of a photo that is turned within the rectangle, which is the least around
            it, as (x, y) in pixels of the picture; else None.
    """

    kind: Kind = "photo"
    rectangle: Rectangle | None = None
    corners: Corners | None = None

    @property
    def mask(self) -> Mask | None:
        """Which pixels of the rectangle are the photo; None where all are."""
        if self.rectangle is None or self.corners is None:
            return None
        return inside(self.corners, self.rectangle.top, self.rectangle.left, self.rectangle.size)


def find_content(pixels: npt.NDArray[Any]) -> Content:
    """Judge a picture.

    Args:
        pixels: [H, W] grey or [H, W, 3] sRGB; uint8, or floating point in [0, 1].
    """
    if min(pixels.shape[:2]) < _MIN_SIDE:
        return Content()
    levels = Levels(pixels)
    if is_graphic(levels):
        return Content("graphic")
    corners = find_corners(levels)
    if corners is not None:
        return Content("photo", _around(corners), corners)
    return Content("photo", find_rectangle(levels))


def _around(corners: Corners) -> Rectangle:
    across, down = zip(*corners, strict=True)
    return Rectangle(
        math.floor(min(down)),
        math.floor(min(across)),
        math.ceil(max(down)),
        math.ceil(max(across)),
    )


def photo_within(pixels: npt.NDArray[Any], content: Content) -> npt.NDArray[Any]:
    """Cut the photo out of a picture [H, W, ...] with a border.

    The corners that a turned photo leaves of its rectangle are filled with the nearest pixels of
    their rows: an edge to paper would be restored as if it were the photo's.
    """
    if content.rectangle is None:
        return pixels
    part = pixels[content.rectangle.slices]
    mask = content.mask
    if mask is None:
        return part
    columns = np.arange(mask.shape[1])
    first = mask.argmax(axis=1)[:, None]
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)[:, None]
    filled: npt.NDArray[Any] = part[
        np.arange(mask.shape[0])[:, None], np.clip(columns, first, last)
    ]
    return filled
