"""Numeric parity: the distance of two computations of one array, for exported networks.

numpy only, so that a machine without torch can compare what a server returns.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Parity:
    """Differences between an expected and an actual array.

    psnr: in dB over the whole array; infinite when they are equal, minus infinity when the actual
        array has values that are not finite.
    max_abs, mean_abs: largest and mean absolute difference, in the array's units.
    worst_tile: largest root-mean-square difference of a tile. A seam or a dropped patch hides in
        the mean of a large picture, not in its tile.
    worst_tile_at: the tile's index in the leading axes, then its top row and left column.
    finite: whether all actual values are.
    """

    psnr: float
    max_abs: float
    mean_abs: float
    worst_tile: float
    worst_tile_at: tuple[int, ...]
    finite: bool

    def violations(
        self,
        *,
        min_psnr: float | None = None,
        max_abs: float | None = None,
        max_worst_tile: float | None = None,
    ) -> list[str]:
        """Return one line for each limit that does not hold; an empty list is a pass."""
        found = []
        if not self.finite:
            found.append("the result has values that are not finite")
        if min_psnr is not None and not self.psnr >= min_psnr:
            found.append(f"PSNR {self.psnr:.2f} dB is below {min_psnr:.2f} dB")
        if max_abs is not None and not self.max_abs <= max_abs:
            found.append(f"largest difference {self.max_abs:.3g} is over {max_abs:.3g}")
        if max_worst_tile is not None and not self.worst_tile <= max_worst_tile:
            at = ", ".join(map(str, self.worst_tile_at))
            found.append(
                f"worst tile, at ({at}), differs by {self.worst_tile:.3g}, "
                f"which is over {max_worst_tile:.3g}"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values; numbers that JSON cannot hold become None."""
        values = asdict(self)
        for key, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[key] = None
        values["worst_tile_at"] = list(self.worst_tile_at)
        return values


def compare(
    expected: npt.NDArray[Any],
    actual: npt.NDArray[Any],
    *,
    data_range: float = 2.0,
    tile: int = 32,
) -> Parity:
    """Measure the differences between two arrays [..., H, W] (or [N], [H, W]) in float64.

    Args:
        expected: the reference, all values finite.
        actual: of the same shape.
        data_range: peak of the PSNR; 2 for tensors in [-1, 1].
        tile: side of the square tiles; the last row and column of tiles may be smaller.

    Raises:
        ValueError: the shapes differ, an array is empty, or the reference is not finite.
    """
    if expected.shape != actual.shape:
        raise ValueError(
            f"cannot compare arrays of shapes {list(expected.shape)} and {list(actual.shape)}"
        )
    if expected.size == 0:
        raise ValueError(f"cannot compare empty arrays of shape {list(expected.shape)}")
    if tile < 1 or not data_range > 0:
        raise ValueError(f"tile {tile} must be at least 1 and data_range {data_range} positive")
    reference = expected.astype(np.float64)
    if not np.isfinite(reference).all():
        raise ValueError("the expected array has values that are not finite")
    result = actual.astype(np.float64)
    finite = bool(np.isfinite(result).all())
    difference = np.atleast_2d(np.abs(np.where(np.isfinite(result), result - reference, np.inf)))
    squares = difference**2
    mse = float(squares.mean())
    psnr = decibels(mse, data_range) if finite else -math.inf
    worst, at = _worst_tile(squares, tile)
    return Parity(
        psnr=psnr,
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        worst_tile=math.sqrt(worst),
        worst_tile_at=at,
        finite=finite,
    )


def decibels(mse: float, peak: float) -> float:
    """The peak signal-to-noise ratio of a mean squared error; infinite where it is 0."""
    return math.inf if mse == 0 else -10 * math.log10(mse / peak**2)


def _worst_tile(squares: npt.NDArray[np.float64], tile: int) -> tuple[float, tuple[int, ...]]:
    height, width = squares.shape[-2:]
    tops, lefts = np.arange(0, height, tile), np.arange(0, width, tile)
    sums = np.add.reduceat(np.add.reduceat(squares, tops, axis=-2), lefts, axis=-1)
    rows = np.minimum(tops + tile, height) - tops
    columns = np.minimum(lefts + tile, width) - lefts
    means = sums / (rows[:, None] * columns)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(means)), means.shape))
    return float(means[index]), (*index[:-2], index[-2] * tile, index[-1] * tile)
