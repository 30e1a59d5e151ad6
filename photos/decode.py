"""Picture files to pixels: every common format, mode and depth, upright, in sRGB."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from pikfix.photos import (
    deep_colour,
    depth,
    embedded,
    jpeg,
    metadata,
    png,
    psd,
    signatures,
    tiff,
    tiff_pixels,
)
from pikfix.photos.errors import PhotoError
from pikfix.photos.opening import (
    INSTALL,
    Limits,
    cut_off,
    open_with_pillow,
    refusal,
    why_unopened,
)
from pikfix.photos.photo import Photo
from pikfix.photos.to_srgb import ToSrgb

__all__ = ["DEFAULT_MAX_PIXELS", "Photo", "decode_photo"]

DEFAULT_MAX_PIXELS = 100_000_000


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
    reader = _Reader(data, Limits(max_pixels, max_side), shrink_to)
    try:
        return reader.read()
    except PhotoError:
        raise
    # Pillow's parsers raise nearly every built-in exception on damaged bytes (OSError, KeyError,
    # IndexError, struct.error, zlib.error, ...): to the caller all of them mean one thing.
    except Exception as error:
        raise refusal(reader.name, error) from error


class _Reader:
    """One file on its way to a :class:`Photo`; collects the warnings."""

    def __init__(self, data: bytes, limits: Limits, shrink_to: int | None) -> None:
        self.data = data
        self.limits = limits
        self.shrink_to = shrink_to
        self.name = "picture"
        self.image: ImageFile.ImageFile | None = None
        self.pages: list[tiff.Page] = []
        self.page: tiff.Page | None = None
        self.depth = 8
        self.warnings: list[str] = []
        self.to_srgb = ToSrgb(self.warnings)

    def read(self) -> Photo:
        original = self.data
        self._open()
        pixels = self._pixels()
        exif = self._source_exif()
        orientation = metadata.orientation_of(exif)
        pixels = metadata.upright(pixels, orientation)
        stored = self.to_srgb.stored
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
            icc=self.to_srgb.own,
            stored=stored if stored is None else metadata.upright(stored, orientation),
            photos=max(1, sum(tiff.is_photo(page) for page in self.pages)),
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
            self.image = open_with_pillow(self.data, self.limits)
        except PhotoError:
            raise
        # The same holds for Pillow's header parsers as for its decoders, see decode_photo.
        except Exception as error:
            if self.page is None:
                raise why_unopened(self.data, error) from error
            self.mode = f"photometric {self.page.whole(tiff.PHOTOMETRIC)}"
            self.depth = self.page.whole(tiff.BITS, 1)
            self.to_srgb.icc = self.page.raw(34675)
            return
        image = self.image
        self.name = self.name if self.name == "PSD" else image.format or "picture"
        self.mode = image.mode
        self.depth = depth.declared(self.data, image, self.page)
        self.to_srgb.icc = image.info.get("icc_profile") or b""
        if self.page is None and getattr(image, "is_animated", False):
            self.warnings.append("the file holds several pictures: the first was taken")
        if image.format == "PNG":
            self.to_srgb.encoding = png.encoding_of(self.data)
            hdr = self.to_srgb.encoding.hdr
            if hdr:
                self.warnings.append(
                    f"the picture is HDR ({hdr}), which is not converted: tones are approximate"
                )
            if self.to_srgb.encoding.overrides_profile:
                self.to_srgb.icc = b""
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
            raise cut_off(self.name, missing, page.height)
        self.data = tiff.pointed_at(self.data, page)

    # Pixels -------------------------------------------------------------------------------

    def _pixels(self) -> npt.NDArray[Any]:
        if self.page is not None:
            pixels = self._tiff(self.page)
            if pixels is not None:
                return pixels
        image = self.image
        assert image is not None
        if image.mode in {"RGB", "RGBA"} and self.depth > 8:
            deep = self._deep_colour()
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
        return self.to_srgb.shallow(image)

    def _completed(self, error: Exception) -> ImageFile.ImageFile:
        """Read a file whose picture data is all there, though its end is not."""
        assert self.image is not None
        whole: bytes | int | None = None
        if self.name in {"JPEG", "MPO"}:
            if jpeg.unsupported(self.data) is not None:
                raise why_unopened(self.data, error) from error
            whole = jpeg.missing_end(self.data)
        elif self.name == "PNG":
            whole = png.completed(self.data)
        if isinstance(whole, int):
            raise cut_off(self.name, whole, self.image.height) from error
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
                raise cut_off(self.name, row, image.height)
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
                raise cut_off(self.name, row, image.height)
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
                f"a TIFF file of this kind ({page.kind}) needs the package {error}: {INSTALL},"
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
        if stored.other is not None:
            return self.to_srgb.deep_other(stored.other, stored.mode)
        if stored.image is not None:
            if stored.reduced:
                self.warnings.append(f"the file holds {self.depth} bits a sample: 8 were read")
            return self.to_srgb.shallow(stored.image)
        assert stored.unit is not None
        colour = self.to_srgb.deep(stored.unit)
        return self.to_srgb.on_white(colour, stored.alpha, premultiplied=stored.premultiplied)

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
        return self.to_srgb.deep(grey)

    def _deep_colour(self) -> npt.NDArray[Any] | None:
        """Read colour of more than 8 bits, of which Pillow would keep 8."""
        image = self.image
        assert image is not None
        unit = deep_colour.read(self.data, image.format or "", self.depth)
        if unit is None or (image.format == "PNG" and not png.is_whole(self.data)):
            return None
        image.load()  # the texts behind the picture, too
        if not deep_colour.agrees(unit, image):
            return None
        alpha = unit[..., 3:] if unit.shape[-1] == 4 else None
        colour = self.to_srgb.deep(np.ascontiguousarray(unit[..., :3]))
        return self.to_srgb.on_white(colour, alpha, premultiplied=False)

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
