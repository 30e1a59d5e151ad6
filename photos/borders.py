"""Where the photo lies in a scan with a border: paper, a scanner's lid, a caption beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pikfix.photos.levels import (
    MAX_OUTSIDE,
    MIN_AREA,
    MIN_DEPTH,
    MIN_INSIDE,
    Levels,
    Mask,
    Plane,
    away_from,
    median_distance,
)

_BORDER_SIDE = 512
# Of the shorter side: the least width of a margin, and how far a turned photo's edge may slant.
_MIN_MARGIN = 0.006
_SLANT = 0.015
# A margin is even: this share of its outermost strip lies within this many levels of its tone.
_EVEN_SHARE = 0.9
_EVEN_WITHIN = 20
_NOISE_FACTOR = 4.0
_MIN_TOLERANCE, _MAX_TOLERANCE = 8.0, 28.0
_CLEAN = 0.01
_NESTED = 3


@dataclasses.dataclass(frozen=True)
class Rectangle:
    """A part of a picture, in pixels; bottom and right are outside."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the part in an array [H, W, ...]."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


def find_rectangle(levels: Levels) -> Rectangle | None:
    """Find the photo within even margins, of paper or of a scanner's lid; None without margins.

    Captions may lie in the margins, and margins within others. The photo may be turned by a degree
    or two: the rectangle is then the largest that lies in it, or nearly.
    """
    grey, factor = levels.within(_BORDER_SIDE)
    top, left = 0, 0
    found: Rectangle | None = None
    for _ in range(_NESTED):
        inner = _within_margins(grey)
        if inner is None:
            break
        top, left = top + inner.top, left + inner.left
        found = Rectangle(top, left, top + inner.size[0], left + inner.size[1])
        grey = grey[inner.slices]
    if found is None:
        return None
    return _at_full_size(levels.pixels, found, factor)


def _within_margins(grey: Plane) -> Rectangle | None:
    """One border, on the reduced picture."""
    if min(grey.shape) < 24:
        return None
    strip = max(2, round(_MIN_MARGIN * min(grey.shape)))
    tones: list[tuple[float, float]] = []
    for line in (grey[:strip], grey[-strip:], grey[:, :strip], grey[:, -strip:]):
        tone = float(np.median(line))
        apart = np.abs(line - np.float32(tone))
        if float((apart <= _EVEN_WITHIN).mean()) < _EVEN_SHARE:
            continue
        noise = 1.4826 * float(np.median(apart))
        if all(abs(tone - other) > _MIN_TOLERANCE for other, _ in tones):
            tones.append((tone, noise))
    best, most = None, 0.0
    for tone, noise in tones:
        tolerance = float(np.clip(_NOISE_FACTOR * noise, _MIN_TOLERANCE, _MAX_TOLERANCE))
        inner, score = _box(away_from(grey, tone, tolerance), strip)
        if inner is None or score <= most:
            continue
        depth = median_distance(grey[inner.slices], tone)
        if depth >= max(MIN_DEPTH, 1.5 * tolerance):
            best, most = inner, score
    return best


def _box(away: Mask, strip: int) -> tuple[Rectangle | None, float]:
    """The rectangle of what is away from the margins' tone, and how sure its edges are."""
    height, width = away.shape
    # Products with ones count faster than sums of bits do, and as exactly.
    ones = away.astype(np.float32)
    rows, columns = (0, height), (0, width)
    for _ in range(3):
        before = rows, columns
        rows = _run(_shares(ones, columns))
        columns = _run(_shares(ones.T, rows))
        if rows[1] - rows[0] < 16 or columns[1] - columns[0] < 16:
            return None, 0.0
        if (rows, columns) == before:
            break
    # All four edges by one rule: sides are turned to the top one after the other.
    down, across = _shares(ones, columns), _shares(ones.T, rows)
    shares = (down, down[::-1], across, across[::-1])
    starts = (rows[0], height - rows[1], columns[0], width - columns[1])
    slant = max(1, round(_SLANT * min(away.shape)))
    margins, sure = [], []
    for share, start in zip(shares, starts, strict=True):
        margin, is_sure = _edge(share, start, strip, slant)
        margins.append(margin)
        sure.append(is_sure)
    inner = Rectangle(margins[0], margins[2], height - margins[1], width - margins[3])
    area = inner.size[0] * inner.size[1] / away.size
    if min(inner.size) < 16 or area < MIN_AREA:
        return None, 0.0
    opposite = (sure[0] and sure[1]) or (sure[2] and sure[3])
    if sum(sure) < 2 or (sum(sure) == 2 and not opposite):
        return None, 0.0
    return inner, sum(sure) + 1 - area


