"""From what a caller has at hand to the bytes and tensors that are sent."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pikfix.client._errors import (
    InvalidInputError,
    InvalidOptionsError,
    InvalidPhotoError,
    InvalidReferenceError,
    InvalidTensorError,
)
from pikfix.client._metadata import facts_of
from pikfix.photos import read_picture_file
from pikfix.protocol.options import Options, OptionsError

PhotoLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | npt.NDArray[np.uint8]"
)
"""A path, an encoded file's bytes, a PIL image, or an array [H, W] or [H, W, 3] of uint8."""

# Modes that PNG stores without loss.
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
# Modes without a PNG form and without an ICC profile of their own that would be lost.
_CONVERTED_MODES = {
    "La": "LA",
    "PA": "RGBA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
}

_ErrorType: TypeAlias = "type[InvalidPhotoError] | type[InvalidReferenceError]"


@dataclass(frozen=True)
class Encoded:
    """A picture's file to send.

    Attributes:
        data: its bytes.
        here: whether it was encoded here, from a picture in memory.
        notes: a line for each thing about that picture that the file does not hold.
    """

    data: bytes
    here: bool = False
    notes: tuple[str, ...] = ()


def encode_photo(photo: PhotoLike, error: _ErrorType = InvalidPhotoError) -> Encoded:
    """Return the encoded file to send.

    Paths and bytes are sent as they are: the server decodes them. PIL images and arrays are
    encoded without loss; an image's EXIF orientation is applied, as it is for a file, and its
    profile, EXIF, XMP, IPTC data, comments and resolution go with it.

    Args:
        photo: see :data:`PhotoLike`.
        error: what to raise.

    Raises:
        InvalidPhotoError: (or ``error``) an empty file, an array of another shape or type,
            or an image that cannot be encoded.
        OSError: the path cannot be read.
    """
    if isinstance(photo, (bytes, bytearray, memoryview)):
        data = bytes(photo)
        if not data:
            raise error("the bytes given are empty")
        return Encoded(data)
    if isinstance(photo, (str, os.PathLike)):
        try:
            data = read_picture_file(photo)
        except (TypeError, ValueError) as cause:  # a path of bytes, a NUL in a name
            raise error(f"{photo!r} is no path: {cause}") from cause
        if not data:
            raise error(f"the file {os.fspath(photo)} is empty")
        return Encoded(data)
    if isinstance(photo, Image.Image):
        return _encode_image(photo, error)
    if isinstance(photo, np.ndarray):
        return _encode_image(_image_of_array(photo, error), error)
    raise error(
        f"cannot send a {type(photo).__module__}.{type(photo).__qualname__}; give a path, the "
        "file's bytes, a PIL image, or a numpy array [H, W] or [H, W, 3] of uint8"
    )


def _image_of_array(array: npt.NDArray[Any], error: _ErrorType) -> Image.Image:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not shaped or array.dtype != np.uint8 or array.size == 0:
        raise error(
            f"an array must be [H, W] or [H, W, 3] of uint8 and not empty, got shape "
            f"{list(array.shape)} of {array.dtype}"
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _encode_image(image: Image.Image, error: _ErrorType) -> Encoded:
    try:
        # Opening is lazy in PIL: a damaged file is noticed here.
        image.load()
        facts = facts_of(image)
        upright = ImageOps.exif_transpose(image)
        buffer = io.BytesIO()
        if upright.mode == "CMYK":
            # PNG has no CMYK, and a conversion without the profile would shift the tones.
            # Pillow compresses no TIFF that holds EXIF.
            upright.save(buffer, "TIFF", **facts.tiff())
            lost = ("the comments of an image in CMYK were not sent",) if facts.texts else ()
            return Encoded(buffer.getvalue(), here=True, notes=(*facts.dropped, *lost))
        if upright.mode == "I" or upright.mode.startswith("I;16"):
            upright = _sixteen_bit(upright, error)
        elif upright.mode not in _PNG_MODES:
            if upright.mode not in _CONVERTED_MODES:
                raise error(f"cannot send an image of mode {upright.mode}; convert it to RGB or L")
            upright = upright.convert(_CONVERTED_MODES[upright.mode])
        icc = image.info.get("icc_profile")
        upright.save(buffer, "PNG", compress_level=1, icc_profile=icc, **facts.png())
    except (OSError, SyntaxError, ValueError, AttributeError) as cause:
        # PIL reports damaged data as any of these, and a closed image as the last.
        if isinstance(cause, InvalidInputError):
            raise
        raise error(f"cannot encode the image: {cause}") from cause
    return Encoded(buffer.getvalue(), here=True, notes=facts.dropped)


def _sixteen_bit(image: Image.Image, error: _ErrorType) -> Image.Image:
    """Return an image of 16-bit grey in the one byte order and width that PNG takes."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise error(f"an image of mode {image.mode} must hold 0 to 65535, got {low} to {high}")
    return Image.fromarray(values.astype(np.uint16))


def encode_references(
    reference: PhotoLike | Sequence[PhotoLike] | None,
) -> list[bytes]:
    """Return the encoded references: none, one or several.

    Raises:
        InvalidReferenceError: as :func:`encode_photo` for the photo, naming which one.
        OSError: a path cannot be read.
    """
    if reference is None:
        return []
    several = reference if isinstance(reference, (list, tuple)) else [cast(PhotoLike, reference)]
    return [encode_photo(one, InvalidReferenceError).data for one in several]


def check_options(given: Mapping[str, Any]) -> Options:
    """Return the options of a photo request; numpy's scalars count as Python's.

    Raises:
        InvalidOptionsError: an option has the wrong type or is out of range.
    """
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in given.items()}
    try:
        return Options(**plain)
    except OptionsError as error:
        raise InvalidOptionsError(str(error)) from error


def check_tensors(photo_l: npt.NDArray[np.float32], reference_lab: npt.NDArray[np.float32]) -> None:
    """Check the tensors of a request to ``pikfix``.

    Args:
        photo_l: [B, 1, H, W], L/50 - 1, float32.
        reference_lab: [B, R, 3, Hr, Wr], L/50 - 1, a/110, b/110, float32; R >= 1.

    Raises:
        InvalidTensorError: another type, shape or batch size, or values that are not finite.
    """
    check_tensor("photo_l", photo_l, (None, 1, None, None))
    check_tensor("reference_lab", reference_lab, (None, None, 3, None, None))
    if photo_l.shape[0] != reference_lab.shape[0]:
        raise InvalidTensorError(
            f"photo_l has batch size {photo_l.shape[0]} and reference_lab {reference_lab.shape[0]};"
            " give each photo its own references"
        )


def check_tensor(name: str, tensor: Any, shape: Sequence[int | None]) -> None:
    """Check one float32 tensor against a shape in which None stands for any size >= 1.

    Raises:
        InvalidTensorError: another type or shape, or values that are not finite.
    """
    wanted = "[" + ", ".join("*" if size is None else str(size) for size in shape) + "]"
    if not isinstance(tensor, np.ndarray):
        raise InvalidTensorError(
            f"{name} must be a numpy array {wanted} of float32, got {type(tensor).__qualname__}"
        )
    fits = tensor.ndim == len(shape) and all(
        size >= 1 and want in (None, size) for size, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits or tensor.dtype != np.float32:
        raise InvalidTensorError(
            f"{name} must be {wanted} of float32, got {list(tensor.shape)} of {tensor.dtype}"
        )
    if not np.isfinite(tensor).all():
        raise InvalidTensorError(f"{name} holds NaN or infinite values")
