"""Padded shapes: reflection to a small table of sides, so that a batcher finds equal shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

MULTIPLE = 32
# A side grows by at most a third from one entry to the next from 384 on (a quarter from 512 on).
DEFAULT_BUCKET_SIDES = (
    *(128, 256, 384, 512, 640, 768, 896, 1024),
    *(1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096),
)

# Half as many: a GPU computes a padded photo in no time that anybody sees, but works best on
# batches of one shape and on shapes that it has a CUDA graph for. Photos of usual aspects with a
# long side of 200 to 1024 pixels get 19 shapes instead of 35, for 7 % more area (800 to 4096: 25
# instead of 74, for 19 % more); on a CPU that would be time.
GPU_BUCKET_SIDES = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)


def check_bucket_sides(sides: Sequence[int]) -> tuple[int, ...]:
    """Return the table sorted, without duplicates.

    Raises:
        ValueError: an entry is no positive multiple of 32.
    """
    for side in sides:
        if side < MULTIPLE or side % MULTIPLE:
            raise ValueError(f"bucket side {side} is no positive multiple of {MULTIPLE}")
    return tuple(sorted(set(sides)))


def bucket_shape(
    height: int, width: int, sides: Sequence[int] = DEFAULT_BUCKET_SIDES
) -> tuple[int, int]:
    """Choose the padded shape of a photo.

    Args:
        height: at least 1.
        width: at least 1.
        sides: multiples of 32 in ascending order.

    Returns:
        (H, W): for each side the smallest entry that holds it; a side longer than the whole
        table goes to the next multiple of 32.
    """
    return _bucket_side(height, sides), _bucket_side(width, sides)


def _bucket_side(side: int, sides: Sequence[int]) -> int:
    for candidate in sides:
        if side <= candidate:
            return candidate
    return -(-side // MULTIPLE) * MULTIPLE


def pad_reflect(plane: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
    """Pad [..., h, w] at the bottom and right to ``shape`` by reflection.

    The edge itself is not repeated. A pad longer than the picture reflects again and again; a
    side of one pixel repeats that pixel. A plane that has the shape is returned itself.

    Raises:
        ValueError: ``shape`` is smaller than the plane, or the plane is empty.
    """
    height, width = plane.shape[-2:]
    if height < 1 or width < 1 or shape[0] < height or shape[1] < width:
        raise ValueError(f"cannot pad {height} x {width} to {shape[0]} x {shape[1]}")
    if (height, width) == tuple(shape):
        return plane
    out = np.empty((*plane.shape[:-2], *shape), plane.dtype)
    out[..., :height, :width] = plane
    out[..., :height, width:] = plane[..., _reflected(width, shape[1])]
    out[..., height:, :] = out[..., _reflected(height, shape[0]), :]
    return out


def _reflected(size: int, padded: int) -> npt.NDArray[np.intp]:
    period = max(2 * (size - 1), 1)
    position = np.arange(size, padded) % period
    return np.minimum(position, period - position) if size > 1 else position


def crop(plane: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Undo :func:`pad_reflect`: a view of the top left (height, width) of [..., H, W]."""
    return plane[..., : size[0], : size[1]]
