"""A photo that lies in its border turned by a few degrees: its four edges, to the pixel."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

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

Points = npt.NDArray[np.float64]
Corners = tuple[tuple[float, float], ...]

_SIDE = 512
# Less is a rectangle but for a pixel or two; more is no scan of a photo.
_MIN_DEGREES, _MAX_DEGREES = 0.35, 12.0
# Edges of one photo are parallel or at right angles.
_MAX_DIFFERENCE = 0.7
# Of the pixels of the picture's outermost strip: near the paper's tone.
_EVEN_SHARE = 0.9
_EVEN_WITHIN = 20
_NOISE_FACTOR = 4.0
_MIN_TOLERANCE, _MAX_TOLERANCE = 8.0, 28.0
# Rows that must not be paper where the photo starts.
_RUN = 5
# Of an edge's places: on one line; how far from it, in pixels of the reduced picture.
_MIN_ON_LINE = 0.6
_OFF_LINE = 1.5
_MAX_PLACES = 400
# Pixels along the edges that are part photo, part paper.
_RIM = 2.0


@dataclasses.dataclass(frozen=True)
class _Line:
    """y = slope x + start, of an edge seen from above it."""

    slope: float
    start: float

    def at(self, x: Any) -> Any:
        return self.slope * x + self.start


def find_corners(levels: Levels) -> Corners | None:
    """Find a turned photo in an even border.

    Returns:
        Its corners as (x, y), in pixels from the picture's upper left corner, from the photo's
        upper left one clockwise. None where there is no border, or the photo is not turned.
    """
    grey, factor = levels.within(_SIDE)
    if min(grey.shape) < 24:
        return None
    found = _tone(grey)
    if found is None:
        return None
    tone, tolerance = found
    away = away_from(grey, tone, tolerance)
    lines = _edges(away)
    if lines is None:
        return None
    corners = _corners(lines, grey.shape)
    if corners is None or not _is_photo(grey, away, found, corners):
        return None
    pixels = levels.pixels
    fine = _refined(pixels, lines, tone, tolerance, factor) if factor > 1 else lines
    return _corners(fine, (pixels.shape[0], pixels.shape[1]), shrink=_RIM)


def inside(corners: Corners, top: int, left: int, size: tuple[int, int]) -> Mask:
    """Which pixels of a part (height, width) of the picture lie between the corners."""
    image = Image.new("1", (size[1], size[0]))
    # Pillow counts from the middle of the first pixel.
    points = [(x - left - 0.5, y - top - 0.5) for x, y in corners]
    ImageDraw.Draw(image).polygon(points, fill=1)
    return np.asarray(image, dtype=np.bool_)


def _tone(grey: Plane) -> tuple[float, float] | None:
    """The tone of the paper all around, and how far it spreads."""
    strip = max(2, round(0.006 * min(grey.shape)))
    parts = (grey[:strip], grey[-strip:], grey[:, :strip], grey[:, -strip:])
    around = np.concatenate([part.ravel() for part in parts])
    tone = float(np.median(around))
    apart = np.abs(around - np.float32(tone))
    if float((apart <= _EVEN_WITHIN).mean()) < _EVEN_SHARE:
        return None
    noise = 1.4826 * float(np.median(apart))
    return tone, float(np.clip(_NOISE_FACTOR * noise, _MIN_TOLERANCE, _MAX_TOLERANCE))


def _views(array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """The picture with its upper, right, lower and left edge on top, by turning it."""
    return array, np.rot90(array, 1), np.rot90(array, 2), np.rot90(array, 3)


def _edges(away: Mask) -> list[_Line] | None:
    lines = []
    for view in _views(away):
        starts = _starts(view)
        line = _fit(starts, _OFF_LINE)
        if line is None:
            return None
        lines.append(line)
    degrees = [math.degrees(math.atan(line.slope)) for line in lines]
    middle = float(np.median(degrees))
    if not _MIN_DEGREES <= abs(middle) <= _MAX_DEGREES:
        return None
    return lines if max(abs(one - middle) for one in degrees) <= _MAX_DIFFERENCE else None


def _starts(away: Mask) -> Points:
    """Where the photo starts, from above: [n, 2] of x and y, columns without a photo left out."""
    away = np.ascontiguousarray(away)
    last = len(away) - _RUN + 1
    full = away[:last].copy()
    for row in range(1, _RUN):
        full &= away[row : last + row]
    columns = np.flatnonzero(full.any(axis=0))
    return np.column_stack([columns + 0.5, full[:, columns].argmax(axis=0)]).astype(np.float64)


def _fit(points: Points, off: float) -> _Line | None:
    """The line that most points are near; a caption or the photo's other edges may be without.

    Deterministic: pairs of points at fixed distances are tried.
    """
    count = len(points)
    if count < 16:
        return None
    best: Mask | None = None
    for share in (0.2, 0.35, 0.5):
        reach = max(8, round(share * count))
        for first in range(0, count - reach, max(1, (count - reach) // 40)):
            (x0, y0), (x1, y1) = points[first], points[first + reach]
            if x1 == x0:
                continue
            slope = (y1 - y0) / (x1 - x0)
            near = np.abs(points[:, 1] - y0 - slope * (points[:, 0] - x0)) <= off
            if best is None or near.sum() > best.sum():
                best = near
    if best is None or float(best.mean()) < _MIN_ON_LINE:
        return None
    slope, start = np.polyfit(points[best, 0], points[best, 1], 1)
    return _Line(float(slope), float(start))


def _corners(lines: list[_Line], shape: tuple[int, ...], shrink: float = 0.0) -> Corners | None:
    """Where neighbouring edges meet, in the picture's own place; None outside of it."""
    height, width = shape[0], shape[1]
    # Normal form n . (x, y) = d, the photo on the side where it is greater.
    turned = []
    for quarter, line in enumerate(lines):
        normal = np.array([-line.slope, 1.0]) / math.hypot(line.slope, 1.0)
        point = np.array([0.0, line.start]) + shrink * normal
        for _ in range(quarter):  # back by one quarter turn each
            normal = np.array([-normal[1], normal[0]])
        turned.append((normal, _turned_back(point, quarter, height, width)))
    found = []
    for (n0, p0), (n1, p1) in zip(turned[-1:] + turned[:-1], turned, strict=True):
        matrix = np.stack([n0, n1])
        if abs(np.linalg.det(matrix)) < 0.5:
            return None
        x, y = np.linalg.solve(matrix, [n0 @ p0, n1 @ p1])
        if not (-1 <= x <= width + 1 and -1 <= y <= height + 1):
            return None
        found.append((float(np.clip(x, 0, width)), float(np.clip(y, 0, height))))
    return tuple(found)


