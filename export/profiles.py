"""Ranges and fixed shapes of inputs, all taken from the one table of bucket sides.

The first step pads photos to that table; TensorRT's optimization profiles, CUDA graphs and warm-up
requests are chosen from it here, so that what arrives is what was optimized for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pikfix.layers.sizes import SIDE_MULTIPLE, WORKING_LIMIT, working_size
from pikfix.photos import GPU_BUCKET_SIDES
from pikfix.photos.steps import DEFAULT_MAX_REFERENCES
from pikfix.systems.base import (
    PHOTO_SIDES,
    REFERENCE_SIDES,
    REFERENCES,
    WORKING_SIDES,
    Step,
)

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
    """The largest shapes of each step, by its name; of those that it does not hold, the usual."""

    largest: Mapping[str, Largest] = field(default_factory=dict)

    def of(self, step: Step) -> Largest:
        """The largest shapes of a step."""
        usual = Largest(side=step.working_limit or WORKING_LIMIT)
        if step.takes_photos:
            usual = Largest(1, GPU_BUCKET_SIDES[-1])
        return self.largest.get(step.name, usual)

    def max_side(self, steps: Sequence[Step]) -> int:
        """Of a photo that passes all of the steps."""
        return min(self.of(step).side for step in steps if step.takes_photos)

    def max_references(self, steps: Sequence[Step]) -> int:
        """Of a photo that passes all of the steps."""
        return min(self.of(step).references for step in steps)


def sizes(
    sides: tuple[int, int],
    references: int = 1,
    reference_sides: tuple[int, int] | None = None,
    working_limit: int | None = None,
) -> dict[str, int]:
    """Sizes for all symbols of shapes.

    Args:
        sides: height and width of photos, and of working sizes.
        references: of each photo.
        reference_sides: their height and width; the photos' when None.
        working_limit: longest side of working sizes; None: they are the photos'.
    """
    symbols = (*PHOTO_SIDES, *WORKING_SIDES, *REFERENCE_SIDES, REFERENCES)
    working = sides
    if working_limit is not None and max(sides) > working_limit:
        working = (sides[0] * working_limit // max(sides), sides[1] * working_limit // max(sides))
    return dict(
        zip(symbols, (*sides, *working, *(reference_sides or sides), references), strict=True)
    )


def profile_of(model: Step, largest: Largest, *, reference_side: int) -> Profile:
    """The profile of a sub-net.

    One, since a batch that a server has merged must fit the profile of each of its photos: with a
    second one for single large photos, two of those would be an error.

    Args:
        model: a step.
        largest: shapes.
        reference_side: longest side of references.

    Returns:
        Ranges that hold every shape the first step produces up to the largest. The smallest side is
        32, which callers of the ensemble `pikfix` may send and an elongated photo's working size
        has.
    """
    common, references = min(_COMMON_SIDE, largest.side), (reference_side, reference_side)
    side, limit = largest.side, model.working_limit
    ends = (
        (1, sizes((SIDE_MULTIPLE, SIDE_MULTIPLE))),
        (1, sizes((common, common), 1, references, limit)),
        (largest.batch, sizes((side, side), largest.references, references, limit)),
    )
    return Profile(
        {
            tensor.name: Range(*((batch, *tensor.sized(end)) for batch, end in ends))
            for tensor in model.inputs
        }
    )


def common_shapes(
    model: Step,
    largest: Largest,
    *,
    reference_side: int,
    sides: Sequence[int] = GPU_BUCKET_SIDES,
) -> tuple[dict[str, Shape], ...]:
    """Shapes that photos of usual sizes and aspects have, without the batch dimension.

    Args:
        model: a step.
        largest: shapes that the network takes.
        reference_side: longest side of references; those here are square.
        sides: the bucket table.
    """
    buckets = [
        (height, width)
        for height, width in itertools.product(sides, repeat=2)
        if max(height, width) <= _LONGEST * min(height, width)
    ]
    if model.takes_photos:
        limit = min(_GRAPH_SIDE, largest.side)
        found = [pair for pair in buckets if max(pair) <= limit]
    else:
        found = [working_size(*pair, model.working_limit or WORKING_LIMIT) for pair in buckets]
    references = (reference_side, reference_side)
    return tuple(
        {
            tensor.name: tensor.sized(sizes(size, 1, references, model.working_limit))
            for tensor in model.inputs
        }
        for size in sorted(set(found))
    )
