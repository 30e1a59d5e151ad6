"""Pictures that look enough like photos to measure networks with, without shipping any."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pikfix.layers.color import AB_SCALE


def photo_like_lab(rng: np.random.Generator, height: int, width: int) -> Tensor:
    """Draw a picture whose spectrum falls like a photo's, with a few flat shapes and edges.

    Args:
        rng: the source of randomness.
        height: at least 1.
        width: at least 1.

    Returns:
        `[3, height, width]`, L/50 - 1, a/110, b/110, float32, within sRGB's usual ranges.
    """
    rows = np.fft.fftfreq(height)[:, None]
    columns = np.fft.rfftfreq(width)[None, :]
    amplitude = 1 / np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    planes = []
    for low, high in ((2.0, 98.0), (-40.0, 50.0), (-50.0, 50.0)):
        phase = np.exp(2j * np.pi * rng.random(amplitude.shape))
        field = np.fft.irfft2(amplitude * phase, s=(height, width))
        for _ in range(6):
            top, left = rng.integers(0, height), rng.integers(0, width)
            bottom = top + rng.integers(1, max(2, height // 3))
            right = left + rng.integers(1, max(2, width // 3))
            field[top:bottom, left:right] += rng.normal(0, field.std() + 1e-9)
        spread = 2.5 * field.std() + 1e-9
        unit = np.clip((field - field.mean()) / spread, -1, 1) / 2 + 0.5
        planes.append(low + (high - low) * unit)
    lightness, a, b = planes
    lab = np.stack((lightness / 50 - 1, a / AB_SCALE, b / AB_SCALE))
    return torch.from_numpy(lab.astype(np.float32))


def aged(rng: np.random.Generator, luminance: Tensor) -> Tensor:
    """Add grain and scratches to luminance `[..., H, W]` in [-1, 1]."""
    height, width = luminance.shape[-2:]
    out = luminance.numpy() + rng.normal(0, 0.08, luminance.shape)
    for _ in range(max(1, width // 100)):
        column = rng.integers(0, width)
        out[..., rng.integers(0, height) :, column : column + 2] = 1
    return torch.from_numpy(np.clip(out, -1, 1).astype(np.float32))
