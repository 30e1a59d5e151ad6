"""Ranges and fixed shapes of inputs, all taken from the one table of bucket sides.

The first step pads photos to that table; TensorRT's optimization profiles, CUDA graphs and warm-up
requests are chosen from it here, so that what arrives is what was optimized for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pikfix.export.contract import PHOTO_L, REFERENCE_LAB, RESTORED_L, Model, Tensor
from pikfix.networks import SIDE_MULTIPLE, WORKING_LIMIT
from pikfix.photos import DEFAULT_BUCKET_SIDES
from pikfix.photos.steps import DEFAULT_MAX_REFERENCES

Shape = tuple[int, ...]

_SMALL_LIMIT = 1024
"""Photos up to this side are batched; larger ones keep a GPU busy one at a time."""
_COMMON_SIDES = (256, 512)
"""What a profile is optimized for, and what CUDA graphs are captured for."""


@dataclass(frozen=True)
class Range:
    """Smallest, most common and largest shape of an input, batch dimension included."""

    smallest: Shape
    common: Shape
    largest: Shape


@dataclass(frozen=True)
class Profile:
    """Shapes that one set of kernels is chosen for: a range per input, by name."""

    ranges: dict[str, Range]


def scale_of(tensor: Tensor) -> int:
    """How many pixels of the working size a position of the tensor spans."""
    if tensor.name.startswith(("warped_", "confidence_")):
        return 1 << int(tensor.name.rsplit("_", 1)[1]) + 1
    return 1


def profiles_of(
    model: Model,
    *,
    max_batch: int,
    reference_side: int,
    sides: Sequence[int] = DEFAULT_BUCKET_SIDES,
) -> tuple[Profile, ...]:
    """The profiles of a sub-net: one, or for `restore` one for batches and one for large photos.

    Args:
        model: a sub-net's contract.
        max_batch: photos in a batch.
        reference_side: longest side of references.
        sides: the bucket table, ascending multiples of 32.

    Returns:
        Profiles that together hold every shape the first step produces. The smallest side is 32,
        which callers of the ensemble `pikfix` may send and an elongated photo's working size has.
    """
    if model.inputs[0].name not in (PHOTO_L.name, RESTORED_L.name):
        return (_profile(model, max_batch, WORKING_LIMIT, _COMMON_SIDES[-1], reference_side),)
    small = max(side for side in sides if side <= max(_SMALL_LIMIT, sides[0]))
    found = [_profile(model, max_batch, small, _COMMON_SIDES[0], reference_side)]
    if sides[-1] > small:
        common = sides[sides.index(small) + 1]
        found.append(_profile(model, 1, sides[-1], common, reference_side))
    return tuple(found)


def common_shapes(
    model: Model, *, reference_side: int, sides: Sequence[int] = DEFAULT_BUCKET_SIDES
) -> tuple[dict[str, Shape], ...]:
    """Square photos of common buckets, without the batch dimension: shapes that stay fixed."""
    return tuple(
        {tensor.name: _shape(tensor, side, 1, reference_side) for tensor in model.inputs}
        for side in _COMMON_SIDES
        if side in sides
    )


def _profile(model: Model, batch: int, largest: int, common: int, reference_side: int) -> Profile:
    ranges = {}
    for tensor in model.inputs:
        ranges[tensor.name] = Range(
            (1, *_shape(tensor, SIDE_MULTIPLE, 1, SIDE_MULTIPLE)),
            (1, *_shape(tensor, min(common, largest), 1, reference_side)),
            (batch, *_shape(tensor, largest, DEFAULT_MAX_REFERENCES, reference_side)),
        )
    return Profile(ranges)


def _shape(tensor: Tensor, side: int, references: int, reference_side: int) -> Shape:
    if tensor.name == REFERENCE_LAB.name:
        side = reference_side
    leading = tuple(references if size == -1 else size for size in tensor.dims[:-2])
    return (*leading, side // scale_of(tensor), side // scale_of(tensor))
