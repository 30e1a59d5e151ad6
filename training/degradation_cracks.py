"""Cracks as scans show them: networks with branches, ragged edges, emulsion flaked off beside them.

The wider kin of `degradation_structured.cracks`. A crack is a random walk whose direction drifts
and whose width varies along the way; its edges are eaten by noise; flakes lie where noise is high,
and more of them near a crack. Stamps are photographs of real dirt, given as coverage.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.training.degradation_fields import (
    Array,
    LineCanvas,
    convolve,
    fractal_noise,
    gaussian_kernel,
)
from pikfix.training.degradation_structured import PAPER, Layer, Mode
from pikfix.training.degradation_unstructured import Scale

Stamp = npt.NDArray[np.uint8]
"""Coverage of a piece of dirt, `[h, w]`, 0 to 255."""

_STEP = 2.0  # units of length between two vertices of a crack
_DRIFT = 0.28  # radians of a change of direction at a vertex
_BRANCHING = 0.06  # how often a branch begins at a vertex
_MAX_VERTICES = 400  # of all branches of a network together


def crack_network(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Cracks with branches and, beside some of them, flakes; the layers share one shade."""
    lines = walk(height, width, rng, scale)
    coverage = _ragged(lines, rng, scale)
    if rng.random() < 0.5:
        coverage = np.maximum(coverage, _flakes(rng, scale, lines))
    return _painted(coverage, rng, scale)


def flakes(height: int, width: int, rng: np.random.Generator, scale: Scale) -> list[Layer]:
    """Emulsion flaked off in islands, where a noise field is high."""
    return _painted(_flakes(rng, scale, np.zeros((height, width), np.float32)), rng, scale)


def stamped(
    height: int, width: int, rng: np.random.Generator, scale: Scale, stamps: Sequence[Stamp]
) -> list[Layer]:
    """One to four stamps, turned, of any size and place, each with a shade of its own."""
    layers: list[Layer] = []
    for _ in range(int(rng.integers(1, 5))):
        stamp = stamps[int(rng.integers(len(stamps)))]
        # In a stamp of 400 pixels a hair is three times as wide as in a photo of 256 units.
        factor = min(0.3 * scale.pixels * rng.uniform(0.5, 1.6), 1.0)
        coverage = _placed(stamp, height, width, rng, factor)
        layers += _painted(coverage, rng, scale, shadow=0.0)
    return layers


def walk(height: int, width: int, rng: np.random.Generator, scale: Scale) -> Array:
    """Coverage of a network of random walks."""
    canvas = LineCanvas(height, width)
    size = np.array([width, height], dtype=np.float64)
    step = _STEP * scale.pixels
    left = _MAX_VERTICES
    pending: list[tuple[npt.NDArray[np.float64], float, float, int]] = []
    thickest = float(np.exp(rng.normal(0.5, 0.45))) * scale.pixels
    for _ in range(int(rng.integers(1, 4))):
        start = rng.uniform(-0.05, 1.05, 2) * size
        middle = rng.uniform(0.2, 0.8, 2) * size - start
        angle = float(np.arctan2(middle[1], middle[0]))
        pending.append((start, angle, thickest * rng.uniform(0.5, 1.0), 2))
    straight = float(rng.choice([0.15, 1.0, 1.5]))
    while pending and left > 0:
        point, angle, thickness, depth = pending.pop()
        count = min(left, int(rng.uniform(0.2, 1.3) * max(height, width) / step))
        left -= count
        sway = np.float64(0)
        for i in range(count):
            # A drift that dies away: the crack wanders without curling up.
            sway = 0.7 * sway + rng.normal(0.0, _DRIFT * straight)
            direction = angle + sway
            end = point + step * np.array([np.cos(direction), np.sin(direction)])
            angle += 0.15 * rng.normal(0.0, _DRIFT * straight)
            thin = 1.0 - 0.7 * i / count
            local = thickness * thin * float(np.exp(rng.normal(0.0, 0.3)))
            canvas.line(np.stack([point, end]), local, float(rng.uniform(0.8, 1.0)))
            point = end
            if depth and rng.random() < _BRANCHING:
                turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.4, 1.3)
                pending.append((point, angle + turn, 0.7 * thickness * thin, depth - 1))
            if not (-0.1 * size < point).all() or not (point < 1.1 * size).all():
                break
    return canvas.coverage()


