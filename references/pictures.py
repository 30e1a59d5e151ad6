"""Pictures as the library compares them: 256 x 256 luminance, and what colours they have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.photos import PhotoError, Tint, decode_photo, lab_planes, read_picture_file, tint_of
from pikfix.photos.domain import Content, find_content, photo_within
from pikfix.references import agreement
from pikfix.references.errors import LibraryError

SIDE = 256
"""Side that pictures are compared at: covariances need aligned positions (Pik-Fix, sec. 3.5)."""


@dataclass(frozen=True)
class Picture:
    """A picture reduced to what selection needs.

    Attributes:
        luminance: [256, 256] float32, L/50 - 1.
        tint: how colourful it is.
        palette: [8] float32, its mean colours (see `agreement`); zeros of a grey one.
    """

    luminance: npt.NDArray[np.float32]
    tint: Tint = field(default_factory=Tint)
    palette: npt.NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(agreement.VALUES, np.float32)
    )

    @property
    def why_unfit(self) -> str | None:
        """Why the picture has no colours to give; None where it has."""
        return self.tint.rejection_reason


def reduce_picture(pixels: npt.NDArray[Any]) -> Picture:
    """Reduce decoded pixels.

    Args:
        pixels: [H, W] grey or [H, W, 3] sRGB; uint8, or floating point in [0, 1].
    """
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels, 0.0, 1.0) * 255.0).astype(np.uint8)
    image = Image.fromarray(pixels)
    # Large photos are averaged down to three times the side first: eight times faster, and the
    # difference is below one grey level.
    small = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    lab = lab_planes(np.asarray(small))
    return Picture(lab[0], tint_of(lab), agreement.palette(lab))


def reduce_photo(pixels: npt.NDArray[Any], *, whole: bool = False) -> Picture | None:
    """Reduce the photo in decoded pixels, as the server sees it: a border is no part of it.

    Args:
        pixels: as for :func:`reduce_picture`.
        whole: take all of the picture for a photo, as ``force_photo`` does.

    Returns:
        None where there is no photo to colorize, but a page of text or a drawing.
    """
    content = Content() if whole else find_content(pixels)
    if content.kind == "graphic":
        return None
    return reduce_picture(photo_within(pixels, content))


def reduce_luminance(luminance: npt.NDArray[np.float32]) -> Picture:
    """Reduce a luminance [H, W] in L/50 - 1 of a photo that is to be colorized."""
    image = Image.fromarray(np.ascontiguousarray(luminance, dtype=np.float32), mode="F")
    return Picture(np.array(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)))


def read_pixels(path: Path, shrink_to: int = 2 * SIDE) -> npt.NDArray[np.uint8]:
    """Decode a picture file to [H, W] or [H, W, 3] uint8, a JPEG at a fraction of its size.

    Raises:
        PhotoError: it is no picture, or a damaged one.
        OSError: it cannot be read.
    """
    return decode_pixels(read_picture_file(path), shrink_to)


def decode_pixels(data: bytes, shrink_to: int = 2 * SIDE) -> npt.NDArray[np.uint8]:
    """Decode the bytes of a picture file, as :func:`read_pixels` does.

    Raises:
        PhotoError: it is no picture, or a damaged one.
    """
    pixels = decode_photo(data, shrink_to=shrink_to).pixels
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255.0).astype(np.uint8)
    return pixels


def read_picture(path: Path) -> Picture:
    """Read and reduce a picture file.

    Raises:
        LibraryError: it cannot be read as a picture.
    """
    with _naming(path):
        return reduce_picture(read_pixels(path))


def read_photo(path: Path) -> Picture | None:
    """Read the file of a photo that is to be colorized, and reduce what is within its border.

    Returns:
        None where there is no photo in it, see :func:`reduce_photo`.

    Raises:
        LibraryError: it cannot be read as a picture.
    """
    with _naming(path):
        # At its own size, since that is how the server looks for the border.
        return reduce_photo(decode_photo(read_picture_file(path)).pixels)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except PhotoError as error:
        raise LibraryError(f"{path}: {error.message}") from error
    except OSError as error:
        raise LibraryError(f"{path}: {error.strerror or error}") from error
