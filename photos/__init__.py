"""Picture files in and out: decoding, colour conversion, padding and encoding in numpy.

Imports numpy and Pillow (and tifffile for 16-bit colour TIFF) and nothing heavier, so that the
server's python steps start quickly.
"""

from __future__ import annotations

from pikfix.photos.color import (
    ChromaPlanes,
    compose,
    grey_from_luminance,
    lab_planes,
    lab_to_rgb,
    photo_luminance,
    rgb_to_lab,
)
from pikfix.photos.decode import DEFAULT_MAX_PIXELS, Photo, decode_photo
from pikfix.photos.encode import encode_photo
from pikfix.photos.errors import PhotoError
from pikfix.photos.files import (
    open_picture,
    read_picture_file,
    why_unreadable,
    write_atomically,
    write_together,
)
from pikfix.photos.padding import (
    DEFAULT_BUCKET_SIDES,
    GPU_BUCKET_SIDES,
    bucket_shape,
    check_bucket_sides,
    crop,
    pad_reflect,
)
from pikfix.photos.tint import Tint, has_colours, tint_of

__all__ = [
    "DEFAULT_BUCKET_SIDES",
    "DEFAULT_MAX_PIXELS",
    "GPU_BUCKET_SIDES",
    "ChromaPlanes",
    "Photo",
    "PhotoError",
    "Tint",
    "bucket_shape",
    "check_bucket_sides",
    "compose",
    "crop",
    "decode_photo",
    "encode_photo",
    "grey_from_luminance",
    "has_colours",
    "lab_planes",
    "lab_to_rgb",
    "open_picture",
    "pad_reflect",
    "photo_luminance",
    "read_picture_file",
    "rgb_to_lab",
    "tint_of",
    "why_unreadable",
    "write_atomically",
    "write_together",
]