def _ragged(coverage: Array, rng: np.random.Generator, scale: Scale) -> Array:
    """Coverage with edges eaten away by noise."""
    if rng.random() < 0.3:
        return coverage
    height, width = coverage.shape
    noise = fractal_noise(rng, height, width, max(2.0, 4.0 * scale.pixels), 3)
    soft = convolve(coverage, gaussian_kernel(0.3 * scale.pixels + 0.1, 2))
    eaten = soft - np.float32(rng.uniform(0.3, 0.8)) * np.abs(noise - np.float32(0.5))
    cut: Array = np.clip((eaten - np.float32(0.15)) * np.float32(3.0), 0.0, 1.0)
    return cut


def _flakes(rng: np.random.Generator, scale: Scale, lines: Array) -> Array:
    height, width = lines.shape
    cell = float(np.exp(rng.uniform(np.log(4.0), np.log(28.0)))) * scale.pixels
    field = fractal_noise(rng, height, width, cell, 4)
    where = fractal_noise(rng, height, width, 0.5 * max(height, width), 2)
    field += np.float32(0.5) * (where - np.float32(0.5))
    if lines.any():
        sigma = 3.0 * scale.pixels
        near = convolve(lines, gaussian_kernel(sigma, max(2, round(2 * sigma))))
        field += np.minimum(np.float32(0.8) * near, np.float32(0.25))
    threshold = np.float32(np.quantile(field, rng.uniform(0.95, 0.998)))
    return np.clip((field - threshold) * np.float32(rng.uniform(8.0, 40.0)), 0.0, 1.0)


def _placed(
    stamp: Stamp, height: int, width: int, rng: np.random.Generator, factor: float
) -> Array:
    """A stamp resized, turned and shifted into an empty canvas, `[height, width]` in [0, 1]."""
    cos, sin = np.cos(angle := rng.uniform(0.0, 2 * np.pi)), np.sin(angle)
    rows, columns = stamp.shape
    # The map of places of the canvas to places of the stamp, whose middle lies anywhere.
    x, y = rng.uniform(0.0, 1.0, 2) * (width, height)
    flip = rng.choice([-1.0, 1.0])
    a, b, d, e = cos / factor, sin / factor, -flip * sin / factor, flip * cos / factor
    data = (a, b, columns / 2 - a * x - b * y, d, e, rows / 2 - d * x - e * y)
    picture = Image.fromarray(stamp)
    if factor < 1:  # Pillow's transform does not average
        shrink = max(1, int(1 / factor))
        picture = picture.reduce(shrink)
        data = tuple(value / shrink for value in data)
    moved = picture.transform(
        (width, height), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    )
    return np.asarray(moved, dtype=np.float32) / np.float32(255)


def _painted(
    coverage: Array, rng: np.random.Generator, scale: Scale, shadow: float = 0.5
) -> list[Layer]:
    """Layers that show the coverage: paper or dirt with a texture, at times with a shadow."""
    height, width = coverage.shape
    bright = rng.random() < 0.75
    level = rng.uniform(0.7, 1.0) if bright else rng.uniform(0.0, 0.25)
    shade = np.full((height, width), level, np.float32)
    if rng.random() < 0.6:
        texture = fractal_noise(rng, height, width, rng.uniform(2.0, 12.0) * scale.pixels, 3)
        shade += np.float32(rng.uniform(0.05, 0.3)) * (texture - np.float32(0.5))
    shade = np.clip(shade, 0.0, 1.0)
    opacity = float(rng.uniform(0.45, 1.0))
    modes: tuple[Mode, ...] = ("normal", "normal", "screen", "lighten")
    mode = modes[int(rng.integers(4))] if bright else "normal"
    layers = []
    if bright and rng.random() < shadow:
        shift = max(1, round(scale.pixels))
        moved = np.zeros_like(coverage)
        moved[shift:, shift:] = coverage[:-shift, :-shift]
        layers.append(Layer(moved, 0.1, "normal", opacity * float(rng.uniform(0.1, 0.6))))
    layers.append(Layer(coverage, shade, mode, opacity, PAPER))
    return layers
