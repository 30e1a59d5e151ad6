"""Pixels that pass the networks by: what decode_photo keeps and encode_photo puts back."""

from __future__ import annotations

import base64
import dataclasses
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from pikfix.photos.color import grey_from_luminance, lab_planes, photo_luminance
from pikfix.photos.domain import Content, Rectangle
from pikfix.photos.turned import Corners

_TOP = 65535
_FAST = 1


@dataclasses.dataclass(frozen=True)
class Kept:
    """A picture, or its border alone, as it was decoded.

    Attributes:
        size: (height, width) of the whole picture.
        place: where the restored part belongs; None where nothing of it is restored.
        corners: of a photo that is turned within its place; the rest of the place is kept.
        colour: whether the pixels have three channels.
        deep: whether they have 16 bits.
        data: the pixels, compressed, as base64 text; zeros where the restored part belongs.
    """

    size: tuple[int, int]
    place: Rectangle | None
    colour: bool
    deep: bool
    data: str
    corners: Corners | None = None

    @classmethod
    def of(cls, pixels: npt.NDArray[Any], content: Content) -> Kept:
        """Keep what of [H, W] or [H, W, 3], uint8 or floating point in [0, 1], is no photo."""
        place, mask = content.rectangle, content.mask
        deep = pixels.dtype != np.uint8
        stored = np.rint(pixels * np.float32(_TOP)).astype("<u2") if deep else pixels
        if place is not None:
            stored = stored.copy()
            stored[place.slices][slice(None) if mask is None else mask] = 0
        packed = zlib.compress(np.ascontiguousarray(stored).tobytes(), _FAST)
        return cls(
            size=(int(pixels.shape[0]), int(pixels.shape[1])),
            place=place,
            corners=content.corners,
            colour=pixels.ndim == 3,
            deep=deep,
            data=base64.b64encode(packed).decode(),
        )

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Kept:
        """Read what `dataclasses.asdict` and JSON have made of one."""
        place = fields["place"]
        height, width = fields["size"]
        corners = fields["corners"]
        return cls(
            **{
                **fields,
                "size": (int(height), int(width)),
                "place": None if place is None else Rectangle(**place),
                "corners": None
                if corners is None
                else tuple((float(x), float(y)) for x, y in corners),
            }
        )

    def pixels(self, *, deep: bool) -> npt.NDArray[Any]:
        """The kept pixels, uint16 if ``deep``, else uint8."""
        flat = np.frombuffer(zlib.decompress(base64.b64decode(self.data)), self._type)
        stored = flat.reshape(*self.size, 3) if self.colour else flat.reshape(self.size)
        if self.deep and not deep:
            stored = np.rint(stored / np.float32(257))
        if deep and not self.deep:
            stored = stored.astype(np.uint16) * np.uint16(257)
        pixels: npt.NDArray[Any] = stored.astype(np.uint16 if deep else np.uint8)
        return pixels

    @property
    def _type(self) -> str:
        return "<u2" if self.deep else "u1"

    def around(self, restored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The whole picture with the restored part in it.

        A restored part without colour makes the border grey as well; around a part in colour the
        border keeps its own.

        Args:
            restored: [h, w] or [h, w, 3] of the size of ``place``, uint8 or uint16.
        """
        assert self.place is not None
        deep = restored.dtype == np.uint16
        whole = self.pixels(deep=deep)
        if restored.ndim == 2 and whole.ndim == 3:
            unit = whole.astype(np.float32) / np.float32(_TOP) if deep else whole
            whole = grey_from_luminance(photo_luminance(unit), deep=deep)
        elif restored.ndim == 3 and whole.ndim == 2:
            whole = np.repeat(whole[..., None], 3, axis=2)
        mask = Content(rectangle=self.place, corners=self.corners).mask
        chosen = slice(None) if mask is None else mask
        whole[self.place.slices][chosen] = restored[chosen]
        return whole


def unit_or_levels(kept: Kept) -> npt.NDArray[Any]:
    """Return kept pixels as they were read: uint8, or float32 in [0, 1] of 16 bits."""
    if not kept.deep:
        return kept.pixels(deep=False)
    return kept.pixels(deep=True).astype(np.float32) / np.float32(_TOP)


class OwnChroma:
    """The chroma of a photo's own colours, read as that of the networks is.

    Args:
        pixels: [H, W, 3] sRGB; uint8, or floating point in [0, 1].
        strength: 0 to 1.
    """

    def __init__(self, pixels: npt.NDArray[Any], strength: float = 1.0) -> None:
        self._pixels = pixels
        self._strength = np.float32(strength)

    def rows(self, rows: slice) -> npt.NDArray[np.float32]:
        """Return ab of these rows: [2, rows, width] float32, a/110 and b/110."""
        ab: npt.NDArray[np.float32] = lab_planes(self._pixels[rows])[1:] * self._strength
        return ab
