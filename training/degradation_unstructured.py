"""Unstructured degradations: blur, noise, JPEG, low resolution, fading, toning.

Each function takes a picture [H, W] or [H, W, 3] in [0, 1], a random generator and a `Scale`, and
returns a picture of the same shape (not yet clipped). The ranges at strength 1 are those of
"Bringing Old Photos Back to Life" (Wan et al., CVPR 2020) and of its released code; amplitudes
that span a decade are drawn log-uniformly, because strong ones are rare in real photos.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pikfix.training.degradation_fields import (
    Array,
    convolve,
    fractal_noise,
    gaussian_kernel,
    grain,
    resize,
    smooth_noise,
)

SEPIA = np.array([1.07, 0.74, 0.43], dtype=np.float32)
PRINT_BLACK = 0.08
"""Value (L/100) of the darkest that a print gets: a density of about 2."""


@dataclass(frozen=True)
class Scale:
    """How large and how strong defects are: `pixels` per unit length, `strength` (1 = published).

    Lengths are given for a picture with a short side of 256; a larger scan of the same paper shows
    the same defect on more pixels.
    """

    pixels: float
    strength: float


Operation = Callable[[Array, np.random.Generator, Scale], Array]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(max(low, high)))))


def gaussian_blur(image: Array, rng: np.random.Generator, scale: Scale) -> Array:
    """Gaussian blur, kernel 3, 5 or 7, sigma 1 to 5."""
    radius = int(rng.integers(1, 4))
    sigma = rng.uniform(1.0, 1.0 + 4.0 * scale.strength) * scale.pixels
    return convolve(image, gaussian_kernel(sigma, max(1, round(radius * scale.pixels))))


def box_blur(image: Array, rng: np.random.Generator, scale: Scale) -> Array:
    """Box blur, kernel 3, 5 or 7; the larger ones only at full strength."""
    radius = int(rng.integers(1, 2 + round(2 * min(scale.strength, 1.0))))
    taps = 2 * max(1, round(radius * scale.pixels)) + 1
    return convolve(image, np.full(taps, 1.0 / taps))


def noise(image: Array, rng: np.random.Generator, scale: Scale) -> Array:
    """One of Gaussian noise, speckle (both sigma 5/255 to 50/255), salt and pepper (up to 1 %).

    The noise of a colour picture is mostly common to its channels, as film grain is.
    """
    height, width = image.shape[:2]
    kind = rng.integers(3)
    if kind == 2:
        amount = rng.uniform(0.0, 0.01 * scale.strength)
        salt = rng.uniform(0.3, 0.8)
        field = rng.random((height, width), dtype=np.float32)
        out = image.copy()
        out[field < amount * salt] = 1.0
        out[field > 1.0 - amount * (1.0 - salt)] = 0.0
        return out
    sigma = np.float32(_log_uniform(rng, 5.0, 50.0 * scale.strength) / 255.0)
    # A finer scan also resolves finer grains: their size grows more slowly than a scratch's.
    size = rng.choice([1.0, 1.0, rng.uniform(1.2, 2.0)]) * scale.pixels**0.5
    field = grain(rng, height, width, float(size))
    if image.ndim == 3:
        chroma = rng.standard_normal((height, width, 3), dtype=np.float32)
        field = np.float32(0.98) * field[..., None] + np.float32(0.2) * chroma
    field *= sigma
    return image + field if kind == 0 else image + image * field


def jpeg(image: Array, rng: np.random.Generator, scale: Scale) -> Array:
    """JPEG at quality 40 to 100 (a grey picture stays grey)."""
    low = max(10, round(100 - 60 * scale.strength))
    quality = int(rng.integers(low, 101))
    data = io.BytesIO()
    pixels = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
    Image.fromarray(pixels).save(data, "JPEG", quality=quality)
    with Image.open(data) as decoded:
        return np.asarray(decoded, dtype=np.float32) / np.float32(255)


def low_resolution(image: Array, rng: np.random.Generator, scale: Scale) -> Array:
    """Each side to 0.5 to 1 of its length independently (bicubic), back by nearest or bilinear."""
    height, width = image.shape[:2]
    shortest = max(0.25, 1.0 - 0.5 * scale.strength)
    rows = max(2, round(height * rng.uniform(shortest, 1.0)))
    columns = max(2, round(width * rng.uniform(shortest, 1.0)))
    small = resize(image, rows, columns, Image.Resampling.BICUBIC)
    back = Image.Resampling.NEAREST if rng.random() < 0.5 else Image.Resampling.BILINEAR
    return resize(small, height, width, back)


def fading(image: Array, rng: np.random.Generator, scale: Scale) -> Array:
    """Silver lost from the image, stained paper, and light that is not even over the photo.

    Fading takes the same share off every density, so that a reflectance R becomes R^(1 - share)
    (share up to 0.45) and, values being powers of reflectance, so does a value: blacks, which a
    print starts with at `PRINT_BLACK`, rise to 0.25 at most and middle tones turn pale. Stained
    paper then takes up to 0.15 off the whites. Both leave their traces in the picture's darkest and
    brightest places; any other change of gamma would leave none, and nothing could mend it.
    Unevenness up to 0.2 (a low-frequency field, or the photo's border, which light and air reach
    first).
    """
    height, width = image.shape[:2]
    s = min(scale.strength, 1.5)
    share = rng.uniform(0.0, 0.45 * s)
    white = 1.0 - rng.uniform(0.0, 0.15 * s)
    out = np.clip(image, 0.0, 1.0) * np.float32(1.0 - PRINT_BLACK) + np.float32(PRINT_BLACK)
    out = np.power(out, np.float32(1.0 - share))
    out *= np.float32(white)
    if rng.random() < 0.6:
        cell = 0.6 * max(height, width)
        if rng.random() < 0.5:
            field = smooth_noise(rng, height, width, cell) - np.float32(0.5)
        else:
            y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
            x = np.linspace(-1.0, 1.0, width, dtype=np.float32)
            field = np.maximum(x**4, y**4) - np.float32(0.4)
            field *= np.float32(0.5) + smooth_noise(rng, height, width, cell / 2)
        field *= np.float32(rng.uniform(-0.25, 0.4) * s)
        out += field if image.ndim == 2 else field[..., None]
    return out


def toning(image: Array, rng: np.random.Generator, scale: Scale) -> Array:
    """Colours of old prints: sepia, grey, or a shift of each channel by up to 20/255.

    Of a colour picture, some 45 % become sepia, 25 % grey, and 30 % shift towards the warm cast of
    faded dyes. A grey picture has no colour to lose and is returned as it is.
    """
    if image.ndim == 2:
        return image
    kind = rng.random()
    if kind < 0.7:
        luma = image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        if kind >= 0.45:
            return np.repeat(luma[..., None], 3, axis=2)
        depth = np.float32(rng.uniform(0.15, 0.7) * min(1.0, 0.5 + 0.5 * scale.strength))
        # Whites stay near the paper's and blacks near black; the middle tones turn brown.
        toned = np.power(luma[..., None], 1.0 / (1.0 + depth * (SEPIA - np.float32(0.75))))
        paper = 1.0 - np.float32(0.35) * depth * (np.float32(1.07) - SEPIA)
        return np.asarray(toned * paper, dtype=np.float32)
    shift = rng.uniform(-20.0, 20.0, 3) / 255.0 * scale.strength
    grey = image.mean(axis=2, keepdims=True)
    saturation = np.float32(1.0 - rng.uniform(0.1, 0.7) * min(1.0, scale.strength))
    cast = np.array([0.05, 0.015, -0.05]) * rng.uniform(0.0, 1.0) * scale.strength
    return np.asarray(grey + saturation * (image - grey) + (shift + cast).astype(np.float32))


def paper_blotches(image: Array, rng: np.random.Generator, scale: Scale) -> Array:
    """Mottling of old gelatin: multiplicative low-frequency noise of a few per cent."""
    height, width = image.shape[:2]
    field = fractal_noise(rng, height, width, 24.0 * scale.pixels) - np.float32(0.5)
    field *= np.float32(rng.uniform(0.05, 0.2) * scale.strength)
    field += np.float32(1.0)
    return image * (field if image.ndim == 2 else field[..., None])


OPERATIONS: dict[str, Operation] = {
    "gaussian_blur": gaussian_blur,
    "box_blur": box_blur,
    "noise": noise,
    "jpeg": jpeg,
    "low_resolution": low_resolution,
    "fading": fading,
    "toning": toning,
    "paper_blotches": paper_blotches,
}
"""Every unstructured operation by name; `degrade` draws an order and skips each with 30 %."""
