"""CIELAB (D65, 2 degrees) and sRGB in numpy, with scikit-image's constants.

Two families: exact conversions for any array (:func:`rgb_to_lab`, :func:`lab_to_rgb`,
:func:`luminance`), in the precision of their input, and table-driven ones for whole photos
(:func:`photo_luminance`, :func:`grey_from_luminance`, :func:`compose`), which work in chunks of
rows so that a photo of any size costs one chunk of temporary memory for each core and stays in the
processor's cache.

Colours outside sRGB are brought in along a line of constant L and hue towards grey: plain
clipping of R, G and B would change the luminance, which the restoration has decided.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[Any]
ByteArray = npt.NDArray[np.uint8]

RGB_TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
)
XYZ_TO_RGB = np.linalg.inv(RGB_TO_XYZ)
WHITE = np.array([0.95047, 1.0, 1.08883])

# CIE's f: cube root above EPSILON, a line below; SLOPE and OFFSET as scikit-image rounds them.
_EPSILON = 0.008856
_F_EPSILON = 0.2068966
_SLOPE = 7.787
_OFFSET = 16.0 / 116.0

# Rows are grouped so that one chunk's temporaries stay in the caches and calls do not cost more.
_CHUNK_PIXELS = 1 << 16
# Threads for a photo; more would mostly wait for Python's lock and for memory. A photo of less than
# two such parts gets one: it takes some 20 ms, and what two save of that costs a third more of the
# processor, which a server with photos waiting does not have.
_MAX_THREADS = 4
_THREAD_PIXELS = 1 << 20
# A linear channel may leave [0, 1] by this much before its colour counts as out of gamut:
# scikit-image's white point and matrix agree to 1e-4 only, so white itself overshoots.
_BELOW, _ABOVE = 2e-6, 2e-4
# The most chroma that fits: steps along chords, how near they must come to it (up to five times as
# much may be lost), and halvings where they do not.
_CHORDS = 2
_NEAR = 0.002
_HALVINGS = 10
_CURVE_STEPS = 65535


def srgb_to_linear(values: FloatArray) -> FloatArray:
    """Undo the sRGB curve: [0, 1] -> [0, 1], any shape (IEC 61966-2-1)."""
    return np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)


def linear_to_srgb(values: FloatArray) -> FloatArray:
    """Apply the sRGB curve: [0, 1] -> [0, 1], any shape; negative values count as 0."""
    values = np.maximum(values, 0)
    return np.where(values > 0.0031308, 1.055 * values ** (1 / 2.4) - 0.055, values * 12.92)


def _f(t: FloatArray) -> FloatArray:
    return np.where(t > _EPSILON, np.cbrt(t), _SLOPE * t + _OFFSET)


def _inverse_f(f: FloatArray) -> FloatArray:
    return np.where(f > _F_EPSILON, f * f * f, (f - _OFFSET) / _SLOPE)


def _as_unit(rgb: npt.NDArray[Any]) -> FloatArray:
    return rgb / 255.0 if rgb.dtype == np.uint8 else rgb


def rgb_to_lab(rgb: npt.NDArray[Any]) -> FloatArray:
    """Convert sRGB to CIELAB.

    Args:
        rgb: [..., 3], uint8 or floating point in [0, 1].

    Returns:
        [..., 3]: L in [0, 100], a, b; equal to ``skimage.color.rgb2lab``.
    """
    xyz = srgb_to_linear(_as_unit(rgb)) @ RGB_TO_XYZ.T.astype(_float_type(rgb))
    f = _f(xyz / WHITE.astype(xyz.dtype))
    return np.stack(
        [
            116.0 * f[..., 1] - 16.0,
            500.0 * (f[..., 0] - f[..., 1]),
            200.0 * (f[..., 1] - f[..., 2]),
        ],
        axis=-1,
    )


def lab_to_rgb(lab: FloatArray) -> FloatArray:
    """Convert CIELAB [..., 3] to sRGB [..., 3], clipped to [0, 1], as ``skimage.color.lab2rgb``."""
    clipped: FloatArray = np.clip(linear_to_srgb(_lab_to_linear(lab)), 0.0, 1.0)
    return clipped


def _lab_to_linear(lab: FloatArray) -> FloatArray:
    fy = (lab[..., 0] + 16.0) / 116.0
    fx = lab[..., 1] / 500.0 + fy
    fz = np.maximum(fy - lab[..., 2] / 200.0, 0.0)
    xyz = _inverse_f(np.stack([fx, fy, fz], axis=-1)) * WHITE.astype(lab.dtype)
    linear: FloatArray = xyz @ XYZ_TO_RGB.T.astype(lab.dtype)
    return linear


def luminance(rgb: npt.NDArray[Any]) -> FloatArray:
    """L [...] in [0, 100] of sRGB [..., 3] or of a grey picture given as [..., 1]."""
    linear = srgb_to_linear(_as_unit(rgb))
    if linear.shape[-1] == 1:
        return 116.0 * _f(linear[..., 0]) - 16.0
    return 116.0 * _f(linear @ RGB_TO_XYZ[1].astype(linear.dtype)) - 16.0


def _float_type(array: npt.NDArray[Any]) -> np.dtype[Any]:
    return array.dtype if np.issubdtype(array.dtype, np.floating) else np.dtype(np.float64)


_LEVELS = np.arange(256) / 255.0
_LINEAR_TABLE = srgb_to_linear(_LEVELS).astype(np.float32)
_GREY_TABLE = (luminance(_LEVELS[:, None]) / 50.0 - 1.0).astype(np.float32)
_Y_TABLES = (srgb_to_linear(_LEVELS)[None] * RGB_TO_XYZ[1][:, None]).astype(np.float32)
_CURVE_TABLE = np.rint(255.0 * linear_to_srgb(np.arange(_CURVE_STEPS + 1) / _CURVE_STEPS)).astype(
    np.uint8
)
# Scaled L at 2^16 steps -> the nearest grey level. Levels lie at least 0.27 L apart and a step
# is 0.0015 L, so a level read from a photo always comes back as itself.
_GREY_CURVE_TABLE = np.rint(
    255.0 * linear_to_srgb(_inverse_f((np.arange(65536) / 655.35 + 16.0) / 116.0))
).astype(np.uint8)


def _row_chunks(band: slice, width: int) -> Iterator[slice]:
    rows = max(1, _CHUNK_PIXELS // max(width, 1))
    for top in range(band.start, band.stop, rows):
        yield slice(top, min(top + rows, band.stop))


def in_bands(height: int, width: int, work: Callable[[slice], None]) -> None:
    """Do `work` on a band of rows for each core, together on all rows.

    numpy works without Python's lock, but gets it back late where its calls are as short as here:
    two threads take about two thirds of the time of one. They live for one photo, which costs a
    hundredth of that.
    """
    bands = min(_MAX_THREADS, len(os.sched_getaffinity(0)), height * width // _THREAD_PIXELS)
    if bands < 2:
        work(slice(0, height))
        return
    edges = [height * number // bands for number in range(bands + 1)]
    with ThreadPoolExecutor(bands - 1) as threads:
        others = [threads.submit(work, slice(*pair)) for pair in itertools.pairwise(edges[1:])]
        work(slice(0, edges[1]))
        for other in others:
            other.result()


def photo_luminance(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Luminance of a whole photo as the networks take it.

    Args:
        pixels: [H, W] grey or [H, W, 3] sRGB; uint8, or floating point in [0, 1].

    Returns:
        [H, W] float32, L/50 - 1 in [-1, 1].
    """
    if pixels.dtype == np.uint8 and pixels.ndim == 2:
        return np.take(_GREY_TABLE, pixels, mode="clip")  # does not ask each for its range
    out = np.empty(pixels.shape[:2], np.float32)

    def convert(band: slice) -> None:
        for rows in _row_chunks(band, out.shape[1]):
            chunk = pixels[rows]
            if chunk.dtype == np.uint8:
                y = _Y_TABLES[0][chunk[..., 0]]
                y += _Y_TABLES[1][chunk[..., 1]]
                y += _Y_TABLES[2][chunk[..., 2]]
                f = np.cbrt(y)
                dark = y <= _EPSILON
                f[dark] = _SLOPE * y[dark] + _OFFSET
                out[rows] = f * 2.32 - 1.32
            else:
                chunk = chunk if chunk.ndim == 3 else chunk[..., None]
                out[rows] = luminance(chunk.astype(np.float64)) / 50.0 - 1.0
            np.clip(out[rows], -1.0, 1.0, out=out[rows])

    in_bands(out.shape[0], out.shape[1], convert)
    return out


