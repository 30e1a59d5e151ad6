"""Picture files to pixels: every common format, mode and depth, upright, in sRGB."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError, features

from pikfix.photos import (
    depth,
    embedded,
    jpeg,
    metadata,
    png,
    profiles,
    psd,
    signatures,
    tiff,
    tiff_pixels,
)
from pikfix.photos.errors import PhotoError

DEFAULT_MAX_PIXELS = 100_000_000

# Raster formats only. Pillow's others are left out: EPS runs an external program, WMF, GRIB,
# HDF5 and their like need one, and icons or game textures are no photos.
FORMATS = (
    *("JPEG", "PNG", "TIFF", "WEBP", "BMP", "DIB", "GIF", "AVIF", "JPEG2000"),
    *("PPM", "PCX", "SGI", "TGA", "QOI", "PSD", "IM", "SUN", "MSP", "HEIF"),
)
_NAMES = "JPEG, PNG, TIFF, WebP, BMP, GIF, AVIF, JPEG 2000, PPM, ..."
_INSTALL = "install it beside the server (pip install 'pikfix[formats]')"
# How Pillow words what it cannot do, as against what is broken.
_NOT_ABLE = re.compile(
    r"unsupported|not supported|cannot handle|not (?:been )?implemented|decoder .* not available"
    r"|unknown (?:data organization|pixel mode|raw mode)|unrecognized (?:image )?mode",
    re.IGNORECASE,
)


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
    texts: embedded.Texts = ()

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


def decode_photo(
    data: bytes,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    *,
    max_side: int | None = None,
    shrink_to: int | None = None,
) -> Photo:
    """Decode a picture file.

    EXIF orientation is applied, colours are converted to sRGB as the file's profile (or the
    chunks of a PNG) says, transparency is placed on white. Of a TIFF file the first page that is
    no smaller copy of another is taken, of an animation the first picture.

    Args:
        data: the file's bytes.
        max_pixels: a picture whose header declares more is refused before it is decoded.
        max_side: so is one with a longer side.
        shrink_to: let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides
            stay at least this long (for references, which are resized anyway).

    Raises:
        PhotoError: ``bad_photo`` (empty, no picture, damaged or cut off), ``unsupported_photo``
            (of a kind that is not read), ``missing_package`` (one would read it), or
            ``photo_too_large``.
    """
    if not data:
        raise PhotoError("bad_photo", "the file is empty: send the bytes of a picture file")
    # Pillow refuses large pictures by a limit of its own, which must not undercut this one.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    reader = _Reader(data, _Limits(max_pixels, max_side), shrink_to)
    try:
        return reader.read()
    except PhotoError:
        raise
    # Pillow's parsers raise nearly every built-in exception on damaged bytes (OSError, KeyError,
    # IndexError, struct.error, zlib.error, ...): to the caller all of them mean one thing.
    except Exception as error:
        raise _refusal(reader.name, error) from error


def _refusal(name: str, error: Exception) -> PhotoError:
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


@dataclasses.dataclass(frozen=True)
class _Limits:
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
        return PhotoError(
            "photo_too_large",
            f"the file declares {what}, the limit is {self.pixels / 1e6:g} megapixels:"
            " scale the photo down, or raise max_pixels of the server",
        )


def _pillow(data: bytes, limits: _Limits) -> ImageFile.ImageFile:
    """Open a file with Pillow; its size checked, nothing decoded."""
    if signatures.is_heif(data):
        try:
            import pillow_heif  # noqa: PLC0415 - a package that need not be installed
        except ImportError as error:
            raise PhotoError(
                "missing_package",
                f"a HEIC (HEIF) picture needs the package pillow-heif: {_INSTALL}, or convert the"
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


def _unopened(data: bytes, error: Exception) -> PhotoError:
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
        return _refusal("picture", error)
    name = signatures.name_of(data)
    if name is not None:
        return _refusal(name, error)
    return PhotoError(
        "bad_photo", f"not a picture, or its first bytes are damaged: send one of {_NAMES}"
    )


def _reads_avif() -> bool:
    return bool(features.check("avif"))


class _Reader:
    """One file on its way to a :class:`Photo`; collects the warnings."""

    def __init__(self, data: bytes, limits: _Limits, shrink_to: int | None) -> None:
        self.data = data
        self.limits = limits
        self.shrink_to = shrink_to
        self.name = "picture"
        self.image: ImageFile.ImageFile | None = None
        self.pages: list[tiff.Page] = []
        self.page: tiff.Page | None = None
        self.encoding = png.Encoding()
        self.icc = b""
        self.depth = 8
        self.warnings: list[str] = []

    def read(self) -> Photo:
        original = self.data
        self._open()
        pixels = self._pixels()
        exif = self._source_exif()
        orientation = metadata.orientation_of(exif)
        pixels = metadata.upright(pixels, orientation)
        size = (pixels.shape[0], pixels.shape[1])
        dpi = self._resolution(exif, orientation)
        about = self._embedded(original, size)
        self.warnings += about.dropped
        name = self.name.lower()
        return Photo(
            pixels=pixels,
            format="jpeg" if name == "mpo" else name,
            mode=self.mode,
            bit_depth=self.depth,
            exif=self._exif(exif, size, dpi),
            dpi=dpi,
            warnings=tuple(self.warnings),
            xmp=about.xmp,
            iptc=about.iptc,
            texts=about.texts,
        )

    # Opening ------------------------------------------------------------------------------

    def _open(self) -> None:
        if psd.is_deep(self.data):
            self.name = "PSD"
            width, height = (int.from_bytes(self.data[at : at + 4], "big") for at in (18, 14))
            self.limits.check(width, height)
            self.data = psd.as_tiff(self.data)
        if self.data[:4] in tiff.SIGNATURES:
            self._choose_page()
        try:
            self.image = _pillow(self.data, self.limits)
        except PhotoError:
            raise
        # The same holds for Pillow's header parsers as for its decoders, see decode_photo.
        except Exception as error:
            if self.page is None:
                raise _unopened(self.data, error) from error
            self.mode = f"photometric {self.page.whole(tiff.PHOTOMETRIC)}"
            self.depth = self.page.whole(tiff.BITS, 1)
            self.icc = self.page.raw(34675)
            return
        image = self.image
        self.name = self.name if self.name == "PSD" else image.format or "picture"
        self.mode = image.mode
        self.depth = depth.declared(self.data, image, self.page)
        self.icc = image.info.get("icc_profile") or b""
        if self.page is None and getattr(image, "is_animated", False):
            self.warnings.append("the file holds several pictures: the first was taken")
        if image.format == "PNG":
            self.encoding = png.encoding_of(self.data)
            if self.encoding.hdr:
                self.warnings.append(
                    f"the picture is HDR ({self.encoding.hdr}), which is not converted: tones are"
                    " approximate"
                )
            if self.encoding.overrides_profile:
                self.icc = b""
        if self.shrink_to is not None:
            image.draft(None, (self.shrink_to, self.shrink_to))

    def _choose_page(self) -> None:
        if self.name != "PSD":
            self.name = "TIFF"
        other = signatures.unsupported(self.data)
        if other is not None:
            raise PhotoError("unsupported_photo", f"{other[0]} is not supported: {other[1]}")
        try:
            self.pages = tiff.pages_of(self.data)
        except tiff.TiffError as error:
            raise PhotoError(
                "bad_photo", f"a TIFF file that is damaged ({error}): send the complete file"
            ) from error
        page = self.page = tiff.choose(self.pages)
        if page.is_raw:
            raise PhotoError(
                "unsupported_photo",
                "a camera's raw file (DNG or its like) is not supported: develop it and save it as"
                " TIFF or JPEG",
            )
        self.limits.check(page.width, page.height, page.decoded_pixels)
        said = tiff.said_of(self.pages, page)
        if said:
            self.warnings.append(said)
        missing = tiff.first_missing_row(page, len(self.data))
        if missing is not None:
            raise _cut(self.name, missing, page.height)
        self.data = tiff.pointed_at(self.data, page)

    # Pixels -------------------------------------------------------------------------------

    def _pixels(self) -> npt.NDArray[Any]:
        if self.page is not None:
            pixels = self._tiff(self.page)
            if pixels is not None:
                return pixels
        image = self.image
        assert image is not None
        if image.format == "PNG" and self.depth == 16 and self.data[25] in {2, 6}:
            deep = self._deep_png()
            if deep is not None:
                return deep
        try:
            image.load()
        except Exception as error:
            image = self._completed(error)
        else:
            image = self._checked(image)
        if image.mode == "F" or image.mode.startswith("I"):
            return self._deep_grey(image)
        if self.depth > 8:
            self.warnings.append(f"the file holds {self.depth} bits a sample: 8 were read")
        return self._shallow(image)

    def _completed(self, error: Exception) -> ImageFile.ImageFile:
        """Read a file whose picture data is all there, though its end is not."""
        assert self.image is not None
        whole: bytes | int | None = None
        if self.name in {"JPEG", "MPO"}:
            if jpeg.unsupported(self.data) is not None:
                raise _unopened(self.data, error) from error
            whole = jpeg.missing_end(self.data)
        elif self.name == "PNG":
            whole = png.completed(self.data)
        if isinstance(whole, int):
            raise _cut(self.name, whole, self.image.height) from error
        if whole is None:
            raise error
        return self._read_completed(whole)

    def _read_completed(self, whole: bytes) -> ImageFile.ImageFile:
        image = Image.open(io.BytesIO(whole), formats=("JPEG", "PNG"))
        if self.shrink_to is not None:
            image.draft(None, (self.shrink_to, self.shrink_to))
        image.load()
        if image.format == "JPEG":
            row = jpeg.rows_missing_from(whole, image, self.shrink_to)
            if row is not None:
                raise _cut(self.name, row, image.height)
            if jpeg.lacks_scans(whole):
                raise PhotoError(
                    "bad_photo",
                    "the JPEG file is damaged or truncated (its last scans, which hold the"
                    " details, are missing): send the complete file",
                )
        self.warnings.append("the file's end is missing, behind its picture: all rows were read")
        self.image = image
        return image

    def _checked(self, image: ImageFile.ImageFile) -> ImageFile.ImageFile:
        """Find what Pillow does not tell: a JPEG whose data ends early, a PNG without its end."""
        if self.name == "PNG" and not png.is_whole(self.data):
            self.warnings.append(
                "the file's end is missing, behind its picture: all rows were read"
            )
        if self.name not in {"JPEG", "MPO"}:
            return image
        whole = jpeg.missing_end(self.data)
        if whole is not None:
            return self._read_completed(whole)
        if jpeg.ends_flat(image):
            row = jpeg.rows_missing_from(self.data, image, self.shrink_to)
            if row is not None:
                raise _cut(self.name, row, image.height)
        if image.info.get("progressive") and jpeg.lacks_scans(self.data):
            self.warnings.append("the last scans of the JPEG are missing: details are lost")
        return image

    def _tiff(self, page: tiff.Page) -> npt.NDArray[Any] | None:
        """Read a page by tifffile where Pillow cannot, or would keep 8 of 16 bits."""
        by_pillow = self.image is not None and page.compression in tiff.PILLOW_COMPRESSIONS
        bits = page.numbers(tiff.BITS)
        deep_colour = len(bits) >= 3 and set(bits) == {16}
        if by_pillow and not deep_colour:
            return None
        try:
            stored = tiff_pixels.read(self.data, page)
        except tiff_pixels.MissingPackageError as error:
            if by_pillow:
                return None
            name = tiff.COMPRESSION_NAMES.get(page.compression, f"method {page.compression}")
            raise PhotoError(
                "missing_package",
                f"a TIFF file of this kind ({page.kind}) needs the package {error}: {_INSTALL},"
                f" or save the photo without {name} compression",
            ) from error
        except tiff_pixels.UnsupportedError as error:
            if by_pillow:
                return None
            raise PhotoError(
                "unsupported_photo",
                f"a TIFF file of this kind ({page.kind}) is not supported: save the photo as grey"
                " or RGB with 8 or 16 bits a sample",
            ) from error
        self.mode = stored.mode if self.image is None else self.mode
        if stored.image is not None:
            if stored.reduced:
                self.warnings.append(f"the file holds {self.depth} bits a sample: 8 were read")
            return self._shallow(stored.image)
        assert stored.unit is not None
        return self._on_white(self._deep_to_srgb(stored.unit), stored.alpha, stored.premultiplied)

    # Eight bits ---------------------------------------------------------------------------

    def _shallow(self, image: Image.Image) -> npt.NDArray[Any]:
        alpha = None
        if image.has_transparency_data:
            image = image.convert("LA" if image.mode in {"1", "L", "LA", "La"} else "RGBA")
            alpha = image.getchannel("A")
        image = self._to_srgb(_plain(image))
        if alpha is not None and np.asarray(alpha).min() < 255:
            self.warnings.append("transparent parts were placed on white")
            white = Image.new(image.mode, image.size, "white")
            image = Image.composite(image, white, alpha)
        return np.asarray(image)

    def _profile(self, mode: str) -> profiles.SourceProfile | None:
        if not self.icc:
            return None
        try:
            return profiles.SourceProfile(self.icc, mode)
        except profiles.ProfileError as error:
            self.warnings.append(f"the colour profile was not used ({error})")
            return None

    def _to_srgb(self, image: Image.Image) -> Image.Image:
        """L stays L; RGB, CMYK and LAB become RGB."""
        profile = self._profile(image.mode)
        try:
            if profile is not None and image.mode == "L":
                return image.point(profile.grey_table().tolist())
            if profile is not None:
                return profile.convert(image)
        except profiles.ProfileError as error:
            self.warnings.append(f"the colour profile was not used ({error})")
        if image.mode == "LAB":
            return profiles.lab_to_srgb(image)
        if image.mode == "CMYK":
            self.warnings.append("CMYK without a usable colour profile: tones are approximate")
            image = image.convert("RGB")
        return image if self.encoding.is_srgb else self.encoding.applied(image)

    # Sixteen bits -------------------------------------------------------------------------

    def _deep_grey(self, image: Image.Image) -> npt.NDArray[Any]:
        stored = np.asarray(image)
        if image.mode == "F":
            if not (np.isfinite(stored).all() and stored.min() >= 0 and stored.max() <= 1):
                raise tiff_pixels.no_known_range()
            grey = stored.astype(np.float32)
        elif image.mode == "I" and image.format == "TIFF":
            raise PhotoError(
                "unsupported_photo",
                "signed or 32-bit samples have no known range: save the photo with 8 or 16 bits",
            )
        else:
            # PGM files of any maximum arrive scaled to 16 bits.
            top = (1 << (self.depth if image.format == "TIFF" else 16)) - 1
            grey = np.clip(stored.astype(np.float32) / np.float32(top), 0.0, 1.0)
        # Where white is zero Pillow leaves deep samples as stored.
        if self.page is not None and self.page.whole(tiff.PHOTOMETRIC, 1) == 0:
            grey = 1.0 - grey
        return self._deep_to_srgb(grey)

    def _deep_png(self) -> npt.NDArray[Any] | None:
        """Read 16-bit colour, of which Pillow would keep 8 bits, by imagecodecs."""
        try:
            from imagecodecs import png_decode  # noqa: PLC0415 - need not be installed
        except ImportError:
            return None
        try:
            stored = png_decode(self.data)
        # It is read again by Pillow, whose error is the one that is told.
        except Exception:
            return None
        if stored.dtype != np.uint16 or stored.ndim != 3 or not png.is_whole(self.data):
            return None
        assert self.image is not None
        self.image.load()  # the texts behind the picture
        unit = stored.astype(np.float32) / np.float32(65535)
        colour = self._deep_to_srgb(np.ascontiguousarray(unit[..., :3]))
        return self._on_white(colour, unit[..., 3:] if unit.shape[-1] == 4 else None, False)

    def _on_white(
        self, pixels: npt.NDArray[Any], alpha: npt.NDArray[Any] | None, premultiplied: bool
    ) -> npt.NDArray[Any]:
        if alpha is None or float(alpha.min()) == 1.0:
            return pixels
        self.warnings.append("transparent parts were placed on white")
        if pixels.ndim == 2:
            alpha = alpha[..., 0]
        over = (pixels if premultiplied else pixels * alpha) + (1.0 - alpha)
        placed: npt.NDArray[Any] = np.clip(over, 0.0, 1.0)
        return placed

    def _deep_to_srgb(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Apply the profile to float32 [H, W] or [H, W, 3] in [0, 1]."""
        profile = self._profile("L" if pixels.ndim == 2 else "RGB")
        if profile is None:
            return pixels if self.encoding.is_srgb else self.encoding.to_srgb(pixels)
        try:
            if pixels.ndim == 2:
                return profile.convert_deep_grey(pixels)
            shallow = Image.fromarray(np.rint(pixels * 255.0).astype(np.uint8))
            converted = profile.convert(shallow)
        except profiles.ProfileError as error:
            self.warnings.append(f"the colour profile was not used ({error})")
            return pixels
        if converted is shallow:
            return pixels
        self.warnings.append("the colour profile was applied at 8 bits a sample")
        return np.asarray(converted).astype(np.float32) / np.float32(255)

    # What the file says about its photo ----------------------------------------------------

    def _source_exif(self) -> Image.Exif:
        exif = Image.Exif()
        try:
            if self.image is not None and self.name != "PSD":
                exif = self.image.getexif()
            elif self.page is not None and self.name != "PSD":
                exif.load(self.data)
            else:
                exif.load(self._resources().get(psd.EXIF, b""))
            head = self.pages[0] if self.pages else None
            if head is not None and head is not self.page and self.name == "TIFF":
                # Smaller copies come first in files whose first directory tells of the photo.
                whole = Image.Exif()
                whole.load(tiff.pointed_at(self.data, head))
                for tag in whole:
                    exif.setdefault(tag, whole[tag])
                for tag in (0x8769, 0x8825):
                    if whole.get_ifd(tag) and not exif.get_ifd(tag):
                        exif.get_ifd(tag).update(whole.get_ifd(tag))
        # EXIF comes from countless devices; whatever is wrong with it must not cost the photo.
        except Exception:
            self.warnings.append("the EXIF block is damaged and was dropped")
            return Image.Exif()
        return exif

    def _resources(self) -> dict[int, bytes]:
        # A deep document is wrapped: its own bytes begin behind the wrapper's head.
        document = self.data[8:] if self.page is not None else self.data
        return psd.document_resources(document) if self.name == "PSD" else {}

    def _exif(
        self, exif: Image.Exif, size: tuple[int, int], dpi: tuple[float, float] | None
    ) -> bytes:
        try:
            return metadata.kept_exif(exif, size, dpi)
        except Exception:
            self.warnings.append("the EXIF block is damaged and was dropped")
            return b""

    def _embedded(self, original: bytes, size: tuple[int, int]) -> embedded.Embedded:
        pages: tuple[tiff.Page, ...] = ()
        if self.page is not None and self.name == "TIFF":
            pages = (self.page, self.pages[0])
        try:
            return embedded.embedded_in(original, self.image or Image.Image(), pages, size)
        # As for EXIF.
        except Exception:
            return embedded.Embedded(
                dropped=("XMP, IPTC or comments are damaged and were dropped",)
            )

    def _resolution(self, exif: Image.Exif, orientation: int) -> tuple[float, float] | None:
        page = self.page if self.name == "TIFF" else None
        try:
            dpi = metadata.resolution(self.image, exif, page, self._resources())
            aspect = metadata.pixel_aspect(self.image, page) if dpi is None else None
        # It may come from the EXIF block, see there.
        except Exception:
            return None
        if aspect is not None:
            self.warnings.append(
                f"the pixels are not square ({aspect:.3g} times as high as wide): the result has"
                " them as stored, without this note"
            )
        return dpi if dpi is None or orientation < 5 else (dpi[1], dpi[0])


def _cut(name: str, row: int, height: int) -> PhotoError:
    return PhotoError(
        "bad_photo",
        f"the {name} file is damaged or truncated (its picture can be read up to row {row} of"
        f" {height}): send the complete file",
    )


def _plain(image: Image.Image) -> Image.Image:
    """One of the modes that colour profiles exist for: L, RGB, CMYK or LAB."""
    if image.mode in {"L", "RGB", "CMYK", "LAB"}:
        return image
    return image.convert("L" if image.mode in {"1", "LA", "La"} else "RGB")
