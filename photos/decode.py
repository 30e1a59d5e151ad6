"""Picture files to pixels: every common format, mode and depth, upright, in sRGB."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from pikfix.photos import metadata, profiles
from pikfix.photos.errors import PhotoError

DEFAULT_MAX_PIXELS = 100_000_000

# Raster formats only. Pillow's others are left out: EPS runs an external program, WMF, GRIB,
# HDF5 and their like need one, and icons or game textures are no photos.
FORMATS = (
    *("JPEG", "PNG", "TIFF", "WEBP", "BMP", "DIB", "GIF", "AVIF", "JPEG2000"),
    *("PPM", "PCX", "SGI", "TGA", "QOI", "PSD", "IM", "SUN", "MSP"),
)
_NAMES = "JPEG, PNG, TIFF, WebP, BMP, GIF, AVIF, JPEG 2000, PPM, ..."
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


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
        warnings: one line for each thing about the file that changed what was read.
    """

    pixels: npt.NDArray[Any]
    format: str
    mode: str
    bit_depth: int
    exif: bytes = b""
    dpi: tuple[float, float] | None = None
    warnings: tuple[str, ...] = ()

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

    EXIF orientation is applied, an embedded ICC profile converted to sRGB, transparency placed
    on white, and of an animation or a file of many pages the first picture is taken.

    Args:
        data: the file's bytes.
        max_pixels: a picture whose header declares more is refused before it is decoded.
        max_side: so is one with a longer side.
        shrink_to: let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides
            stay at least this long (for references, which are resized anyway).

    Raises:
        PhotoError: ``bad_photo`` (empty, no picture, damaged, truncated, or samples that
            cannot be read) or ``photo_too_large``.
    """
    if not data:
        raise PhotoError("bad_photo", "the file is empty: send the bytes of a picture file")
    # Pillow refuses large pictures by a limit of its own, which must not undercut this one.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    image = _open(data, max_pixels)
    declared = image.width * image.height
    if declared > max_pixels:
        raise _too_large(f"{image.width} x {image.height} pixels", max_pixels)
    if max_side is not None and max(image.size) > max_side:
        raise PhotoError(
            "photo_too_large",
            f"the file declares {image.width} x {image.height} pixels, the limit is {max_side} a"
            " side on this server: scale the photo down",
        )
    if shrink_to is not None:
        image.draft(None, (shrink_to, shrink_to))
    try:
        return _Reader(data, image).read()
    except PhotoError:
        raise
    # Pillow's parsers raise nearly every built-in exception on damaged bytes (OSError, KeyError,
    # IndexError, struct.error, zlib.error, ...): to the caller all of them mean one thing.
    except Exception as error:
        raise PhotoError(
            "bad_photo",
            f"the {image.format} file is damaged or truncated ({error}): send the complete file",
        ) from error


def _too_large(what: str, max_pixels: int) -> PhotoError:
    return PhotoError(
        "photo_too_large",
        f"the file declares {what}, the limit is {max_pixels / 1e6:g} megapixels:"
        " scale the photo down, or raise max_pixels of the server",
    )


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large("too many pixels", max_pixels) from error
    # The same holds for Pillow's header parsers as for its decoders, see decode_photo.
    except Exception as error:
        if data[:4] in _TIFF_SIGNATURES:
            raise PhotoError(
                "bad_photo",
                "a TIFF file that is damaged, or of a kind that cannot be read: save the photo"
                " as grey or RGB with 8 or 16 bits a sample",
            ) from error
        raise PhotoError(
            "bad_photo",
            f"not a picture, or its first bytes are damaged: send one of {_NAMES}",
        ) from error
    if image.width < 1 or image.height < 1:
        raise PhotoError("bad_photo", "the picture has no pixels: send one of at least 1 x 1")
    return image


class _Reader:
    """One file on its way to a :class:`Photo`; collects the warnings."""

    def __init__(self, data: bytes, image: ImageFile.ImageFile) -> None:
        self.data = data
        self.image = image
        self.mode = image.mode
        self.depth = _declared_depth(data, image)
        self.warnings: list[str] = []

    def read(self) -> Photo:
        # Seeking for a second picture moves a file on, so this is asked before the first is read.
        if self.image.format != "MPO" and getattr(self.image, "is_animated", False):
            self.warnings.append("the file holds several pictures: the first was taken")
        pixels = self._deep_tiff()
        if pixels is None:
            self.image.load()
            pixels = self._deep_grey() if self._holds_deep_grey() else self._shallow()
        pixels = metadata.upright(pixels, metadata.orientation_of(self.image))
        name = (self.image.format or "").lower()
        return Photo(
            pixels=pixels,
            format="jpeg" if name == "mpo" else name,
            mode=self.mode,
            bit_depth=self.depth,
            exif=self._exif((pixels.shape[0], pixels.shape[1])),
            dpi=self._resolution(),
            warnings=tuple(self.warnings),
        )

    def _exif(self, size: tuple[int, int]) -> bytes:
        try:
            return metadata.kept_exif(self.image, size)
        # EXIF comes from countless devices; whatever is wrong with it must not cost the photo.
        except Exception:
            self.warnings.append("the EXIF block is damaged and was dropped")
            return b""

    def _resolution(self) -> tuple[float, float] | None:
        try:
            return metadata.resolution(self.image)
        # It may come from the EXIF block, see there.
        except Exception:
            return None

    def _profile(self, mode: str) -> profiles.SourceProfile | None:
        icc = self.image.info.get("icc_profile")
        if not icc:
            return None
        try:
            return profiles.SourceProfile(icc, mode)
        except profiles.ProfileError as error:
            self.warnings.append(f"the colour profile was not used ({error})")
            return None

    # Eight bits ---------------------------------------------------------------------------

    def _shallow(self) -> npt.NDArray[Any]:
        image: Image.Image = self.image
        if self.depth > 8:
            self.warnings.append(f"the file holds {self.depth} bits a sample: 8 were read")
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
        if image.mode == "CMYK":
            self.warnings.append("CMYK without a usable colour profile: tones are approximate")
            return image.convert("RGB")
        return profiles.lab_to_srgb(image) if image.mode == "LAB" else image

    # Sixteen bits -------------------------------------------------------------------------

    def _holds_deep_grey(self) -> bool:
        return self.image.mode == "F" or self.image.mode.startswith("I")

    def _deep_grey(self) -> npt.NDArray[Any]:
        image = self.image
        stored = np.asarray(image)
        if image.mode == "F":
            if not (np.isfinite(stored).all() and stored.min() >= 0 and stored.max() <= 1):
                raise PhotoError(
                    "bad_photo",
                    "floating-point samples outside [0, 1] have no known range:"
                    " save the photo with 8 or 16 bits",
                )
            grey = stored.astype(np.float32)
        elif image.mode == "I" and image.format == "TIFF":
            raise PhotoError(
                "bad_photo",
                "signed or 32-bit samples have no known range: save the photo with 8 or 16 bits",
            )
        else:
            # PGM files of any maximum arrive scaled to 16 bits.
            top = (1 << (self.depth if image.format == "TIFF" else 16)) - 1
            grey = np.clip(stored.astype(np.float32) / np.float32(top), 0.0, 1.0)
        if _tag(image, _PHOTOMETRIC) == 0:  # white is zero; Pillow leaves deep samples as stored
            grey = 1.0 - grey
        return self._deep_to_srgb(grey)

    def _deep_tiff(self) -> npt.NDArray[Any] | None:
        """Read 16-bit colour of a TIFF file, of which Pillow would keep 8 bits."""
        bits = _tag(self.image, _BITS_PER_SAMPLE)
        if self.image.format != "TIFF" or not isinstance(bits, tuple) or set(bits) != {16}:
            return None
        if len(bits) not in {3, 4} or _tag(self.image, _PHOTOMETRIC) != 2:
            return None
        try:
            import tifffile  # noqa: PLC0415 - wanted for this kind of file alone
        except ImportError:
            return None
        with tifffile.TiffFile(io.BytesIO(self.data)) as file:
            page = file.pages.first
            if set(page.axes) != set("YXS") or page.dtype != np.uint16:
                return None
            try:
                stored = page.asarray()
            except ValueError as error:
                # tifffile without its codec package says so; Pillow reads these at 8 bits.
                if "imagecodecs" in str(error):
                    return None
                raise
            stored = np.moveaxis(stored, page.axes.index("S"), -1)
            alpha_kinds = tuple(int(kind) for kind in page.extrasamples)
        unit = stored.astype(np.float32) / np.float32(65535)
        colour = self._deep_to_srgb(np.ascontiguousarray(unit[..., :3]))
        if alpha_kinds[:1] in {(1,), (2,)} and float(unit[..., 3].min()) < 1.0:
            self.warnings.append("transparent parts were placed on white")
            alpha = unit[..., 3:]
            # 1: colours come multiplied by alpha; 2: they do not.
            colour = (colour if alpha_kinds[0] == 1 else colour * alpha) + (1.0 - alpha)
            colour = np.clip(colour, 0.0, 1.0)
        return colour

    def _deep_to_srgb(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Apply the profile to float32 [H, W] or [H, W, 3] in [0, 1]."""
        profile = self._profile("L" if pixels.ndim == 2 else "RGB")
        if profile is None:
            return pixels
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


def _tag(image: Image.Image, tag: int) -> Any:
    return image.tag_v2.get(tag) if hasattr(image, "tag_v2") else None


def _declared_depth(data: bytes, image: Image.Image) -> int:
    """Bits per sample as the file's header says, where Pillow's mode does not."""
    if image.format == "PNG":
        return data[24]  # IHDR is always the first chunk
    bits = _tag(image, _BITS_PER_SAMPLE)
    if bits:
        return max(int(bit) for bit in bits)
    if image.mode == "1":
        return 1
    if image.mode == "F":
        return 32
    return 16 if image.mode.startswith("I") else 8


def _plain(image: Image.Image) -> Image.Image:
    """One of the modes that colour profiles exist for: L, RGB, CMYK or LAB."""
    if image.mode in {"L", "RGB", "CMYK", "LAB"}:
        return image
    return image.convert("L" if image.mode in {"1", "LA", "La"} else "RGB")
