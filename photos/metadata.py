"""What a picture file says about itself: EXIF and resolution, kept for the result."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

_EXIF_IFD = ExifTags.IFD.Exif
_GPS_IFD = ExifTags.IFD.GPSInfo
_ORIENTATION = ExifTags.Base.Orientation

# Tags that describe how the input file stores its pixels, or that would contradict the result:
# a TIFF file's own directory is handed out as EXIF, strips and tables included.
_STORAGE_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289}
    | {290, 291, 292, 293, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 338, 339}
    | {340, 341, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675}
)


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8 (1, upright, where absent or senseless)."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def upright(pixels: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn pixels [H, W, ...] stored in an EXIF orientation the right way up."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def kept_exif(image: Image.Image, size: tuple[int, int]) -> bytes:
    """Return the EXIF block for the result; orientation 1; without the thumbnail.

    Args:
        image: the opened input.
        size: (height, width) of the upright photo.

    Returns:
        Bytes that start with the EXIF signature; empty where the input has no EXIF.

    Raises:
        Exception: of any type, where the block is broken; callers drop it.
    """
    source = image.getexif()
    kept = Image.Exif()
    kept.endian = source.endian or "<"
    for tag in source:
        if tag not in _STORAGE_TAGS and tag not in {_EXIF_IFD, _GPS_IFD, _ORIENTATION}:
            kept[tag] = source[tag]
    details = dict(source.get_ifd(_EXIF_IFD))
    # The interoperability directory is a pointer into the input; it says nothing about the photo.
    details.pop(ExifTags.IFD.Interop, None)
    for tag, side in ((0xA002, size[1]), (0xA003, size[0])):
        if tag in details:
            details[tag] = side
    if details:
        kept[_EXIF_IFD] = details
    position = dict(source.get_ifd(_GPS_IFD))
    if position:
        kept[_GPS_IFD] = position
    if not len(kept):
        return b""
    kept[_ORIENTATION] = 1
    return kept.tobytes()


def resolution(image: Image.Image) -> tuple[float, float] | None:
    """Return dots per inch (horizontal, vertical), or None where the file has no sensible value."""
    stored = image.info.get("dpi")
    if stored is None:  # WebP, for one, has no field for it outside EXIF
        exif = image.getexif()
        if exif.get(296) == 2:  # per inch
            stored = exif.get(282), exif.get(283)
    try:
        horizontal, vertical = (float(value) for value in stored)  # type: ignore[union-attr, arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if all(math.isfinite(value) and 1.0 <= value <= 65535.0 for value in (horizontal, vertical)):
        return horizontal, vertical
    return None
