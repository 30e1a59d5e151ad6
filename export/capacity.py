"""The largest shapes whose activations fit the memory that a network may take.

Servers with native backends do not run networks in tiles, and an engine holds the memory of its
largest shape for good. So that shape is chosen by counting bytes, at export time; the first step
then refuses what is larger, in a line that names the limit, before any work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from pikfix.export.errors import ExportError
from pikfix.export.memory import activation_bytes
from pikfix.export.profiles import Capacity, Largest, profile_of
from pikfix.layers.sizes import WORKING_LIMIT
from pikfix.photos import GPU_BUCKET_SIDES
from pikfix.systems.base import Step

_GIB = 1 << 30


def capacity_of(
    modules: Mapping[str, nn.Module],
    models: Sequence[Step],
    *,
    budget: int,
    max_batch: int,
    reference_side: int,
    fused_warp: bool,
    report: Callable[[str], None] = lambda line: None,
) -> Capacity:
    """Choose the largest shapes of every sub-net.

    Args:
        modules: the wrapped sub-nets by name, in the types they will be served in.
        models: the steps whose memory is to be counted; others take the usual shapes.
        budget: bytes that the activations of one network may take.
        max_batch: photos in a batch, at most.
        reference_side: longest side of references.
        fused_warp: whether the correlation warp is a kernel that writes no N x M map.
        report: called with a line for each sub-net, which says bytes.

    Raises:
        ExportError: the smallest useful shape does not fit.
    """
    largest: dict[str, Largest] = {}
    for model in models:
        name = model.name
        for found in _preferred(model, max_batch, fused_warp):
            profile = profile_of(model, found, reference_side=reference_side)
            shapes = {tensor: ranges.largest for tensor, ranges in profile.ranges.items()}
            needed = activation_bytes(modules[name], model, shapes, fused_warp=fused_warp)
            if needed <= budget:
                largest[name] = found
                report(f"{name}: {_words(model, found)} take {_gib(needed)} of {_gib(budget)}")
                break
        else:
            raise ExportError(
                f"{name}: {_words(model, found)} would take {_gib(needed)} ({needed} bytes), "
                f"{_gib(budget)} are allowed: raise --memory-gib"
            )
    return Capacity(largest)


def _preferred(model: Step, max_batch: int, fused_warp: bool) -> Iterator[Largest]:
    """Shapes to try, the most useful first."""
    batches = [batch for batch in (8, 4, 2, 1) if batch <= max_batch]
    limit = model.working_limit or WORKING_LIMIT
    if model.takes_photos:
        # One at a time: a large photo keeps a GPU busy, and a batch would be one of the largest.
        yield from (Largest(1, side) for side in reversed(GPU_BUCKET_SIDES))
    elif model.correlation and not fused_warp:
        # The map of one photo and one reference has 16384^2 places at the finest scale.
        yield from (Largest(1, limit, count) for count in range(Largest.references, 0, -1))
    else:
        yield from (Largest(batch, limit) for batch in batches)
        if model.correlation:
            yield from (Largest(1, limit, n) for n in range(Largest.references - 1, 0, -1))


def _words(model: Step, largest: Largest) -> str:
    photos = f"{largest.batch} photo{'s' if largest.batch > 1 else ''} of {largest.side} pixels"
    if not model.correlation:
        return photos
    return f"{photos} with {largest.references} reference{'s' if largest.references > 1 else ''}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f} GiB"
