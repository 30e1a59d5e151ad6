"""Photos that are damaged in known places, for training and for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pikfix.training.dataset import lightness, random_crop
from pikfix.training.degradation import blended
from pikfix.training.degradation_cracks import Stamp, crack_network, flakes, stamped
from pikfix.training.degradation_fields import (
    Array,
    convolve,
    fractal_noise,
    gaussian_kernel,
    grain,
)
from pikfix.training.degradation_structured import (
    LOSSES,
    SURFACE,
    Defect,
    Layer,
)
from pikfix.training.degradation_unstructured import OPERATIONS, Scale
from pikfix.training.photo_store import Pixels

DAMAGED_FROM = 0.15
"""Share of a defect from which a pixel counts as damaged."""
SOUND_TO = 0.05
VISIBLE_FROM = 0.12
"""Change of luminance, of 1, from which a defect is plain to see."""

_LARGEST_LOSS = 1.0
"""Pixels per unit length of holes at most: a larger one would leave nothing of a crop."""

DEFECTS: dict[str, Defect] = {
    "crack_network": crack_network,
    "flakes": flakes,
    **{name: SURFACE[name] for name in ("creases", "craquelure", "cracks")},
    **{name: SURFACE[name] for name in ("worn_edges", "scratches", "dust")},
    **LOSSES,
}

OCCURRENCE: dict[str, float] = {
    "crack_network": 0.5,
    "flakes": 0.06,
    "stamps": 0.4,
    "creases": 0.08,
    "craquelure": 0.08,
    "cracks": 0.1,
    "worn_edges": 0.03,
    "scratches": 0.2,
    "dust": 0.2,
    "holes": 0.04,
    "torn_edges": 0.03,
}
"""How often each defect lies on a damaged photo."""


@dataclass(frozen=True)
class SampleConfig:
    """The make-up of a sample.

    damaged: share of the photos with defects.
    enlarged: greatest factor that half of the photos are enlarged by. A scan is larger than what
        its photo shows in detail: there, only damage is sharp to the pixel.
    scales: least and largest pixels per unit length of the defects, drawn log-uniformly.
    later: how often grain, blur or JPEG come after the damage, as when a print is photographed.
    overexposed: how often the bright parts of a photo have burnt out to white, which is no loss of
        emulsion.
    printed: how often a border, writing or a printed dot screen is part of the photo.
    """

    damaged: float = 0.6
    enlarged: float = 2.5
    scales: tuple[float, float] = (0.7, 4.0)
    later: float = 0.4
    overexposed: float = 0.2
    printed: float = 0.2
    occurrence: dict[str, float] = field(default_factory=lambda: dict(OCCURRENCE))


class Sample(NamedTuple):
    """A damaged photo, the same one undamaged, and where they differ; `[H, W]` in [0, 1].

    damaged: 1 where a defect hides the photo, 0 where it is sound.
    judged: 0 where nobody could say: faint edges of defects, defects that hardly show.
    """

    photo: Array
    truth: Array
    damaged: Array
    judged: Array


def cropped(photo: Pixels, side: int, rng: np.random.Generator, config: SampleConfig) -> Array:
    """Lightness of a square window of a photo, `[side, side]` in [0, 1]; see `enlarged`."""
    factor = float(np.exp(rng.uniform(0, np.log(config.enlarged)))) if rng.random() < 0.5 else 1.0
    luminance = lightness(random_crop(photo, max(1, round(side / factor)), rng))
    if luminance.shape == (side, side):
        return luminance
    picture = Image.fromarray(luminance).resize((side, side), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(picture), 0, 1)


def draw(
    luminance: Array, rng: np.random.Generator, config: SampleConfig, stamps: Sequence[Stamp] = ()
) -> Sample:
    """Turn a photo into a sample.

    Args:
        luminance: `[H, W]` in [0, 1].
        rng: the only source of randomness.
        config: what may happen.
        stamps: photographs of dirt; without them that defect never occurs.
    """
    if rng.random() < config.overexposed:
        luminance = _overexposed(luminance, rng)
    truth = _aged(luminance, rng)
    if rng.random() < config.printed:
        truth = _printed(truth, rng)
    low, high = np.log(config.scales)
    scale = Scale(float(np.exp(rng.uniform(low, high))), float(rng.uniform(0.6, 1.2)))
    photo, alpha = truth, np.zeros_like(truth)
    if rng.random() < config.damaged:
        for layers in _defects(truth.shape, rng, scale, config, stamps):
            for layer in layers:
                photo = blended(photo, layer, alpha)
    damaged = (alpha >= DAMAGED_FROM) & (np.abs(photo - truth) >= VISIBLE_FROM)
    judged = damaged | (alpha <= SOUND_TO)
    if rng.random() < config.later:
        photo = _rescanned(photo, rng)
    return Sample(
        photo.astype(np.float32), truth, damaged.astype(np.float32), judged.astype(np.float32)
    )


def _defects(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    scale: Scale,
    config: SampleConfig,
    stamps: Sequence[Stamp],
) -> list[list[Layer]]:
    height, width = shape
    chosen = [name for name, share in config.occurrence.items() if rng.random() < share]
    found = []
    for name in rng.permutation(chosen):
        if name in LOSSES:
            lost = Scale(min(scale.pixels, _LARGEST_LOSS), scale.strength)
            found.append(DEFECTS[name](height, width, rng, lost))
        elif name != "stamps":
            found.append(DEFECTS[name](height, width, rng, scale))
        elif stamps:
            found.append(stamped(height, width, rng, scale, stamps))
    return found


def _overexposed(luminance: Array, rng: np.random.Generator) -> Array:
    """Up to half of the photo burnt out, with a shoulder before it."""
    white = float(np.quantile(luminance, rng.uniform(0.5, 0.95)))
    gain = np.float32(min(4.0, 1 / max(white, 0.1)))
    out: Array = np.clip(luminance * gain, 0, 1) ** np.float32(rng.uniform(0.8, 1.2))
    return out * np.float32(rng.uniform(0.85, 1.0))


def _aged(luminance: Array, rng: np.random.Generator) -> Array:
    """What age does to all of a photo: contrast, grain, blur, fading, paper."""
    height, width = luminance.shape
    out = luminance
    contrast = float(rng.uniform(0.8, 1.5))
    middle = float(np.clip(out.mean() + rng.normal(0, 0.1), 0.2, 0.8))
    out = np.clip((out - middle) * np.float32(contrast) + np.float32(middle), 0, 1)
    scale = Scale(1.0, float(rng.uniform(0.3, 1.0)))
    if rng.random() < 0.2:
        out = convolve(out, gaussian_kernel(float(rng.uniform(0.4, 1.4)), 3))
    elif rng.random() < 0.25:  # sharpened, as scanners do
        soft = convolve(out, gaussian_kernel(float(rng.uniform(0.7, 1.5)), 3))
        out = out + np.float32(rng.uniform(0.3, 1.5)) * (out - soft)
    for name, share in (("fading", 0.35), ("paper_blotches", 0.2)):
        if rng.random() < share:
            out = OPERATIONS[name](np.clip(out, 0, 1), rng, scale)
    if rng.random() < 0.25:
        for layer in SURFACE["paper"](height, width, rng, scale):
            out = blended(np.clip(out, 0, 1), layer, np.zeros_like(out))
    if rng.random() < 0.5:
        out = out + _film_grain(height, width, rng)
    return np.clip(out, 0, 1).astype(np.float32)


def _film_grain(height: int, width: int, rng: np.random.Generator) -> Array:
    """Grain of 1 to 12 of 255; not salt and pepper, which nobody can tell from dust."""
    sigma = float(np.exp(rng.uniform(np.log(1.0), np.log(12.0)))) / 255
    return np.float32(sigma) * grain(rng, height, width, float(rng.uniform(1.0, 2.0)))


def _rescanned(photo: Array, rng: np.random.Generator) -> Array:
    scale = Scale(1.0, float(rng.uniform(0.3, 0.8)))
    for name in rng.permutation(["grain", "jpeg", "blur"]):
        if rng.random() < 0.5:
            if name == "blur":
                photo = convolve(photo, gaussian_kernel(float(rng.uniform(0.3, 0.8)), 3))
            elif name == "grain":
                photo = photo + _film_grain(photo.shape[0], photo.shape[1], rng)
            else:
                photo = OPERATIONS["jpeg"](np.clip(photo, 0, 1), rng, scale)
    return np.clip(photo, 0, 1)


def _printed(photo: Array, rng: np.random.Generator) -> Array:
    """A border, writing or a dot screen, which belong to the photo."""
    height, width = photo.shape
    kind = rng.random()
    if kind < 0.5:
        return _bordered(photo, rng)
    if kind < 0.8:
        return _written(photo, rng)
    for layer in SURFACE["halftone"](height, width, rng, Scale(1.0, 1.0)):
        photo = blended(photo, layer, np.zeros_like(photo))
    return photo


def _bordered(photo: Array, rng: np.random.Generator) -> Array:
    """One to four sides covered by the paper of the border, white, toned or black."""
    height, width = photo.shape
    shade = float(rng.choice([rng.uniform(0.8, 1.0), rng.uniform(0.0, 0.1)], p=[0.8, 0.2]))
    paper = fractal_noise(rng, height, width, 8.0, 2) - np.float32(0.5)
    paper = np.clip(np.float32(rng.uniform(0, 0.1)) * paper + np.float32(shade), 0, 1)
    left, right, top, bottom = (
        int(rng.uniform(3, 50)) if rng.random() < 0.6 else 0 for _ in range(4)
    )
    inside = np.zeros((height, width), np.float32)
    inside[top : height - bottom, left : width - right] = 1
    if rng.random() < 0.5:
        inside = convolve(inside, gaussian_kernel(0.7, 2))
    return inside * photo + (1 - inside) * paper


def _written(photo: Array, rng: np.random.Generator) -> Array:
    """A line or two of letters and figures, dark or bright, as captions and dates are."""
    height, width = photo.shape
    picture = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(picture)
    letters = "abcdefghiklmnoprstuvwzABDEGHKLMNRSTW0123456789 .-"
    for _ in range(int(rng.integers(1, 3))):
        font = ImageFont.load_default(size=float(rng.uniform(9, 28)))
        line = "".join(rng.choice(list(letters), int(rng.integers(4, 16))))
        pen.text((rng.uniform(0, 0.6) * width, rng.uniform(0, 0.9) * height), line, 255, font)
    ink = np.asarray(picture, dtype=np.float32) / np.float32(255 / rng.uniform(0.5, 1.0))
    shade = np.float32(rng.choice([0.05, 0.95]))
    written: Array = photo * (1 - ink) + ink * shade
    return written
