"""Faces turned, scaled and moved to one place, and back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pikfix.systems.latent.faces.detection import Array, opencv

TEMPLATE = np.array([[89, 108.5], [167, 108.5], [128, 147.5], [104.6, 195.86], [151.4, 195.86]])
"""Where the five points of a face lie in a crop of `TEMPLATE_SIDE`, x and y in pixels."""
TEMPLATE_SIDE = 256


class Place(NamedTuple):
    """A part of a photo: `photo[..., rows, columns]`."""

    rows: slice
    columns: slice


def similarity(points: Array, targets: Array) -> Array | None:
    """The turn, scale and shift that takes points nearest to targets (Umeyama, 1991).

    Args:
        points: `[N, 2]`, x and y.
        targets: `[N, 2]`.

    Returns:
        `[2, 3]`, to be multiplied with (x, y, 1); None where the points or the targets are one.
    """
    mean, target_mean = points.mean(axis=0), targets.mean(axis=0)
    centred, target = points - mean, targets - target_mean
    spread = (centred**2).sum()
    # A turn and scale is one complex factor: the least squares of y = factor * x.
    x, y = centred @ (1, 1j), target @ (1, 1j)
    factor = np.vdot(x, y) / spread if spread else 0
    if not np.isfinite(factor) or abs(factor) < 1e-6:
        return None
    turn = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    found: Array = np.concatenate([turn, (target_mean - turn @ mean)[:, None]], axis=1)
    return found


def from_crop(points: Array, side: int) -> Array | None:
    """Takes places of a crop of `side` to the photo, so that the template lies on the points."""
    return similarity(TEMPLATE * (side / TEMPLATE_SIDE), points)


def scale_of(transform: Array) -> float:
    """How many pixels of the photo a pixel of the crop is wide."""
    return float(np.hypot(transform[0, 0], transform[1, 0]))


def cropped(part: Array, place: Place, transform: Array, side: int) -> tuple[Array, Array]:
    """Cut a face out.

    Args:
        part: `[h, w, 3]` of float32, the photo at `place`.
        place: `place_of` the crop.
        transform: from the crop to the photo.
        side: of the crop.

    Returns:
        The crop, `[side, side, 3]`, black beyond the photo; and where it shows the photo, 1 or 0.
    """
    cv2 = opencv()
    moved, back, size = _within(transform, place), cv2.WARP_INVERSE_MAP, (side, side)
    crop = cv2.warpAffine(part, moved, size, flags=cv2.INTER_LINEAR | back)
    whole = np.ones(part.shape[:2], np.float32)
    return crop, cv2.warpAffine(whole, moved, size, flags=cv2.INTER_NEAREST | back)


def place_of(transform: Array, side: int, photo: tuple[int, int], margin: int) -> Place:
    """The part of a photo that a crop covers, and a margin around it; empty where it has none.

    Args:
        transform: from the crop to the photo.
        side: of the crop.
        photo: height and width.
        margin: in pixels.
    """
    ends = np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1]]) - (0.5, 0.5, 0)
    corners = ends @ transform.T
    left, top = (int(c) - margin for c in np.floor(corners.min(axis=0)))
    right, bottom = (int(c) + margin + 1 for c in np.ceil(corners.max(axis=0)))
    rows, columns = (
        slice(min(max(start, 0), size), max(min(stop, size), 0))
        for start, stop, size in ((top, bottom, photo[0]), (left, right, photo[1]))
    )
    return Place(rows, columns)


def put_back(crop: Array, inside: Array, transform: Array, place: Place) -> tuple[Array, Array]:
    """Move a crop to its part of the photo.

    Args:
        crop: `[side, side, 3]` of float32.
        inside: `[side, side]`, 1 where it belongs to the photo.
        transform: from the crop to the photo.
        place: what part is wanted.

    Returns:
        The crop there, `[h, w, 3]`, bicubic; and where it lies, 1 or 0, by nearest neighbour.
    """
    cv2 = opencv()
    moved = _within(transform, place)
    size = (place.columns.stop - place.columns.start, place.rows.stop - place.rows.start)
    back = cv2.warpAffine(crop, moved, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return back, cv2.warpAffine(inside, moved, size, flags=cv2.INTER_NEAREST)


def _within(transform: Array, place: Place) -> Array:
    """From the crop to a part of the photo."""
    moved: Array = transform - np.array([[0, 0, place.columns.start], [0, 0, place.rows.start]])
    return moved
