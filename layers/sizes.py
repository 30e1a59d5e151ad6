"""Changes of a picture's size, spelt so that every runtime computes the same."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE_MULTIPLE = 32
"""Working sizes and reference sides are multiples of this: five halvings."""

WORKING_LIMIT = 512
"""Longest working side. Eyes are coarse in colour, and the correlation grows with its fourth
power."""


def pad_to_multiple(pictures: Tensor, multiple: int) -> Tensor:
    """Repeat the right and bottom edges of `[B, C, H, W]` until both sides are multiples."""
    height, width = pictures.shape[-2:]
    # Not `-width % multiple`: the remainder of a negative number is negative on TensorRT.
    right = (width + multiple - 1) // multiple * multiple - width
    bottom = (height + multiple - 1) // multiple * multiple - height
    return F.pad(pictures, (0, right, 0, bottom), mode="replicate")


def working_size(height: int, width: int, limit: int = WORKING_LIMIT) -> tuple[int, int]:
    """The size at which colour is predicted.

    Args:
        height: of the photo, in pixels.
        width: of the photo, in pixels.
        limit: longest side.

    Returns:
        Multiples of 32, at least 32: the photo's own size rounded, or, where its long side is
        over the limit, the size scaled down to it.
    """
    # Integers only, so that export turns the same formula into a shape computation.
    long_side = torch.sym_max(torch.sym_max(height, width), limit)
    half = SIDE_MULTIPLE // 2

    def scale(side: int) -> int:
        multiple = (side * limit // long_side + half) // SIDE_MULTIPLE
        working: int = torch.sym_max(multiple, 1) * SIDE_MULTIPLE
        return working

    return scale(height), scale(width)


def resize_antialiased(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize pictures as `interpolate(..., mode="bilinear", antialias=True)` does.

    TensorRT has no antialiased resize, and runtimes that have one round in their own ways: PyTorch
    is up to 1e-5 off. Two products with matrices of weights are within 1e-6 everywhere.

    Args:
        pictures: `[B, C, H, W]` of floats.
        size: height and width of the result.

    Returns:
        `[B, C, *size]`, in the pictures' dtype, also under autocast.
    """
    if torch.is_autocast_enabled(pictures.device.type):
        with torch.autocast(pictures.device.type, enabled=False):
            return resize_antialiased(pictures, size)
    (height, width), (new_height, new_width) = pictures.shape[-2:], size
    if not _same(width, new_width):
        pictures = pictures @ _weights(width, new_width, pictures).T
    if not _same(height, new_height):
        pictures = _weights(height, new_height, pictures) @ pictures
    return pictures


def _same(old: int, new: int) -> bool:
    """Whether the weights are known to be the identity; never so while sizes are being traced."""
    return isinstance(old, int) and isinstance(new, int) and old == new


def _weights(old: int, new: int, like: Tensor) -> Tensor:
    """How much of every old position each new one takes, `[new, old]`; each row sums to 1.

    A triangle around the new position's centre, as wide as what is coarser: an old position's
    neighbours where the picture grows, a new one's where it shrinks. Lengths are in half old
    positions. The centre's whole part is subtracted as an integer, so that the weights of a long
    side are as accurate as those of a short one.
    """
    number = 2 * torch.arange(new, device=like.device) + 1
    # About the whole part will do: the rest is exact, whatever it is. (A division of integers would
    # be too much for Inductor's analysis of ranges.)
    whole = (number.to(torch.float32) * old / new).to(torch.int64)
    rest = (number * old - whole * new).to(like.dtype) / new
    places = (2 * torch.arange(old, device=like.device) + 1).to(like.dtype)
    distance = places - whole.to(like.dtype)[:, None] - rest[:, None]
    reach = 2 * torch.sym_max(old, new) / new
    near = (1 - distance.abs() / reach).clamp(min=0)
    weights: Tensor = near / near.sum(dim=1, keepdim=True)
    return weights
