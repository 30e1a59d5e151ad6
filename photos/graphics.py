"""Whether a picture is a page of text or a drawing, which the networks would only blur.

Judged on a reduced picture and by conservative thresholds: an unrestored photo is the worse
mistake. On 2,530 photos, old and new, none is taken for a graphic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.photos.levels import Levels, Mask, Plane

_SIDE = 1000
_BLOCK = 16
# How far paper is from its brightness around, and ink at least, in levels.
_PAPER_WITHIN = 16
_INK_FROM = 28
# Of the pixels: paper; of the ink: in solid patches, whose side is this share of the picture's.
# Photos with so much of one tone have a quarter of their darker pixels or more in such patches;
# where nearly all is paper, a third.
_MIN_PAPER = 0.62
_MAX_SOLID = 0.15
_MUCH_PAPER = 0.75
_MAX_SOLID_ON_MUCH = 0.22
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
# Flat greys: of the pixels near one of them, and of those that are not near the commonest. Photos
# have one such tone at most, a sky or a backdrop, and few of their other pixels share theirs.
_MOST_FLATS = 6
_FLAT_WIDTH = 5
_FLAT_DISTANCE = 10
_MIN_FLAT = 0.75
_MIN_OTHER_FLATS = 0.7
_MIN_THIRD_FLAT = 0.04


def is_graphic(levels: Levels) -> bool:
    """Whether a picture is text, a line drawing, or of two or a few flat tones alone."""
    grey, _ = levels.within(_SIDE)
    if min(grey.shape) < 2 * _BLOCK:
        return False
    tones = _two_tones(grey)
    if _are_all(*tones) or _has_flat_tones(grey) or _is_ink_on_paper(grey):
        return True
    # White on black: fireworks and stars are so as well, and they are photos.
    return sum(tones) > _MIN_INVERTED and _is_ink_on_paper(np.invert(grey))


def _near(grey: Plane, width: int) -> npt.NDArray[np.float64]:
    """For every grey level, the share of the pixels that are near it."""
    counts = np.array(Image.fromarray(grey).histogram()) / grey.size
    return np.convolve(counts, np.ones(width), "same")


def _two_tones(grey: Plane) -> tuple[float, float]:
    """Shares of the pixels near the commonest tone and near the commonest tone far from it."""
    near = _near(grey, _TONE_WIDTH)
    first = int(near.argmax())
    others = near.copy()
    others[max(0, first - _TONE_DISTANCE) : first + _TONE_DISTANCE + 1] = 0
    return float(near[first]), float(others.max())


def _are_all(first: float, second: float) -> bool:
    """Whether a picture with such shares of two tones has no others."""
    # Of a dark scene's few lights, no tone is common.
    common = second >= _MIN_SECOND_TONE * (1 - first) and second >= _MIN_INK
    return common and first + second >= _MIN_TWO_TONES


def _has_flat_tones(grey: Plane) -> bool:
    """Areas of a few greys, as a drawing is filled with; noise and JPEG's ringing allowed."""
    near = _near(median_of_nine(grey), _FLAT_WIDTH)
    shares = []
    for _ in range(_MOST_FLATS):
        tone = int(near.argmax())
        shares.append(float(near[tone]))
        near[max(0, tone - _FLAT_DISTANCE) : tone + _FLAT_DISTANCE + 1] = 0
    others = sum(shares[1:])
    return (
        sum(shares) >= _MIN_FLAT
        and others >= _MIN_OTHER_FLATS * (1 - shares[0])
        and shares[2] >= _MIN_THIRD_FLAT
    )


def median_of_nine(grey: Plane) -> Plane:
    """The median of each pixel and its neighbours; the picture goes on with its edge.

    By the least and greatest of whole planes, which takes a twentieth of the time of Pillow's rank
    filter: of nine, the median is the middle one of the greatest of the columns' least, the middle
    of their middle ones, and the least of their greatest.
    """
    wide = np.pad(grey, 1, mode="edge")
    low, middle, high = _in_order(wide[:-2], wide[1:-1], wide[2:])
    greatest = np.maximum(np.maximum(low[:, :-2], low[:, 1:-1]), low[:, 2:])
    least = np.minimum(np.minimum(high[:, :-2], high[:, 1:-1]), high[:, 2:])
    middle = _in_order(middle[:, :-2], middle[:, 1:-1], middle[:, 2:])[1]
    return _in_order(greatest, middle, least)[1]


def _in_order(one: Plane, two: Plane, three: Plane) -> tuple[Plane, Plane, Plane]:
    """Sort three planes pixel by pixel."""
    low, high = np.minimum(one, two), np.maximum(one, two)
    middle = np.maximum(low, np.minimum(high, three))
    return np.minimum(low, three), middle, np.maximum(high, three)


def _is_ink_on_paper(grey: Plane) -> bool:
    """Thin dark strokes on even paper, whose brightness may change slowly."""
    height, width = grey.shape
    rows, columns = height // _BLOCK, width // _BLOCK
    blocks = grey[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK)
    # Paper is the brighter part of a block; the median of nine bridges what has none.
    # The stable sort of bytes is by counting, several times as fast as any other.
    flat = np.sort(blocks.transpose(0, 2, 1, 3).reshape(rows, columns, -1), axis=2, kind="stable")
    paper = median_of_nine(flat[..., int(0.85 * _BLOCK * _BLOCK)]).astype(np.float32)
    level = float(np.median(paper))
    if level < 90 or float(np.percentile(paper, 10)) < _MIN_EVENNESS * level:
        return False
    resized = Image.fromarray(paper).resize((width, height), Image.Resampling.BILINEAR)
    depth = np.asarray(resized) - grey
    ink = depth >= _INK_FROM
    share = float(ink.mean())
    if not _MIN_INK <= share <= _MAX_INK:
        return False
    even = float((np.abs(depth) < _PAPER_WITHIN).mean())
    if even < _MIN_PAPER or float(np.median(depth[ink])) < _MIN_CONTRAST:
        return False
    return _solid_share(ink) <= (_MAX_SOLID_ON_MUCH if even >= _MUCH_PAPER else _MAX_SOLID)


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
