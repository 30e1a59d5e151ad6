"""A decoded picture with what its file says about it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from pikfix.photos.embedded import Texts


@dataclasses.dataclass(frozen=True)
class Photo:
    """A decoded picture, upright and in sRGB.

    Attributes:
        pixels: [H, W] grey or [H, W, 3] colour; uint8, or float32 in [0, 1] where the file
            holds more than 8 bits and all of them were read.
        format: the file's format in lower case: jpeg, png, tiff, webp, bmp, gif, ...
        mode: Pillow's name for how the file stores its pixels: L, RGB, CMYK, P, I;16, ...
        bit_depth: bits per sample in the file.
        exif: EXIF block for the result (orientation 1); empty where there is none.
        dpi: dots per inch (horizontal, vertical), or None.
        warnings: one line for each thing about the file that changed what was read, or that the
            result will not have.
        xmp: XMP packet for the result; empty where there is none.
        iptc: IPTC-IIM datasets for the result; empty where there are none.
        texts: comments for the result, pairs of a keyword and a text.
        icc: the file's colour profile, where a result of the same kind of pixels can be stored in
            it; else empty.
        stored: the pixels in that profile, of the type of ``pixels``; None where they are the same.
        photos: how many photos the file holds; more than 1 for one of several pages, of which
            smaller copies and masks do not count.
    """

    pixels: npt.NDArray[Any]
    format: str
    mode: str
    bit_depth: int
    exif: bytes = b""
    dpi: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()
    xmp: bytes = b""
    iptc: bytes = b""
    texts: Texts = ()
    icc: bytes = b""
    stored: npt.NDArray[Any] | None = None
    photos: int = 1

    @property
    def height(self) -> int:
        """Rows of the upright picture."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns of the upright picture."""
        return int(self.pixels.shape[1])

    @property
    def deep(self) -> bool:
        """Whether more than 8 bits a sample were read."""
        return self.pixels.dtype != np.uint8
