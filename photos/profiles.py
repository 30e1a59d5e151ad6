"""ICC profiles: pictures in any profiled colour space to sRGB and back, through LittleCMS.

Pillow's form of it has 8 bits a sample; deeper samples go through that of imagecodecs, in floating
point, where it is installed.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from pikfix.photos.color import grey_from_luminance, in_bands, photo_luminance

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
# Without LittleCMS' shortcut by a table of 33 steps a channel, which is off by whole levels of 255.
_DEEP_FLAGS = int(_FLAGS) | 0x0100
_TOP = 65535
_ROWS = 128
_CMS_SPACES = {"RGB ": "rgb", "CMYK": "cmyk", "Lab ": "lab", "GRAY": "gray"}
_LEVELS = np.arange(_TOP + 1) / _TOP
# The colour space a profile must be made for, by the mode of the picture.
_SPACES = {"L": ("GRAY", "RGB "), "RGB": ("RGB ",), "CMYK": ("CMYK",), "LAB": ("Lab ",)}


class ProfileError(ValueError):
    """A profile that cannot be applied; the caller warns and reads the picture as sRGB."""


class SourceProfile:
    """A picture's colour profile.

    Args:
        icc: the profile as embedded in the file.
        mode: Pillow mode of the pixels it describes: L, RGB, CMYK or LAB.

    Raises:
        ProfileError: broken, or made for another colour space.
    """

    def __init__(self, icc: bytes, mode: str) -> None:
        try:
            self._profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
            self._space = str(self._profile.profile.xcolor_space)
        except (OSError, ImageCms.PyCMSError) as error:
            raise ProfileError(f"broken: {error}") from error
        self.icc = icc
        if self._space not in _SPACES.get(mode, ()):
            raise ProfileError(f"made for {self._space.strip()} pixels, the picture has {mode}")

    @property
    def is_grey(self) -> bool:
        """Whether it describes grey pixels."""
        return self._space == "GRAY"

    def convert(self, image: Image.Image) -> Image.Image:
        """Convert RGB, CMYK or LAB to sRGB; RGB that is sRGB already returns as it came."""
        if image.mode == "RGB" and self.is_srgb:
            return image
        return self._transform(image)

    def grey_table(self) -> npt.NDArray[np.uint8]:
        """Return the sRGB level [256] uint8 of each 8-bit grey level."""
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        if self._space == "RGB ":
            ramp = ramp.convert("RGB")
        return np.asarray(self._transform(ramp))[0, :, 1]

    def convert_deep_grey(self, grey: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Convert grey [H, W] in [0, 1] without losing its gradations; float32 in [0, 1]."""
        if self.is_grey and has_deep_transforms():
            converted = np.interp(grey, _LEVELS, _grey_levels(self.icc))
            return converted.astype(np.float32)
        table = self.grey_table().astype(np.float64)
        if np.abs(table - np.arange(256)).max() <= 1.0:
            return grey.astype(np.float32, copy=False)
        # LittleCMS answers in whole levels; the mean of nine neighbours of the curve (mirrored
        # through its ends) takes their steps out, which would show as bands in 16-bit skies.
        ends = (2 * table[0] - table[4:0:-1], table, 2 * table[-1] - table[-2:-6:-1])
        curve = np.convolve(np.concatenate(ends), np.full(9, 1 / 9), "valid") / 255.0
        converted = np.interp(grey, np.arange(256) / 255.0, np.clip(curve, 0.0, 1.0))
        return converted.astype(np.float32)

    def convert_deep(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Convert RGB, CMYK or LAB [H, W, n] to sRGB; float32 [H, W, 3] in [0, 1].

        Args:
            pixels: in [0, 1]; of LAB L from 0 to 100, a and b as they are.

        Raises:
            ProfileError: not applicable, or imagecodecs is not installed.
        """
        space = _CMS_SPACES[self._space]
        if space == "cmyk":
            pixels = pixels * np.float32(100)  # LittleCMS counts ink in percent
        return _deep(pixels, self.icc, srgb_profile(), space, "rgb")

    @functools.cached_property
    def is_srgb(self) -> bool:
        """Whether RGB pixels mean what they mean in sRGB, to a level of 255."""
        if self._space != "RGB ":
            return False
        side = np.linspace(0, 255, 9).astype(np.uint8)
        probe = np.stack(np.meshgrid(side, side, side), axis=-1).reshape(1, -1, 3)
        converted = np.asarray(self._transform(Image.fromarray(probe)))
        return bool(np.abs(converted.astype(int) - probe).max() <= 1)

    def _transform(self, image: Image.Image) -> Image.Image:
        try:
            converted = ImageCms.profileToProfile(
                image,
                self._profile,
                ImageCms.createProfile("sRGB"),
                renderingIntent=_INTENT,
                outputMode="RGB",
                flags=_FLAGS,
            )
        except (OSError, ValueError, ImageCms.PyCMSError) as error:
            raise ProfileError(f"broken: {error}") from error
        if converted is None:
            raise ProfileError("not applicable")
        return converted


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """Convert a picture in mode LAB (CIELAB, D50, as TIFF stores it) to sRGB."""
    source = ImageCms.createProfile("LAB")
    target = ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(
        image, source, target, renderingIntent=_INTENT, outputMode="RGB"
    )
    if converted is None:
        raise ProfileError("not applicable")
    return converted


class ResultProfile:
    """A photo's own profile, for a result that is stored in it.

    Args:
        icc: the profile, of RGB or grey pixels.

    Raises:
        ProfileError: nothing can be converted into it, as into those of many scanners, or
            imagecodecs is not installed.
    """

    def __init__(self, icc: bytes) -> None:
        self._icc = icc
        try:
            self._source = SourceProfile(icc, "RGB")
        except ProfileError:
            self._source = SourceProfile(icc, "L")
        if self._source.is_grey:
            steps = np.diff(_grey_levels(icc))
            if not (steps >= 0).all():
                raise ProfileError("its tones do not rise")
        elif not self._source.is_srgb:
            self.of_srgb(np.zeros((1, 1, 3), np.uint16))

    @property
    def is_srgb(self) -> bool:
        """Whether RGB pixels are the same in it as in sRGB."""
        return self._source.is_srgb

    def of_srgb(self, pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        """Convert sRGB [H, W, 3] of 16 bits into the profile."""
        unit = _deep(pixels, srgb_profile(), self._icc, "rgb", "rgb")
        levels: npt.NDArray[np.uint16] = np.rint(unit * np.float32(_TOP)).astype(np.uint16)
        return levels

    def of_luminance(self, scaled_l: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
        """Return the grey levels, of 16 bits, of L/50 - 1 [H, W]: the inverse of reading them."""
        grey = _grey_levels(self._icc).astype(np.float32)
        light = np.maximum.accumulate(photo_luminance(grey[None])[0])
        out = np.empty(scaled_l.shape, np.uint16)

        def convert(band: slice) -> None:
            for top in range(band.start, band.stop, _ROWS):
                rows = slice(top, min(top + _ROWS, band.stop))
                out[rows] = np.rint(np.interp(scaled_l[rows], light, np.arange(_TOP + 1.0)))

        in_bands(out.shape[0], out.shape[1], convert)
        return out


@functools.lru_cache(maxsize=16)
def result_profile(icc: bytes) -> ResultProfile | None:
    """Return a profile for results; None where nothing can be converted into it."""
    try:
        return ResultProfile(icc)
    except ProfileError:
        return None


def in_profile(
    icc: bytes, compose: Callable[[bool], npt.NDArray[Any]], *, deep: bool
) -> npt.NDArray[Any]:
    """Bring a result in colour into its profile.

    Args:
        icc: the profile; empty: sRGB.
        compose: makes the picture, [H, W, 3] sRGB, of 16 bits where it is told so.
        deep: whether the result has 16 bits.

    Returns:
        [H, W, 3] uint16 if ``deep``, else uint8.
    """
    profile = result_profile(icc) if icc else None
    if profile is None or profile.is_srgb:
        return compose(deep)
    # Of 16 bits first: two steps of 8 would make bands.
    return _of_depth(profile.of_srgb(compose(True)), deep)


def grey_in_profile(
    icc: bytes, scaled_l: npt.NDArray[np.float32], *, deep: bool
) -> npt.NDArray[Any]:
    """Return the grey picture of L/50 - 1 [H, W] in a profile of grey, or sRGB's tones: [H, W]."""
    profile = result_profile(icc) if icc else None
    if profile is None:
        return grey_from_luminance(scaled_l, deep=deep)
    return _of_depth(profile.of_luminance(scaled_l), deep)


def _of_depth(pixels: npt.NDArray[np.uint16], deep: bool) -> npt.NDArray[Any]:
    return pixels if deep else np.rint(pixels / np.float32(257)).astype(np.uint8)


@functools.cache
def srgb_profile() -> bytes:
    """Return the sRGB profile that results without one of their own get."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # LittleCMS writes the time of the call: with a fixed one, equal photos give equal files.
    return icc[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + icc[36:]


@functools.cache
def lab_profile() -> bytes:
    """Return the profile of CIELAB as TIFF stores it, with the white of D50."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def has_deep_transforms() -> bool:
    """Whether more than 8 bits a sample can be converted: whether imagecodecs is installed."""
    return _cms_transform() is not None


@functools.cache
def _cms_transform() -> Callable[..., npt.NDArray[Any]] | None:
    try:
        from imagecodecs import cms_transform  # noqa: PLC0415 - need not be installed
    except ImportError:
        return None
    transform: Callable[..., npt.NDArray[Any]] = cms_transform
    return transform


def _deep(
    pixels: npt.NDArray[Any], source: bytes, target: bytes, space: str, into: str
) -> npt.NDArray[np.float32]:
    transform = _cms_transform()
    if transform is None:
        raise ProfileError("imagecodecs is not installed")
    out = np.empty((*pixels.shape[:2], 3), np.float32)

    def convert(band: slice) -> None:
        for top in range(band.start, band.stop, _ROWS):
            rows = slice(top, min(top + _ROWS, band.stop))
            converted = transform(
                np.ascontiguousarray(pixels[rows]),
                source,
                target,
                colorspace=space,
                outcolorspace=into,
                outdtype="float32",
                intent=int(_INTENT),
                flags=_DEEP_FLAGS,
            )
            np.clip(converted, 0.0, 1.0, out=out[rows])

    try:
        in_bands(pixels.shape[0], pixels.shape[1], convert)
    # LittleCMS' errors arrive as ValueError, RuntimeError or a class of imagecodecs' own.
    except Exception as error:
        raise ProfileError(f"not applicable: {error}") from error
    return out


@functools.lru_cache(maxsize=8)
def _grey_levels(icc: bytes) -> npt.NDArray[np.float64]:
    """The sRGB level [65536] in [0, 1] of each 16-bit grey level."""
    if not has_deep_transforms():
        raise ProfileError("imagecodecs is not installed")
    levels = _LEVELS[None, :]
    return _deep(levels, icc, srgb_profile(), "gray", "rgb")[0, :, 1].astype(np.float64)
