"""Pixels as a file stores them to sRGB on white: profiles, transparency, 8 or 16 bits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.photos import png, profiles


@dataclasses.dataclass
class ToSrgb:
    """The conversion of one file's pixels.

    Attributes:
        icc: its colour profile; empty where there is none.
        encoding: what the chunks of a PNG say of its tones.
        warnings: what has changed what is read is added here.
        own: the profile, where a result of the same kind of pixels can be stored in it.
        stored: the pixels as they were before the profile, if it changed them and ``own`` is set:
            [H, W] or [H, W, 3], uint8 or floating point in [0, 1].
    """

    warnings: list[str]
    icc: bytes = b""
    encoding: png.Encoding = dataclasses.field(default_factory=png.Encoding)
    own: bytes = b""
    stored: npt.NDArray[Any] | None = None

    def shallow(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Convert what Pillow holds at 8 bits: [H, W] grey or [H, W, 3], uint8."""
        alpha = None
        if image.has_transparency_data:
            image = image.convert("LA" if image.mode in {"1", "L", "LA", "La"} else "RGBA")
            alpha = image.getchannel("A")
        image = self._to_srgb(_plain(image))
        if alpha is not None and np.asarray(alpha).min() < 255:
            self.warnings.append("transparent parts were placed on white")
            self.own, self.stored = b"", None
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
            if profile is not None:
                converted = (
                    image.point(profile.grey_table().tolist())
                    if image.mode == "L"
                    else profile.convert(image)
                )
                self._note_own(profile, image, converted)
                return converted
        except profiles.ProfileError as error:
            self.warnings.append(f"the colour profile was not used ({error})")
        if image.mode == "LAB":
            return profiles.lab_to_srgb(image)
        if image.mode == "CMYK":
            self.warnings.append("CMYK without a usable colour profile: tones are approximate")
            image = image.convert("RGB")
        return image if self.encoding.is_srgb else self.encoding.applied(image)

    def deep(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Apply the profile to float32 [H, W] or [H, W, 3] in [0, 1]."""
        profile = self._profile("L" if pixels.ndim == 2 else "RGB")
        if profile is None:
            return pixels if self.encoding.is_srgb else self.encoding.to_srgb(pixels)
        try:
            if pixels.ndim == 2:
                converted_grey = profile.convert_deep_grey(pixels)
                self._note_own(profile, pixels, converted_grey)
                return converted_grey
            if profile.is_srgb:
                self._note_own(profile, pixels, pixels)
                return pixels
            if profiles.has_deep_transforms():
                converted_deep = profile.convert_deep(pixels)
                self._note_own(profile, pixels, converted_deep)
                return converted_deep
            shallow = Image.fromarray(np.rint(pixels * 255.0).astype(np.uint8))
            converted = profile.convert(shallow)
        except profiles.ProfileError as error:
            self.warnings.append(f"the colour profile was not used ({error})")
            return pixels
        self.warnings.append("the colour profile was applied at 8 bits a sample")
        return np.asarray(converted).astype(np.float32) / np.float32(255)

    def deep_other(self, pixels: npt.NDArray[Any], mode: str) -> npt.NDArray[np.float32]:
        """Convert CMYK or CIELAB of more than 8 bits, see :class:`~.tiff_pixels.Stored`, to sRGB.

        Args:
            pixels: [H, W, n].
            mode: CMYK or LAB.
        """
        try:
            profile = self._profile(mode)
            if profile is not None:
                return profile.convert_deep(pixels)
        except profiles.ProfileError as error:
            self.warnings.append(f"the colour profile was not used ({error})")
        if mode == "LAB":
            return profiles.SourceProfile(profiles.lab_profile(), mode).convert_deep(pixels)
        self.warnings.append("CMYK without a usable colour profile: tones are approximate")
        light = (1.0 - pixels[..., :3]) * (1.0 - pixels[..., 3:])
        return light.astype(np.float32)

    def _note_own(self, profile: profiles.SourceProfile, before: Any, after: Any) -> None:
        """Keep the profile for the result, if one can be stored in it, and what it changed."""
        grey = before.mode == "L" if isinstance(before, Image.Image) else before.ndim == 2
        if profile.is_grey != grey:
            return
        if profiles.result_profile(profile.icc) is None:
            return
        self.own = profile.icc
        self.stored = None if before is after else np.asarray(before)

    def on_white(
        self, pixels: npt.NDArray[Any], alpha: npt.NDArray[Any] | None, *, premultiplied: bool
    ) -> npt.NDArray[Any]:
        """Place float pixels [H, W(, 3)] in [0, 1] on white by their alpha [H, W, 1], if any."""
        if alpha is None or float(alpha.min()) == 1.0:
            return pixels
        self.warnings.append("transparent parts were placed on white")
        self.own, self.stored = b"", None
        if pixels.ndim == 2:
            alpha = alpha[..., 0]
        over = (pixels if premultiplied else pixels * alpha) + (1.0 - alpha)
        placed: npt.NDArray[Any] = np.clip(over, 0.0, 1.0)
        return placed


def _plain(image: Image.Image) -> Image.Image:
    """One of the modes that colour profiles exist for: L, RGB, CMYK or LAB."""
    if image.mode in {"L", "RGB", "CMYK", "LAB"}:
        return image
    return image.convert("L" if image.mode in {"1", "LA", "La"} else "RGB")