def _shares(ones: npt.NDArray[np.float32], columns: tuple[int, int]) -> npt.NDArray[np.float64]:
    """For every row, the share of the columns from the first to before the second that are one."""
    part = ones[:, slice(*columns)]
    counts = part @ np.ones(part.shape[1], np.float32)
    return counts.astype(np.float64) / part.shape[1]


def _run(share: npt.NDArray[Any]) -> tuple[int, int]:
    """The longest run of rows that are as full as the fuller ones, short gaps closed."""
    full = share >= 0.5 * float(np.percentile(share, 90))
    if not full.any():
        return 0, 0
    gap = max(2, len(share) // 40)
    places = np.flatnonzero(full)
    parts = np.split(places, np.flatnonzero(np.diff(places) > gap) + 1)
    longest = max(parts, key=lambda part: int(part[-1] - part[0]))
    return int(longest[0]), int(longest[-1]) + 1


def _edge(share: npt.NDArray[Any], start: int, strip: int, slant: int) -> tuple[int, bool]:
    """The width of a margin above a photo that seems to start at a row, and whether it is sure.

    Where the edge is not sharp, as under a white sky, the margin ends before everything that is
    not paper; it may then be none.
    """
    outside = share[max(0, start - slant - strip) : max(0, start - slant)]
    if len(outside) < strip:
        outside = share[: max(0, start - 1)]
    inside = share[start + slant : start + slant + strip]
    if (
        start >= strip
        and len(outside)
        and float(outside.mean()) <= MAX_OUTSIDE
        and float(inside.mean()) >= MIN_INSIDE
        # A caption may lie in the margin, another photo may not.
        and float(np.mean(share[:start] > MIN_INSIDE)) <= 0.02
    ):
        full = np.flatnonzero(share[: start + slant] < 0.9 * float(inside.mean()))
        return int(full[-1]) + 1 if len(full) else start, True
    dirty = np.flatnonzero(share[:start] > _CLEAN)
    margin = int(dirty[0]) if len(dirty) else start
    return (margin, False) if margin >= strip else (0, False)


def _at_full_size(pixels: npt.NDArray[Any], found: Rectangle, factor: int) -> Rectangle:
    """Bring a rectangle to the picture's own size, its edges to the very row."""
    height, width = pixels.shape[:2]
    rectangle = [
        found.top * factor,
        found.left * factor,
        min(height, found.bottom * factor),
        min(width, found.right * factor),
    ]
    # A remainder at the end of a side belongs to a photo that has no margin there.
    rectangle[2] = height if height - rectangle[2] < factor else rectangle[2]
    rectangle[3] = width if width - rectangle[3] < factor else rectangle[3]
    rows, columns = slice(rectangle[0], rectangle[2]), slice(rectangle[1], rectangle[3])
    reach = 2 * factor + 2
    edges: Sequence[tuple[npt.NDArray[Any], int]] = (
        (pixels[:, columns], rectangle[0]),
        (pixels[::-1, columns], height - rectangle[2]),
        (pixels.swapaxes(0, 1)[:, rows], rectangle[1]),
        (pixels.swapaxes(0, 1)[::-1, rows], width - rectangle[3]),
    )
    top, above, left, right = (_exact(view, place, reach) for view, place in edges)
    return Rectangle(top, left, height - above, width - right)


def _exact(view: npt.NDArray[Any], place: int, reach: int) -> int:
    """The first row of a photo whose margin above ends near a row."""
    if place <= 0:
        return 0
    first, last = max(0, place - reach), min(len(view), place + reach + 1)
    step = max(1, view.shape[1] // 500)
    band = view[first:last, ::step].astype(np.float32)
    if band.ndim == 3:
        band = band @ np.array([0.299, 0.587, 0.114], np.float32)
    # Rows of the margin and of the photo, and how far every row has come from one to the other.
    margin, photo = band[0], band[-1]
    apart = np.abs(photo - margin)
    telling = apart > 0.25 * float(apart.max())
    if not telling.any() or float(apart.max()) == 0:
        return place
    share = (np.abs(band - margin) > 0.5 * apart)[:, telling].mean(axis=1)
    entered = np.flatnonzero(share >= 0.75)
    return first + int(entered[0]) if len(entered) else place