def lab_planes(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Scaled Lab [3, H, W] float32 (L/50 - 1, a/110, b/110) of [H, W] or [H, W, 3] sRGB pixels."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    to_xyz = (RGB_TO_XYZ / WHITE[:, None]).astype(np.float32)
    out = np.empty((3, *pixels.shape[:2]), np.float32)
    for rows in _row_chunks(slice(0, out.shape[1]), out.shape[2]):
        chunk = pixels[rows].reshape(-1, 3)
        linear = np.empty((3, len(chunk)), np.float32)
        for channel in range(3):
            if chunk.dtype == np.uint8:
                np.take(_LINEAR_TABLE, chunk[:, channel], out=linear[channel], mode="clip")
            else:
                linear[channel] = srgb_to_linear(chunk[:, channel])
        xyz = to_xyz @ linear
        f = np.cbrt(xyz)
        dark = xyz <= _EPSILON
        f[dark] = _SLOPE * xyz[dark] + _OFFSET
        planes = out[:, rows].reshape(3, -1)
        light, a, b = planes
        np.multiply(f[1], 2.32, out=light)
        light -= 1.32
        np.subtract(f[0], f[1], out=a)
        a *= 500.0 / 110.0
        np.subtract(f[1], f[2], out=b)
        b *= 200.0 / 110.0
    return out


def grey_from_luminance(
    scaled_l: npt.NDArray[np.float32], *, deep: bool = False
) -> npt.NDArray[Any]:
    """Grey sRGB levels of scaled L [H, W]; values outside [-1, 1] are clipped, never stretched.

    Returns:
        [H, W] uint8 in [0, 255], or uint16 in [0, 65535] with ``deep``.
    """
    out = np.empty(scaled_l.shape, np.uint16 if deep else np.uint8)

    def convert(band: slice) -> None:
        for rows in _row_chunks(band, out.shape[1]):
            if deep:
                light = np.clip(scaled_l[rows].astype(np.float64), -1.0, 1.0) * 50.0 + 50.0
                grey = linear_to_srgb(_inverse_f((light + 16.0) / 116.0))
                out[rows] = np.rint(np.clip(grey, 0.0, 1.0) * 65535.0)
            else:
                step = np.clip(scaled_l[rows] * 32767.5 + 32768.0, 0.0, 65535.0)
                out[rows] = _GREY_CURVE_TABLE[step.astype(np.int32)]

    in_bands(out.shape[0], out.shape[1], convert)
    return out


class ChromaPlanes:
    """The colorization's ab, read at the photo's own resolution.

    Args:
        ab: [2, h, w] float32, a/110 and b/110, covering the padded photo.
        padded: (H, W) of the padded photo.
        size: (height, width) of the photo, which lies in the top left corner of the padded one.

    Bilinear, sample centres aligned (``align_corners=False``). Interpolated only where it is asked
    for: at 3000 x 2000 the full planes would take 48 MB.
    """

    def __init__(
        self, ab: npt.NDArray[np.float32], padded: tuple[int, int], size: tuple[int, int]
    ) -> None:
        self._ab = ab
        self._is_full = ab.shape[1:] == padded
        self._padded_width = padded[1]
        self._scale = ab.shape[1] / padded[0]
        self._columns = _between(slice(0, size[1]), ab.shape[2] / padded[1], ab.shape[2])

    def rows(self, rows: slice) -> npt.NDArray[np.float32]:
        """Return ab of these rows: [2, rows, width] float32, not to be changed."""
        if self._is_full:
            return self._ab[:, rows, : len(self._columns[0])]
        # Rows first, while they are short.
        low, high, share = _between(rows, self._scale, self._ab.shape[1])
        short = _mixed(self._ab[:, low], self._ab[:, high], share[:, None])
        times, rest = divmod(self._padded_width, short.shape[2])
        if rest == 0 and times & (times - 1) == 0:
            return _widened(short, times)[..., : self._columns[0].size]
        low, high, share = self._columns
        return _mixed(
            short.take(low, axis=2, mode="clip"), short.take(high, axis=2, mode="clip"), share
        )


def _between(
    places: slice, scale: float, length: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The samples before and after each place of a stretched axis, and the share of the latter.

    Args:
        places: of the stretched axis, start and stop.
        scale: samples per place.
        length: samples.
    """
    centre = (np.arange(places.start, places.stop) + 0.5) * scale - 0.5
    centre = np.clip(centre, 0, length - 1)
    low = centre.astype(np.intp)
    return low, np.minimum(low + 1, length - 1), (centre - low).astype(np.float32)


def _mixed(
    low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], share: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Linear interpolation, in place of both."""
    high -= low
    high *= share
    low += high
    return low


def _widened(short: npt.NDArray[np.float32], times: int) -> npt.NDArray[np.float32]:
    """Interpolate columns [2, rows, n] to a multiple, a power of two: as `_between`, no look-ups.

    Places at one distance from the sample before them lie at a stride.
    """
    count = short.shape[2]
    step = short[..., 1:] - short[..., :-1]
    out = np.empty((*short.shape[:2], times * count), np.float32)
    for place in range(times):
        share = (place + 0.5) / times - 0.5
        among = out[..., place::times]
        if share < 0:  # after the sample before; the first one has none
            among[..., 0] = short[..., 0]
            np.add(short[..., :-1], step * np.float32(share + 1), out=among[..., 1:])
        else:
            among[..., -1] = short[..., -1]
            np.add(short[..., :-1], step * np.float32(share), out=among[..., :-1])
    return out


def compose(
    scaled_l: npt.NDArray[np.float32], chroma: Callable[[slice], FloatArray], *, deep: bool = False
) -> npt.NDArray[Any]:
    """Colours of a whole photo from its luminance and its chroma.

    Args:
        scaled_l: [H, W], scaled L; values outside [-1, 1] are clipped, never stretched.
        chroma: rows -> [2, rows, W], a/110 and b/110 (:meth:`ChromaPlanes.rows`); called in
            several threads.
        deep: 16 bits a channel.

    Returns:
        [H, W, 3] uint8 or uint16 sRGB. L of the result differs from ``scaled_l`` by rounding alone:
        at most 0.3 at 8 bits, 0.01 at 16 bits, on the scale of 0 to 100; colours outside sRGB
        keep L and hue and lose chroma.
    """
    height, width = scaled_l.shape
    out = np.empty((height, width, 3), np.uint16 if deep else np.uint8)
    pixels = out.reshape(-1, 3)
    dtype = np.float64 if deep else np.float32

    def convert(band: slice) -> None:
        # Pixels out of gamut are few: they wait for each other, since calls are what costs.
        waiting: list[tuple[npt.NDArray[np.intp], FloatArray]] = []
        count = 0
        for rows in _row_chunks(band, width):
            opponents = _opponents(scaled_l[rows], chroma(rows), dtype)
            linear = _linear_planes(*opponents)
            outside = np.flatnonzero(~_fits(linear))
            _write(pixels, slice(rows.start * width, rows.stop * width), _levels(linear, deep))
            if outside.size:
                waiting.append((outside + rows.start * width, opponents.take(outside, axis=1)))
                count += outside.size
            if count and (count >= _CHUNK_PIXELS or rows.stop == band.stop):
                places = np.concatenate([place for place, _ in waiting])
                fitted = _fitted(np.concatenate([o for _, o in waiting], axis=1))
                _write(pixels, places, _levels(fitted, deep))
                waiting, count = [], 0

    in_bands(height, width, convert)
    return out


def _opponents(
    scaled_l: FloatArray, ab: FloatArray, dtype: type[np.floating[Any]]
) -> npt.NDArray[np.floating[Any]]:
    """CIE's fy, fx - fy and fy - fz [3, n] of scaled L [h, w], clipped, and ab [2, h, w]."""
    out = np.empty((3, *scaled_l.shape), dtype)
    np.clip(scaled_l, -1.0, 1.0, out=out[0])
    out[0] *= dtype(50.0 / 116.0)
    out[0] += dtype(66.0 / 116.0)
    np.multiply(ab[0], dtype(110.0 / 500.0), out=out[1])
    np.multiply(ab[1], dtype(110.0 / 200.0), out=out[2])
    return out.reshape(3, -1)


def _levels(linear: FloatArray, deep: bool) -> npt.NDArray[Any]:
    """The sRGB curve and rounding, [3, n] to [3, n] uint8 or uint16; `linear` is overwritten."""
    if deep:
        levels: npt.NDArray[Any] = np.rint(linear_to_srgb(np.clip(linear, 0.0, 1.0)) * 65535.0)
        return levels.astype(np.uint16)
    linear *= _CURVE_STEPS
    linear += 0.5
    # Clipped as indices, which costs nothing beside the lookup.
    return np.take(_CURVE_TABLE, linear.astype(np.intp), mode="clip")


def _write(
    pixels: npt.NDArray[Any], places: slice | npt.NDArray[np.intp], levels: npt.NDArray[Any]
) -> None:
    """Enter levels [3, n] into some of the pixels [N, 3]: by planes, faster than transposed."""
    for channel in range(3):
        pixels[places, channel] = levels[channel]


def _fits(linear: FloatArray) -> npt.NDArray[np.bool_]:
    """Which of the colours [3, n] lie within sRGB: [n]."""
    low, high = _extremes(linear)
    fits: npt.NDArray[np.bool_] = low >= -_BELOW
    fits &= high <= 1.0 + _ABOVE
    return fits


def _extremes(linear: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Least and greatest channel of [3, n]; by hand, as reductions over a short axis are slower."""
    red, green, blue = linear
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def _fitted(opponents: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Linear sRGB [3, n] with the most chroma that fits at the same L and hue.

    Chroma is nearly proportional to what it moves the channels by, so that a few steps along chords
    find its share in nearly every colour; the others, far outside, are halved down to.
    """
    fy, da, db = opponents
    y = _cube(fy)

    def at(share: FloatArray) -> FloatArray:
        return _linear_planes(fy, da * share, db * share, y)

    room_above, room_below = fy.dtype.type(1.0 + _ABOVE) - y, y + fy.dtype.type(_BELOW)
    tiny = fy.dtype.type(1e-12)
    share = np.ones_like(fy)
    for _ in range(_CHORDS):
        low, high = _extremes(at(share) - y)
        share *= np.minimum(
            room_above / np.maximum(high, tiny), room_below / np.maximum(-low, tiny)
        )
        np.minimum(share, 1.0, out=share)
    share *= fy.dtype.type(1.0 - _NEAR)
    linear = at(share)
    found = _fits(linear)
    found &= ~_fits(at(share * fy.dtype.type(1.0 + 4 * _NEAR)))
    lost = np.flatnonzero(~found)
    if lost.size:
        linear[:, lost] = _halved(fy[lost], da[lost], db[lost])
    return linear


def _halved(fy: FloatArray, da: FloatArray, db: FloatArray) -> FloatArray:
    """As `_fitted`, the share of the chroma being at most 1/1000 too small."""
    y = _cube(fy)
    share = np.zeros_like(fy)
    step = fy.dtype.type(0.5)
    for _ in range(_HALVINGS):
        trial = share + step
        share += step * _fits(_linear_planes(fy, da * trial, db * trial, y))
        step = fy.dtype.type(step / 2)
    return _linear_planes(fy, da * share, db * share, y)


def _linear_planes(
    fy: FloatArray, da: FloatArray, db: FloatArray, y: FloatArray | None = None
) -> FloatArray:
    """Linear sRGB [3, n] of fy, fx - fy and fy - fz, each [n]; y [n] where it is known already."""
    xyz = np.empty((3, *fy.shape), fy.dtype)
    _cube(np.add(fy, da, out=xyz[0]), out=xyz[0])
    xyz[1] = _cube(fy) if y is None else y
    np.maximum(np.subtract(fy, db, out=xyz[2]), fy.dtype.type(0), out=xyz[2])
    _cube(xyz[2], out=xyz[2])
    linear: FloatArray = (XYZ_TO_RGB * WHITE).astype(fy.dtype) @ xyz
    return linear


def _cube(f: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """CIE's inverse f without a branch: the line below F_EPSILON goes on where the cube ends.

    Args:
        f: [n].
        out: where the result goes; may be f itself.
    """
    bright = np.maximum(f, f.dtype.type(_F_EPSILON))
    line = np.subtract(f, bright)
    cube: FloatArray = np.multiply(bright, bright, out=out)
    cube *= bright
    line *= f.dtype.type(1.0 / _SLOPE)
    cube += line
    return cube
