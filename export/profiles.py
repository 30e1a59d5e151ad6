"""Ranges and fixed shapes of inputs, all taken from the one table of bucket sides.

The first step pads photos to that table; TensorRT's optimization profiles, CUDA graphs and warm-up
requests are chosen from it here, so that what arrives is what was optimized for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pikfix.export.contract import PHOTO_L, REFERENCE_LAB, RESTORED_L, Model, Tensor
from pikfix.networks import SIDE_MULTIPLE, WORKING_LIMIT, working_size
from pikfix.photos import GPU_BUCKET_SIDES
from pikfix.photos.steps import DEFAULT_MAX_REFERENCES

Shape = tuple[int, ...]

_COMMON_SIDE = 512
"""What a profile is optimized for."""
_GRAPH_SIDE = 1024
"""CUDA graphs spare launches, which larger photos do not notice."""
_LONGEST = 2
"""Longest to shortest side of photos that graphs are captured for."""


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


@dataclass(frozen=True)
class Largest:
    """The largest shapes that a network has to take.

    batch: photos in a batch.
    side: of the network's pictures, in pixels.
    references: of each photo.
    """

    batch: int = 8
    side: int = WORKING_LIMIT
    references: int = DEFAULT_MAX_REFERENCES


@dataclass(frozen=True)
class Capacity:
    """The largest shapes of each sub-net, by its name."""

    largest: Mapping[str, Largest] = field(
        default_factory=lambda: {
            "restore": Largest(1, GPU_BUCKET_SIDES[-1]),
            "similarity": Largest(),
            "colorize": Largest(),
        }
    )

    @property
    def max_side(self) -> int:
        """Of a photo."""
        return self.largest["restore"].side

    @property
    def max_references(self) -> int:
        """Of a photo."""
        return self.largest["similarity"].references


def scale_of(tensor: Tensor) -> int:
    """How many pixels of the working size a position of the tensor spans."""
    if tensor.name.startswith(("warped_", "confidence_")):
        return 1 << int(tensor.name.rsplit("_", 1)[1]) + 1
    return 1


def takes_photos(model: Model) -> bool:
    """Whether a network takes photos of any size, not of the working size."""
    return model.inputs[0].name in (PHOTO_L.name, RESTORED_L.name)


def profile_of(model: Model, largest: Largest, *, reference_side: int) -> Profile:
    """The profile of a sub-net.

    One, since a batch that a server has merged must fit the profile of each of its photos: with a
    second one for single large photos, two of those would be an error.

    Args:
        model: a sub-net's contract.
        largest: shapes.
        reference_side: longest side of references.

    Returns:
        Ranges that hold every shape the first step produces up to the largest. The smallest side is
        32, which callers of the ensemble `pikfix` may send and an elongated photo's working size
        has.
    """
    ranges = {}
    for tensor in model.inputs:
        ranges[tensor.name] = Range(
            (1, *_shape(tensor, SIDE_MULTIPLE, 1, SIDE_MULTIPLE)),
            (1, *_shape(tensor, min(_COMMON_SIDE, largest.side), 1, reference_side)),
            (
                largest.batch,
                *_shape(tensor, largest.side, largest.references, reference_side),
            ),
        )
    return Profile(ranges)


def common_shapes(
    model: Model,
    largest: Largest,
    *,
    reference_side: int,
    sides: Sequence[int] = GPU_BUCKET_SIDES,
) -> tuple[dict[str, Shape], ...]:
    """Shapes that photos of usual sizes and aspects have, without the batch dimension.

    Args:
        model: a sub-net's contract.
        largest: shapes that the network takes.
        reference_side: longest side of references; those here are square.
        sides: the bucket table.
    """
    buckets = [
        (height, width)
        for height, width in itertools.product(sides, repeat=2)
        if max(height, width) <= _LONGEST * min(height, width)
    ]
    if takes_photos(model):
        limit = min(_GRAPH_SIDE, largest.side)
        found = [pair for pair in buckets if max(pair) <= limit]
    else:
        found = [working_size(*pair) for pair in buckets]
    return tuple(
        {tensor.name: _oblong(tensor, size, reference_side) for tensor in model.inputs}
        for size in sorted(set(found))
    )


def _oblong(tensor: Tensor, size: tuple[int, int], reference_side: int) -> Shape:
    *leading, _, _ = _shape(tensor, SIDE_MULTIPLE, 1, reference_side)
    if tensor.name == REFERENCE_LAB.name:
        size = (reference_side, reference_side)
    return (*leading, *(side // scale_of(tensor) for side in size))


def _shape(tensor: Tensor, side: int, references: int, reference_side: int) -> Shape:
    if tensor.name == REFERENCE_LAB.name:
        side = reference_side
    leading = tuple(references if size == -1 else size for size in tensor.dims[:-2])
    return (*leading, side // scale_of(tensor), side // scale_of(tensor))
