"""Opening a picture file: size limits, the formats that are read, and why one cannot be."""

from __future__ import annotations

import dataclasses
import io
import re

from PIL import Image, ImageFile, UnidentifiedImageError, features

from pikfix.photos import jpeg, psd, signatures
from pikfix.photos.errors import PhotoError

# Raster formats only. Pillow's others are left out: EPS runs an external program, WMF, GRIB,
# HDF5 and their like need one, and icons or game textures are no photos.
FORMATS = (
    *("JPEG", "PNG", "TIFF", "WEBP", "BMP", "DIB", "GIF", "AVIF", "JPEG2000"),
    *("PPM", "PCX", "SGI", "TGA", "QOI", "PSD", "IM", "SUN", "MSP", "HEIF"),
)
_NAMES = "JPEG, PNG, TIFF, WebP, BMP, GIF, AVIF, JPEG 2000, PPM, ..."
INSTALL = "install it beside the server (pip install 'pikfix[formats]')"
# How Pillow words what it cannot do, as against what is broken.
_NOT_ABLE = re.compile(
    r"unsupported|not supported|cannot handle|not (?:been )?implemented|decoder .* not available"
    r"|unknown (?:data organization|pixel mode|raw mode)|unrecognized (?:image )?mode",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """The largest picture that is read.

    Attributes:
        pixels: of the whole picture, and of what decoding it holds.
        side: of the longer side; None: no limit of its own.
    """

    pixels: int
    side: int | None

    def check(self, width: int, height: int, held: int = 0) -> None:
        """Refuse a declared size; ``held`` is what decoding would hold, where that is more."""
        if width < 1 or height < 1:
            raise PhotoError("bad_photo", "the picture has no pixels: send one of at least 1 x 1")
        if max(width * height, held) > self.pixels:
            raise self.too_large(f"{width} x {height} pixels")
        if self.side is not None and max(width, height) > self.side:
            raise PhotoError(
                "photo_too_large",
                f"the file declares {width} x {height} pixels, the limit is {self.side} a"
                " side on this server: scale the photo down",
            )

    def too_large(self, what: str) -> PhotoError:
        """Return the error on a picture with more pixels than are allowed."""
        return PhotoError(
            "photo_too_large",
            f"the file declares {what}, the limit is {self.pixels / 1e6:g} megapixels:"
            " scale the photo down, or raise max_pixels of the server",
        )


def open_with_pillow(data: bytes, limits: Limits) -> ImageFile.ImageFile:
    """Open a file with Pillow; its size checked, nothing decoded."""
    if signatures.is_heif(data):
        try:
            import pillow_heif  # noqa: PLC0415 - a package that need not be installed
        except ImportError as error:
            raise PhotoError(
                "missing_package",
                f"a HEIC (HEIF) picture needs the package pillow-heif: {INSTALL}, or convert the"
                " photo to JPEG, PNG or TIFF",
            ) from error
        if "HEIF" not in Image.OPEN:
            Image.init()
            pillow_heif.register_heif_opener(thumbnails=False)
    known = [name for name in FORMATS if name in Image.OPEN or name != "HEIF"]
    try:
        image = Image.open(io.BytesIO(data), formats=known)
    except Image.DecompressionBombError as error:
        raise limits.too_large("too many pixels") from error
    limits.check(image.width, image.height)
    return image


def refusal(name: str, error: Exception) -> PhotoError:
    """Say what a decoder's error on a file of a known format means: damaged, or not supported."""
    if _NOT_ABLE.search(str(error)) or isinstance(error, NotImplementedError):
        return PhotoError(
            "unsupported_photo",
            f"a {name} file of a kind that is not supported ({error}): save the photo as PNG, TIFF"
            " or JPEG, grey or RGB with 8 or 16 bits a sample",
        )
    what = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else error
    return PhotoError(
        "bad_photo", f"the {name} file is damaged or truncated ({what}): send the complete file"
    )


def why_unopened(data: bytes, error: Exception) -> PhotoError:
    """Say why a file cannot be opened: of another kind, or no picture."""
    other = signatures.unsupported(data) or jpeg.unsupported(data)
    if other is not None:
        what, remedy = other
        return PhotoError("unsupported_photo", f"{what} is not supported: {remedy}")
    if signatures.is_avif(data) and not _reads_avif():
        return PhotoError(
            "missing_package",
            "an AVIF picture needs a Pillow with AVIF: upgrade Pillow beside the server, or"
            " convert the photo to JPEG, PNG or TIFF",
        )
    if isinstance(error, KeyError) and data.startswith(psd.SIGNATURE):
        return PhotoError(
            "unsupported_photo",
            "a Photoshop document of this colour mode is not supported: save it as TIFF, grey or"
            " RGB",
        )
    if _NOT_ABLE.search(str(error)):
        return refusal("picture", error)
    name = signatures.name_of(data)
    if name is not None:
        return refusal(name, error)
    return PhotoError(
        "bad_photo", f"not a picture, or its first bytes are damaged: send one of {_NAMES}"
    )


def _reads_avif() -> bool:
    return bool(features.check("avif"))


def cut_off(name: str, row: int, height: int) -> PhotoError:
    """Return the error on a picture of which a row and all below it are missing."""
    return PhotoError(
        "bad_photo",
        f"the {name} file is damaged or truncated (its picture can be read up to row {row} of"
        f" {height}): send the complete file",
    )
