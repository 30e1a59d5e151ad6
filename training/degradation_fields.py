"""Arrays that the procedural defects are made of: noise fields, blurs, resizing, drawn lines.

numpy and Pillow only. All arrays are float32 and indexed [row, column]; lengths are in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Array = NDArray[np.float32]
Points = NDArray[np.float64]
"""Vertices of a line or polygon, shape [n, 2], as (x, y)."""

_SUPERSAMPLING = 2  # lines are drawn twice as large and averaged: Pillow does not antialias


def resize(image: Array, height: int, width: int, method: Image.Resampling) -> Array:
    """Resize [H, W] or [H, W, 3] in floating point; the values keep their range but for ringing."""
    if image.ndim == 3:
        channels = [resize(image[..., c], height, width, method) for c in range(image.shape[2])]
        return np.stack(channels, axis=2)
    picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.float32))
    return np.asarray(picture.resize((width, height), method), dtype=np.float32)


def _convolve_rows(image: Array, kernel: NDArray[Any]) -> Array:
    radius = len(kernel) // 2
    height = image.shape[0]
    if radius == 0:
        return image
    edges = ((radius, radius),) + ((0, 0),) * (image.ndim - 1)
    padded = np.pad(image, edges, mode="symmetric")
    out = np.float32(kernel[radius]) * padded[radius : radius + height]
    for i in range(radius):  # the kernels are symmetric: add the two sides first
        pair = padded[i : i + height] + padded[2 * radius - i : 2 * radius - i + height]
        pair *= np.float32(kernel[i])
        out += pair
    return np.asarray(out, dtype=np.float32)


def convolve(image: Array, kernel: NDArray[Any]) -> Array:
    """Convolve [H, W(, 3)] along both axes with a symmetric 1-D kernel of odd length."""
    rows = _convolve_rows(image, kernel)
    return np.ascontiguousarray(_convolve_rows(rows.swapaxes(0, 1), kernel).swapaxes(0, 1))


def gaussian_kernel(sigma: float, radius: int) -> NDArray[np.float64]:
    """Gaussian of 2*radius+1 taps with sum 1."""
    x = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (x / sigma) ** 2)
    return np.asarray(kernel / kernel.sum())


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Array:
    """Uniform noise in [0, 1] whose values change over about `cell` pixels, shape [H, W]."""
    rows = max(2, round(height / cell) + 1)
    columns = max(2, round(width / cell) + 1)
    coarse = rng.random((rows, columns), dtype=np.float32)
    if (rows, columns) == (height, width):
        return coarse
    return np.clip(resize(coarse, height, width, Image.Resampling.BICUBIC), 0.0, 1.0)


def fractal_noise(
    rng: np.random.Generator, height: int, width: int, cell: float, octaves: int = 3
) -> Array:
    """Sum of `octaves` smooth noises, each of half the cell and half the weight; mean about 0.5."""
    total = np.zeros((height, width), dtype=np.float32)
    weight, norm = 1.0, 0.0
    for _ in range(octaves):
        total += np.float32(weight) * smooth_noise(rng, height, width, max(cell, 1.0))
        norm += weight
        weight, cell = weight / 2, cell / 2
    total /= np.float32(norm)
    return total


def grain(rng: np.random.Generator, height: int, width: int, size: float) -> Array:
    """Gaussian noise of unit variance with grains of about `size` pixels, shape [H, W]."""
    if size <= 1.0:
        return rng.standard_normal((height, width), dtype=np.float32)
    rows, columns = max(2, round(height / size)), max(2, round(width / size))
    noise = resize(
        rng.standard_normal((rows, columns), dtype=np.float32),
        height,
        width,
        Image.Resampling.BICUBIC,
    )
    return noise / np.float32(max(float(noise.std()), 1e-6))


def jagged_line(
    rng: np.random.Generator,
    start: Sequence[float],
    end: Sequence[float],
    roughness: float,
    levels: int,
) -> Points:
    """Random line between two points by midpoint displacement, [2**levels + 1, 2].

    `roughness` is the standard deviation of the first displacement relative to the length; each
    level halves the displacement, so that the line looks equally jagged at every size.
    """
    points = np.array([start, end], dtype=np.float64)
    direction = points[1] - points[0]
    normal = np.array([-direction[1], direction[0]])
    for level in range(levels):
        middle = (points[:-1] + points[1:]) / 2
        offset = rng.standard_normal(len(middle)) * (roughness / 2**level)
        middle += offset[:, None] * normal
        merged = np.empty((2 * len(points) - 1, 2))
        merged[0::2], merged[1::2] = points, middle
        points = merged
    return points


def drawn(height: int, width: int, draw: Callable[[LineCanvas], None]) -> Array:
    """Coverage in [0, 1] of what `draw` paints on an empty canvas, antialiased, shape [H, W]."""
    canvas = LineCanvas(height, width)
    draw(canvas)
    return canvas.coverage()


class LineCanvas:
    """Antialiased drawing surface of `height` x `width` pixels; points are (x, y) in pixels."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._image = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING), 0)
        self._draw = ImageDraw.Draw(self._image)

    def line(self, points: Points, width: float, level: float = 1.0) -> None:
        """Draw a line of `width` pixels; widths under half a pixel are drawn paler instead."""
        scaled = width * _SUPERSAMPLING
        fill = round(255 * level * min(1.0, scaled))
        flat = (points * _SUPERSAMPLING).ravel().tolist()
        self._draw.line(flat, fill=fill, width=max(1, round(scaled)))

    def polygon(self, points: Points, level: float = 1.0) -> None:
        """Fill a polygon."""
        self._draw.polygon((points * _SUPERSAMPLING).ravel().tolist(), fill=round(255 * level))

    def ellipse(self, x: float, y: float, rx: float, ry: float, level: float = 1.0) -> None:
        """Fill an ellipse with its axes along the canvas's."""
        s = _SUPERSAMPLING
        box = ((x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s)
        self._draw.ellipse(box, fill=round(255 * level))

    def coverage(self) -> Array:
        """Return what is drawn so far, [H, W] in [0, 1]."""
        small = self._image.reduce(_SUPERSAMPLING)
        return np.asarray(small, dtype=np.float32) / np.float32(255)
