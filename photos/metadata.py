"""What a picture file says about itself: EXIF and resolution, kept for the result."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from pikfix.photos import psd, tiff

_EXIF_IFD = ExifTags.IFD.Exif
_GPS_IFD = ExifTags.IFD.GPSInfo
_ORIENTATION = ExifTags.Base.Orientation

# Tags that describe how the input file stores its pixels, or that would contradict the result:
# a TIFF file's own directory is handed out as EXIF, strips and tables included.
_STORAGE_TAGS = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 280, 281, 284, 288, 289}
    | {290, 291, 292, 293, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325, 330, 332, 338, 339}
    | {340, 341, 347, 512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675, 34665, 34853}
    | {282, 283, 296, 297, 37724, 42112, 50838, 50839}
)
# How the old file compressed its pixels, and its colour space.
_STALE_DETAILS = frozenset({ExifTags.IFD.Interop, 0x9101, 0x9102, 0xA500})
_COLOR_SPACE = 0xA001
# Libraries note in the description how they stored an array; of the result it would be wrong.
_LAYOUTS = ('{"shape":', "shape=(", "ImageJ=")


class StoredText(str):
    """A text of an EXIF block, which Pillow reads as Latin-1 and writes as ASCII with gaps."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Return the bytes as they were, whatever is asked for."""
        try:
            return super().encode("latin-1")
        except UnicodeEncodeError:
            return super().encode("utf-8")


def writable(value: Any) -> Any:
    """Return an EXIF value in a form that Pillow writes without loss."""
    if isinstance(value, str):
        return StoredText(value)
    if isinstance(value, tuple):
        return tuple(writable(one) for one in value)
    if isinstance(value, dict):
        return {tag: writable(one) for tag, one in value.items()}
    return value


def orientation_of(exif: Image.Exif) -> int:
    """Return the EXIF orientation, 1 to 8 (1, upright, where absent or senseless)."""
    value = exif.get(_ORIENTATION, 1)
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


def kept_exif(source: Image.Exif, size: tuple[int, int], dpi: tuple[float, float] | None) -> bytes:
    """Return the EXIF block for the result; orientation 1; without the thumbnail.

    Args:
        source: the input's.
        size: (height, width) of the upright photo.
        dpi: its resolution.

    Returns:
        Bytes that start with the EXIF signature; empty where the input has no EXIF.

    Raises:
        Exception: of any type, where the block is broken; callers drop it.
    """
    kept = Image.Exif()
    kept.endian = source.endian or "<"
    for tag in source:
        # Private tags from 50706 on are those of raw files (DNG).
        if tag in _STORAGE_TAGS or tag == _ORIENTATION or 50706 <= tag <= 51200:
            continue
        if tag == ExifTags.Base.ImageDescription and str(source[tag]).startswith(_LAYOUTS):
            continue
        kept[tag] = writable(source[tag])
    details = dict(source.get_ifd(_EXIF_IFD))
    # The interoperability directory is a pointer into the input; it says nothing about the photo.
    for tag in _STALE_DETAILS:
        details.pop(tag, None)
    for tag, side in ((0xA002, size[1]), (0xA003, size[0])):
        if tag in details:
            details[tag] = side
    if details.get(_COLOR_SPACE, 1) != 1:
        details[_COLOR_SPACE] = 1
    if details:
        kept[_EXIF_IFD] = writable(details)
    position = dict(source.get_ifd(_GPS_IFD))
    if position:
        kept[_GPS_IFD] = writable(position)
    if not len(kept):
        return b""
    kept[_ORIENTATION] = 1
    if dpi is not None:
        kept[282], kept[283], kept[296] = dpi[0], dpi[1], 2
    return kept.tobytes()


def in_another_space(exif: bytes) -> bytes:
    """Say in an EXIF block, where it says anything of it, that the pixels are not in sRGB."""
    if not exif:
        return exif
    block = Image.Exif()
    block.load(exif)
    details = dict(block.get_ifd(_EXIF_IFD))
    if _COLOR_SPACE not in details:
        return exif
    block = editable(exif)
    block[_EXIF_IFD] = writable({**details, _COLOR_SPACE: 65535})
    return block.tobytes()


def editable(exif: bytes) -> Image.Exif:
    """Load an EXIF block so that its texts are written as they were."""
    block = Image.Exif()
    if exif:
        block.load(exif)
    for tag in list(block):
        is_directory = tag in {_EXIF_IFD, _GPS_IFD}
        block[tag] = writable(dict(block.get_ifd(tag)) if is_directory else block[tag])
    return block


def resolution(
    image: Image.Image | None, exif: Image.Exif, page: tiff.Page | None, resources: Any = None
) -> tuple[float, float] | None:
    """Return dots per inch as stored (horizontal, vertical), or None without a sensible value.

    Pillow's own answer invents one where a file says nothing (1 for TIFF, 72 for EXIF).

    Args:
        image: the opened file.
        exif: its EXIF.
        page: of a TIFF file, the page.
        resources: of a Photoshop document, its image resources.
    """
    if page is not None:
        return _of_unit(page.numbers(282), page.numbers(283), page.whole(296, 2))
    if image is None:
        return None
    stored = image.info.get("dpi")
    if image.format in {"JPEG", "MPO"}:
        density = image.info.get("jfif_density", (0, 0))
        unit = {1: 2, 2: 3}.get(image.info.get("jfif_unit", 0), 1)
        found = _of_unit(density[:1], density[1:], unit)
        stored = found
    if resources and len(resources.get(psd.RESOLUTION, b"")) >= 16:
        fields = struct.unpack_from(">IHHI", resources[psd.RESOLUTION])
        found = _sensible((fields[0] / 65536, fields[3] / 65536))
        if found:
            return found
    if stored is None or _sensible(stored) is None:
        stored = _of_unit((exif.get(282),), (exif.get(283),), exif.get(296, 2))
    return _sensible(stored)


def _of_unit(across: Any, down: Any, unit: Any) -> tuple[float, float] | None:
    """Read a resolution in units as TIFF counts them: 2 per inch, 3 per centimetre."""
    scale = {2: 1.0, 3: 2.54}.get(unit)
    try:
        return None if scale is None else _sensible((across[0] * scale, down[0] * scale))
    except (TypeError, IndexError):
        return None


def _sensible(stored: Any) -> tuple[float, float] | None:
    try:
        horizontal, vertical = (float(value) for value in stored)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    if all(math.isfinite(value) and 1.0 <= value <= 65535.0 for value in (horizontal, vertical)):
        return horizontal, vertical
    return None


def pixel_aspect(image: Image.Image | None, page: tiff.Page | None) -> float | None:
    """Return a pixel's height by its width where a file says that it is not square."""
    across = down = 0.0
    if page is not None:
        if page.whole(296, 2) in {1, 2, 3} and page.numbers(282) and page.numbers(283):
            across, down = page.numbers(282)[0], page.numbers(283)[0]
    elif image is not None:
        pair = image.info.get("aspect") or image.info.get("dpi")
        if image.format in {"JPEG", "MPO"}:
            pair = image.info.get("jfif_density")
        across, down = (float(one) for one in pair) if pair else (0.0, 0.0)
    if across <= 0 or down <= 0 or abs(across / down - 1.0) < 0.02:
        return None
    return across / down
