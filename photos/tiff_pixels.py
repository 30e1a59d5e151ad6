"""Pages of TIFF files by tifffile: the methods and depths that Pillow does not read."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.photos import tiff
from pikfix.photos.errors import PhotoError
from pikfix.photos.profiles import has_deep_transforms

_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_COLORS = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3, _CMYK: 4, _YCBCR: 3, _LAB: 3}
# Their codecs give RGB, whatever the file stores.
_COLOR_CODECS = frozenset({7, 34892, 33003, 33005, 34712, 34927, 50001, 50002, 52546})


class MissingPackageError(Exception):
    """A package would read the page; its text is the name."""


class UnsupportedError(Exception):
    """The page is of a kind that is not read."""


def no_known_range() -> PhotoError:
    """Return the error for floating-point samples that are not within [0, 1]."""
    return PhotoError(
        "unsupported_photo",
        "floating-point samples outside [0, 1] have no known range:"
        " save the photo with 8 or 16 bits",
    )


@dataclasses.dataclass(frozen=True)
class Stored:
    """A page's samples, before profiles.

    Attributes:
        mode: Pillow's name for what is stored, or one in its style.
        image: 8 bits a sample; else None.
        reduced: whether 8 of more bits were kept.
        unit: float32 [H, W] or [H, W, 3] in [0, 1] of deeper samples; else None.
        alpha: [H, W, 1] in [0, 1] that belongs to ``unit``, or None.
        premultiplied: whether its colours come multiplied by alpha.
        other: deeper samples that are neither grey nor RGB, [H, W, n] floating point: of CMYK
            (mode CMYK) in [0, 1], 1 being full ink; of CIELAB (mode LAB) L, a and b; else None.
    """

    mode: str
    image: Image.Image | None = None
    reduced: bool = False
    unit: npt.NDArray[np.float32] | None = None
    alpha: npt.NDArray[np.float32] | None = None
    premultiplied: bool = False
    other: npt.NDArray[np.float32] | None = None


def read(data: bytes, page: tiff.Page) -> Stored:
    """Read the first page of a file.

    Args:
        data: the file; its first directory is the page's.
        page: what that directory says.

    Raises:
        MissingPackageError: tifffile or imagecodecs is not installed.
        UnsupportedError: the page is of a kind that is not read.
        Exception: of any type, where the data is damaged.
    """
    try:
        import tifffile  # noqa: PLC0415 - wanted for such files alone
    except ImportError as error:
        raise MissingPackageError("tifffile") from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first = file.pages.first
        if not set(first.axes) <= set("YXS") or first.dtype is None:
            raise UnsupportedError(first.axes)
        if first.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(bool)} and (
            first.dtype.kind != "f"
        ):
            raise UnsupportedError(str(first.dtype))
        try:
            stored = first.asarray()
        except (ValueError, ImportError) as error:
            # tifffile without its codec package says so.
            if "imagecodecs" in str(error) or isinstance(error, ImportError):
                raise MissingPackageError("imagecodecs") from error
            raise
        if "S" in first.axes:
            stored = np.moveaxis(stored, first.axes.index("S"), -1)
        alpha_kinds = tuple(int(kind) for kind in first.extrasamples)
        palette = first.colormap
    return _arranged(stored, page, alpha_kinds, palette)


def _arranged(
    stored: npt.NDArray[Any],
    page: tiff.Page,
    alpha_kinds: tuple[int, ...],
    palette: npt.NDArray[Any] | None,
) -> Stored:
    photometric = page.whole(tiff.PHOTOMETRIC, _MIN_IS_BLACK)
    if photometric == _PALETTE and palette is not None and stored.ndim == 2:
        colors = (np.asarray(palette) >> 8).astype(np.uint8).T
        return Stored("P", Image.fromarray(np.ascontiguousarray(colors[stored])))
    if photometric == _YCBCR:
        if page.compression not in _COLOR_CODECS:
            raise UnsupportedError("YCbCr")
        photometric = _RGB
    count = _COLORS.get(photometric)
    planes = stored[..., None] if stored.ndim == 2 else stored
    if count is None or planes.shape[-1] < count:
        raise UnsupportedError(f"photometric {photometric}")
    alpha = planes[..., count : count + 1] if alpha_kinds[:1] in {(1,), (2,)} else None
    if alpha is not None and not alpha.shape[-1]:
        alpha = None
    colors = planes[..., :count]
    premultiplied = alpha_kinds[:1] == (1,)
    if colors.dtype == bool:
        colors = colors.astype(np.uint8) * np.uint8(255)
    if colors.dtype.kind == "f":
        if not (np.isfinite(colors).all() and colors.min() >= 0 and colors.max() <= 1):
            raise no_known_range()
        scale = 1
    else:
        bits = page.whole(tiff.BITS, 8)
        scale = (
            1 << (bits if colors.dtype == np.uint16 and bits < 16 else 8 * colors.itemsize)
        ) - 1
    if photometric in {_CMYK, _LAB} and colors.dtype == np.uint16 and has_deep_transforms():
        return _deep_other(colors, photometric)
    if colors.dtype == np.uint8 or photometric in {_CMYK, _LAB}:
        return _shallow(colors, alpha, photometric, premultiplied)
    unit = colors.astype(np.float32) / np.float32(scale)
    if photometric == _MIN_IS_WHITE:
        unit = 1.0 - unit
    return Stored(
        "RGB;16" if count == 3 else "I;16",
        unit=np.ascontiguousarray(unit if count == 3 else unit[..., 0]),
        alpha=None if alpha is None else alpha.astype(np.float32) / np.float32(scale),
        premultiplied=premultiplied,
    )


def _deep_other(colors: npt.NDArray[Any], photometric: int) -> Stored:
    if photometric == _CMYK:
        return Stored("CMYK", other=colors.astype(np.float32) / np.float32(65535))
    # Lightness unsigned, a and b signed and in 1/256.
    lab = colors.astype(np.float32)
    lab[..., 0] *= np.float32(100 / 65535)
    lab[..., 1:] = colors[..., 1:].astype(np.int16).astype(np.float32) / np.float32(256)
    return Stored("LAB", other=lab)


def _shallow(
    colors: npt.NDArray[Any],
    alpha: npt.NDArray[Any] | None,
    photometric: int,
    premultiplied: bool,
) -> Stored:
    reduced = colors.dtype != np.uint8
    if reduced:
        if colors.dtype != np.uint16:
            raise UnsupportedError(str(colors.dtype))
        colors, alpha = (colors >> 8).astype(np.uint8), None
    if photometric == _MIN_IS_WHITE:
        colors = 255 - colors
    if photometric == _LAB:
        # The file has a and b signed; Pillow keeps them with 128 as zero.
        return Stored(
            "LAB",
            Image.frombytes(
                "LAB", (colors.shape[1], colors.shape[0]),
                np.ascontiguousarray(colors).tobytes(),
            ),
            reduced,
        )  # fmt: skip
    if photometric == _CMYK:
        return Stored("CMYK", Image.fromarray(np.ascontiguousarray(colors), "CMYK"), reduced)
    if alpha is None:
        plain = colors[..., 0] if colors.shape[-1] == 1 else colors
        image = Image.fromarray(np.ascontiguousarray(plain))
        return Stored(image.mode, image, reduced)
    image = Image.fromarray(np.ascontiguousarray(np.concatenate([colors, alpha], axis=-1)))
    if premultiplied:
        size, raw = image.size, image.tobytes()
        image = Image.frombytes("RGBa" if image.mode == "RGBA" else "La", size, raw)
    return Stored(image.mode, image, reduced)