def _turned_back(point: Points, quarter: int, height: int, width: int) -> Points:
    """A point of a view, by quarter turns, in the picture itself."""
    x, y = float(point[0]), float(point[1])
    places = ((x, y), (width - y, x), (width - x, height - y), (y, height - x))
    return np.array(places[quarter])


def _is_photo(grey: Plane, away: Mask, paper: tuple[float, float], corners: Corners) -> bool:
    tone, tolerance = paper
    within = inside(corners, 0, 0, (away.shape[0], away.shape[1]))
    if float(within.mean()) < MIN_AREA or within.all():
        return False
    return (
        float(away[~within].mean()) <= MAX_OUTSIDE
        and float(away[within].mean()) >= MIN_INSIDE
        and median_distance(grey[within], tone) >= max(MIN_DEPTH, 1.5 * tolerance)
    )


def _refined(
    pixels: npt.NDArray[Any], lines: list[_Line], tone: float, tolerance: float, factor: int
) -> list[_Line]:
    """The lines at the picture's own size, each fitted anew to the pixels around it."""
    # The reduced picture's last row and column may reach beyond the picture's own: all that is
    # counted from there is shifted.
    below, right = -pixels.shape[0] % factor, -pixels.shape[1] % factor
    shifts = ((0, 0), (0, right), (right, below), (below, 0))
    fine = []
    for quarter, (line, (x, y)) in enumerate(zip(lines, shifts, strict=True)):
        view = np.rot90(pixels, quarter)
        rough = _Line(line.slope, line.start * factor + line.slope * x - y)
        refit = _refit(view, rough, tone, tolerance, 3 * factor)
        fine.append(refit or rough)
    return fine


def _refit(
    view: npt.NDArray[Any], line: _Line, tone: float, tolerance: float, reach: int
) -> _Line | None:
    height, width = view.shape[:2]
    step = max(1, width // _MAX_PLACES)
    points = []
    for x in range(0, width, step):
        first = round(line.at(x)) - reach
        last = first + 2 * reach
        if first < 0 or last > height:
            continue
        band = view[first:last, x].astype(np.float32)
        band = band @ np.array([0.299, 0.587, 0.114], np.float32) if band.ndim == 2 else band
        band = band if view.dtype == np.uint8 else band * 255
        apart = np.abs(band - tone)
        # Half of the way to the photo: its edge runs through the pixel.
        level = max(tolerance, 0.5 * float(np.median(apart[reach:])))
        entered = np.flatnonzero(apart > level)
        if len(entered) and entered[0] > 0:
            points.append((x + 0.5, first + float(entered[0])))
    return _fit(np.array(points), 1.5) if len(points) >= 16 else None
