"""What part of a picture is a photo: borders around it, pages of text, drawings.

The networks were trained on photos alone. Paper around a photo gets a ragged edge from them, and
letters lose their strokes; both are found here, so that they can be left as they are. Everything
is judged on a reduced picture and by conservative thresholds: an unrestored photo is the worse
mistake. On 461 photos, old and new, none is taken for a graphic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

Kind = Literal["photo", "graphic"]
Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Smaller pictures tell too little.
_MIN_SIDE = 48


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


@dataclasses.dataclass(frozen=True)
class Content:
    """What a picture holds.

    Attributes:
        kind: ``graphic`` for text, line drawings and whatever has two tones alone.
        rectangle: where the photo is, if there is a border around it; else None.
    """

    kind: Kind = "photo"
    rectangle: Rectangle | None = None


def find_content(pixels: npt.NDArray[Any]) -> Content:
    """Judge a picture.

    Args:
        pixels: [H, W] grey or [H, W, 3] sRGB; uint8, or floating point in [0, 1].
    """
    if min(pixels.shape[:2]) < _MIN_SIDE:
        return Content()
    if is_graphic(pixels):
        return Content("graphic")
    return Content("photo", find_rectangle(pixels))


def _reduced(pixels: npt.NDArray[Any], side: int) -> tuple[Plane, int]:
    """Grey levels 0 to 255 at a whole fraction of the size, and the divisor."""
    factor = max(1, -(-max(pixels.shape[:2]) // side))
    if pixels.dtype != np.uint8:  # decimated first, since Pillow has no 16-bit colour
        step = max(1, factor // 2)
        pixels = np.rint(np.clip(pixels[::step, ::step], 0, 1) * 255).astype(np.uint8)
        image = Image.fromarray(pixels).convert("L").reduce(max(1, factor // step))
        return np.asarray(image, dtype=np.float32), step * max(1, factor // step)
    image = Image.fromarray(pixels).reduce(factor) if factor > 1 else Image.fromarray(pixels)
    return np.asarray(image.convert("L"), dtype=np.float32), factor


# Graphics ---------------------------------------------------------------------------------

_GRAPHIC_SIDE = 1000
_BLOCK = 16
_PAPER_WITHIN = 16
_INK_FROM = 28
# Of the pixels: paper; of the ink: in solid patches, whose side is this share of the picture's.
# Photos with so much of one tone have a quarter of their darker pixels or more in such patches.
_MIN_PAPER = 0.62
_MAX_SOLID = 0.15
_PATCH = 0.012
_MIN_INK = 0.012
_MAX_INK = 0.4
_MIN_CONTRAST = 48
# The least bright tenth of the paper in relation to its middle: a photo's background varies.
_MIN_EVENNESS = 0.6
# Of the pixels: near one of two tones, so near that a silhouette before the sky is none.
_MIN_TWO_TONES = 0.93
_TONE_WIDTH = 9
_TONE_DISTANCE = 80
# The second tone among what is not near the first one.
_MIN_SECOND_TONE = 0.6
_MIN_INVERTED = 0.8


def is_graphic(pixels: npt.NDArray[Any]) -> bool:
    """Whether a picture [H, W] or [H, W, 3] is text, a line drawing, or of two tones alone."""
    grey, _ = _reduced(pixels, _GRAPHIC_SIDE)
    if min(grey.shape) < 2 * _BLOCK:
        return False
    if _has_two_tones(grey) or _is_ink_on_paper(grey):
        return True
    # White on black: fireworks and stars are so as well, and they are photos.
    return sum(_two_tones(grey)) > _MIN_INVERTED and _is_ink_on_paper(255 - grey)


def _two_tones(grey: Plane) -> tuple[float, float]:
    """Shares of the pixels near the commonest tone and near the commonest tone far from it."""
    counts = np.bincount(grey.astype(np.uint8).ravel(), minlength=256) / grey.size
    near = np.convolve(counts, np.ones(_TONE_WIDTH), "same")
    first = int(near.argmax())
    others = near.copy()
    others[max(0, first - _TONE_DISTANCE) : first + _TONE_DISTANCE + 1] = 0
    return float(near[first]), float(others.max())


def _has_two_tones(grey: Plane) -> bool:
    first, second = _two_tones(grey)
    # Of a dark scene's few lights, no tone is common.
    common = second >= _MIN_SECOND_TONE * (1 - first) and second >= _MIN_INK
    return common and first + second >= _MIN_TWO_TONES


def _is_ink_on_paper(grey: Plane) -> bool:
    """Thin dark strokes on even paper, whose brightness may change slowly."""
    height, width = grey.shape
    rows, columns = height // _BLOCK, width // _BLOCK
    blocks = grey[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK)
    # Paper is the brighter part of a block; the median of nine bridges what has none.
    flat = np.sort(blocks.transpose(0, 2, 1, 3).reshape(rows, columns, -1), axis=2)
    bright = flat[..., int(0.85 * _BLOCK * _BLOCK)]
    around = np.pad(bright, 1, mode="edge")
    nine = [around[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
    paper = np.median(np.stack(nine), axis=0).astype(np.float32)
    level = float(np.median(paper))
    if level < 90 or float(np.percentile(paper, 10)) < _MIN_EVENNESS * level:
        return False
    resized = Image.fromarray(paper).resize((width, height), Image.Resampling.BILINEAR)
    depth = np.asarray(resized) - grey
    if float((np.abs(depth) < _PAPER_WITHIN).mean()) < _MIN_PAPER:
        return False
    ink = depth >= _INK_FROM
    share = float(ink.mean())
    if not _MIN_INK <= share <= _MAX_INK or float(np.median(depth[ink])) < _MIN_CONTRAST:
        return False
    return _solid_share(ink) <= _MAX_SOLID


def _solid_share(ink: Mask) -> float:
    """The share of the ink that lies in solid squares: what is left of it by an opening."""
    side = max(5, round(max(ink.shape) * _PATCH) | 1)
    if min(ink.shape) < side:
        return 1.0
    full = _sums(ink, side) >= side * side
    covered = _sums(np.pad(full, side - 1), side) > 0
    return float((covered & ink).sum() / ink.sum())


def _sums(mask: Mask, side: int) -> npt.NDArray[np.int32]:
    """Sums over every square of a side."""
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    total[1:, 1:] = mask.cumsum(0, dtype=np.int32).cumsum(1)
    sums: npt.NDArray[np.int32] = (
        total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    )
    return sums


# Borders ----------------------------------------------------------------------------------

_BORDER_SIDE = 512
# Of the shorter side: the least width of a margin, and how far a turned photo's edge may slant.
_MIN_MARGIN = 0.006
_SLANT = 0.015
# A margin is even: this share of its outermost strip lies within this many levels of its tone.
_EVEN_SHARE = 0.9
_EVEN_WITHIN = 20
_NOISE_FACTOR = 4.0
_MIN_TOLERANCE, _MAX_TOLERANCE = 8.0, 28.0
# At an edge of the photo: shares of pixels that are not paper, inside and outside of it.
_MIN_INSIDE, _MAX_OUTSIDE = 0.72, 0.06
_CLEAN = 0.01
_MIN_AREA = 0.15
# Grey levels between a margin and the middle of what is within it.
_MIN_DEPTH = 14.0
_NESTED = 3


def find_rectangle(pixels: npt.NDArray[Any]) -> Rectangle | None:
    """Find the photo within even margins, of paper or of a scanner's lid; None without margins.

    Captions may lie in the margins, and margins within others. The photo may be turned by a degree
    or two: the rectangle is then the largest that lies in it, or nearly.
    """
    grey, factor = _reduced(pixels, _BORDER_SIDE)
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
    return _at_full_size(pixels, found, factor)


def _within_margins(grey: Plane) -> Rectangle | None:
    """One border, on the reduced picture."""
    if min(grey.shape) < 24:
        return None
    strip = max(2, round(_MIN_MARGIN * min(grey.shape)))
    tones: list[tuple[float, float]] = []
    for line in (grey[:strip], grey[-strip:], grey[:, :strip], grey[:, -strip:]):
        tone = float(np.median(line))
        apart = np.abs(line - tone)
        if float((apart <= _EVEN_WITHIN).mean()) < _EVEN_SHARE:
            continue
        noise = 1.4826 * float(np.median(apart))
        if all(abs(tone - other) > _MIN_TOLERANCE for other, _ in tones):
            tones.append((tone, noise))
    best, most = None, 0.0
    for tone, noise in tones:
        tolerance = float(np.clip(_NOISE_FACTOR * noise, _MIN_TOLERANCE, _MAX_TOLERANCE))
        away = np.abs(grey - tone) > tolerance
        inner, score = _box(away, strip)
        if inner is None or score <= most:
            continue
        depth = float(np.median(np.abs(grey[inner.slices] - tone)))
        if depth >= max(_MIN_DEPTH, 1.5 * tolerance):
            best, most = inner, score
    return best


def _box(away: Mask, strip: int) -> tuple[Rectangle | None, float]:
    """The rectangle of what is away from the margins' tone, and how sure its edges are."""
    height, width = away.shape
    rows, columns = (0, height), (0, width)
    for _ in range(3):
        rows = _run(away[:, slice(*columns)].mean(axis=1))
        columns = _run(away[slice(*rows)].mean(axis=0))
        if rows[1] - rows[0] < 16 or columns[1] - columns[0] < 16:
            return None, 0.0
    # All four edges by one rule: sides are turned to the top one after the other.
    views = (away, away[::-1], away.T, away.T[::-1])
    spans = (columns, columns, rows, rows)
    starts = (rows[0], height - rows[1], columns[0], width - columns[1])
    slant = max(1, round(_SLANT * min(away.shape)))
    margins, sure = [], []
    for view, span, start in zip(views, spans, starts, strict=True):
        share = view[:, slice(*span)].mean(axis=1)
        margin, is_sure = _edge(share, start, strip, slant)
        margins.append(margin)
        sure.append(is_sure)
    inner = Rectangle(margins[0], margins[2], height - margins[1], width - margins[3])
    area = inner.size[0] * inner.size[1] / away.size
    if min(inner.size) < 16 or area < _MIN_AREA:
        return None, 0.0
    opposite = (sure[0] and sure[1]) or (sure[2] and sure[3])
    if sum(sure) < 2 or (sum(sure) == 2 and not opposite):
        return None, 0.0
    return inner, sum(sure) + 1 - area


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
        and float(outside.mean()) <= _MAX_OUTSIDE
        and float(inside.mean()) >= _MIN_INSIDE
        # A caption may lie in the margin, another photo may not.
        and float(np.mean(share[:start] > _MIN_INSIDE)) <= 0.02
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
