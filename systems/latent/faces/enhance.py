"""All the faces of a photo drawn anew; the rest of it stays to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pikfix.systems.latent.faces.alignment import (
    Place,
    cropped,
    from_crop,
    place_of,
    put_back,
    scale_of,
)
from pikfix.systems.latent.faces.blending import REACH, blended, feathered, matched
from pikfix.systems.latent.faces.detection import SMALLEST, Array, Detector, mtcnn

Generator = Callable[[Array], Array]
"""Draws aligned faces anew: `[N, 3, side, side]`, (sRGB - 0.5) / 0.5, float32, in and out."""

LARGEST_SCALE = 2.0
"""Pixels of the photo to a pixel of a crop, above which drawing a face would lose its detail."""
_TOGETHER = 8  # faces that are drawn at a time
_GREY = 1e-3  # of 255: the difference of channels up to which a photo is grey


def enhance(
    photo_rgb: Array,
    generator: Generator,
    *,
    side: int = 256,
    smallest: int = SMALLEST,
    detector: Detector | None = None,
) -> tuple[Array, int]:
    """Draw the faces of a photo anew.

    Faces are searched for once, cut out of the photo as it came, and let in one after another.

    Args:
        photo_rgb: `[3, H, W]`, (sRGB - 0.5) / 0.5, float32.
        generator: of faces.
        side: of the crops that it draws.
        smallest: height in pixels of the faces that are drawn.
        detector: finds faces; MTCNN where it is None.

    Returns:
        The photo, with the same shape, range and type; and how many faces were drawn.

    Raises:
        FacesError: the packages for it are not installed.
        ValueError: the photo or what the generator answers is of another shape, or not finite.
    """
    if photo_rgb.ndim != 3 or photo_rgb.shape[0] != 3:
        raise ValueError(f"photo_rgb is {photo_rgb.shape}: it must be [3, H, W]")
    found = (detector or mtcnn(smallest))(_bytes(photo_rgb))
    transforms = [from_crop(face.points, side) for face in found if face.height >= smallest]
    size = (photo_rgb.shape[1], photo_rgb.shape[2])
    some = [t for t in transforms if t is not None and _can_be_drawn(t, side, size)]
    count, out = 0, photo_rgb.copy()
    for first in range(0, len(some), _TOGETHER):
        cut = [_Cut.of(photo_rgb, t, side) for t in some[first : first + _TOGETHER]]
        drawn = _drawn(generator, [one.crop for one in cut])
        for one, face in zip(cut, drawn, strict=True):
            count += _let_in(out, one, face)
    return (out, count) if count else (photo_rgb, 0)


def _can_be_drawn(transform: Array, side: int, size: tuple[int, int]) -> bool:
    """Whether a face is in the photo, and no larger than its drawing shows."""
    rows, columns = place_of(transform, side, size, 0)
    there = rows.start < rows.stop and columns.start < columns.stop
    return there and scale_of(transform) <= LARGEST_SCALE


class _Cut(NamedTuple):
    """A face that was cut out, where it lies in the photo, and which of its pixels are photo."""

    transform: Array
    place: Place
    crop: Array
    inside: Array

    @classmethod
    def of(cls, photo_rgb: Array, transform: Array, side: int) -> _Cut:
        height, width = photo_rgb.shape[1:]
        place = place_of(transform, side, (height, width), REACH)
        part = _levels(photo_rgb[(slice(None), *place)])
        return cls(transform, place, *cropped(part, place, transform, side))


def _levels(pictures: Array) -> Array:
    """`[3, H, W]` in [-1, 1] to `[H, W, 3]` in [0, 255]."""
    return np.ascontiguousarray(np.moveaxis(pictures, 0, 2), np.float32) * 127.5 + 127.5


def _bytes(photo_rgb: Array) -> Array:
    """`[3, H, W]` in [-1, 1] to `[H, W, 3]` of 8 bits."""
    levels = np.clip(np.rint(photo_rgb * np.float32(127.5) + np.float32(127.5)), 0, 255)
    return np.ascontiguousarray(np.moveaxis(levels.astype(np.uint8), 0, 2))


def _drawn(generator: Generator, crops: Sequence[Array]) -> list[Array]:
    faces = np.stack([np.moveaxis(crop / 127.5 - 1, 2, 0) for crop in crops])
    drawn = np.asarray(generator(faces.astype(np.float32)))
    if drawn.shape != faces.shape:
        raise ValueError(f"the generator answered {drawn.shape}, not {faces.shape}")
    if not np.isfinite(drawn).all():
        raise ValueError("the generator answered values that are no numbers")
    return [_levels(np.clip(face, -1, 1)) for face in drawn]


def _let_in(out: Array, cut: _Cut, drawn: Array) -> bool:
    """Replace a face in place; whether anything was."""
    drawn = matched(drawn, cut.crop, cut.inside)
    if np.ptp(cut.crop, axis=2).max() <= _GREY:
        # Grey stays grey.
        drawn = np.repeat(drawn.mean(axis=2, keepdims=True), 3, axis=2)
    back, there = put_back(drawn, cut.inside, cut.transform, cut.place)
    mask = feathered(there)
    part = out[(slice(None), *cut.place)]
    mixed = blended(_levels(part), np.clip(back, 0, 255), mask)
    np.copyto(part, np.moveaxis(mixed / 127.5 - 1, 2, 0), where=mask > 0, casting="same_kind")
    return bool(mask.any())
