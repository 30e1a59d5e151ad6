"""Whether a picture has colours, or is grey, or toned in a single tint as sepia prints are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.photos.color import lab_planes

MIN_CHROMA = 3.0
"""Mean chroma in Lab units below which a picture counts as grey."""
MIN_SPREAD = 2.0
"""Deviation of ab among places of equal L, in Lab units, below which a picture is toned: sepia."""
_LIGHTNESS_STEPS = 32
_AB_SCALE = 110.0
_SIDE = 64


@dataclass(frozen=True)
class Tint:
    """How colourful a picture is.

    Attributes:
        chroma: mean chroma in Lab units.
        spread: root mean square distance of ab from their mean among places of (nearly) the same
            L, in Lab units. Toning makes colour a function of lightness alone.
    """

    chroma: float = 0.0
    spread: float = 0.0

    @property
    def rejection_reason(self) -> str | None:
        """Why the picture has no colours to speak of; None where it has."""
        if self.chroma < MIN_CHROMA:
            return "it is grey"
        if self.spread < MIN_SPREAD:
            return "it is toned in a single tint"
        return None


def tint_of(lab: npt.NDArray[np.float32]) -> Tint:
    """Measure scaled Lab planes [3, H, W], see :func:`pikfix.photos.lab_planes`."""
    ab = lab[1:] * _AB_SCALE
    steps = np.minimum((lab[0] + 1) * (_LIGHTNESS_STEPS / 2), _LIGHTNESS_STEPS - 1)
    step = steps.astype(np.intp).ravel()
    count = np.maximum(np.bincount(step, minlength=_LIGHTNESS_STEPS), 1)
    squares = 0.0
    for channel in ab:
        mean = np.bincount(step, channel.ravel(), _LIGHTNESS_STEPS) / count
        squares += float(((channel.ravel() - mean[step]) ** 2).mean())
    return Tint(float(np.hypot(ab[0], ab[1]).mean()), float(squares**0.5))


def has_colours(pixels: npt.NDArray[Any]) -> bool:
    """Whether a photo [H, W] or [H, W, 3], uint8 or floating point in [0, 1], has colours."""
    if pixels.ndim == 2:
        return False
    step = max(1, min(pixels.shape[:2]) // _SIDE)
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels[::step, ::step], 0.0, 1.0) * 255.0).astype(np.uint8)
        step = 1
    # Averaged, since the noise of a colour sensor is no colour.
    small = np.asarray(Image.fromarray(pixels).reduce(step))
    return tint_of(lab_planes(small)).rejection_reason is None
