"""ICC profiles: pictures in any profiled colour space to sRGB, through LittleCMS."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
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
        if self._space not in _SPACES.get(mode, ()):
            raise ProfileError(f"made for {self._space.strip()} pixels, the picture has {mode}")

    def convert(self, image: Image.Image) -> Image.Image:
        """Convert RGB, CMYK or LAB to sRGB; RGB that is sRGB already returns as it came."""
        if image.mode == "RGB" and self._is_srgb():
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
        table = self.grey_table().astype(np.float64)
        if np.abs(table - np.arange(256)).max() <= 1.0:
            return grey.astype(np.float32, copy=False)
        # LittleCMS answers in whole levels; the mean of nine neighbours of the curve (mirrored
        # through its ends) takes their steps out, which would show as bands in 16-bit skies.
        ends = (2 * table[0] - table[4:0:-1], table, 2 * table[-1] - table[-2:-6:-1])
        curve = np.convolve(np.concatenate(ends), np.full(9, 1 / 9), "valid") / 255.0
        converted = np.interp(grey, np.arange(256) / 255.0, np.clip(curve, 0.0, 1.0))
        return converted.astype(np.float32)

    def _is_srgb(self) -> bool:
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
