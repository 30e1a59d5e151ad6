"""sRGB to CIELAB (D65, 2 degrees) and back, differentiable, in the networks' ranges."""

from __future__ import annotations

import torch
from torch import Tensor

AB_SCALE = 110.0
"""a and b are divided by this; sRGB then lies within (-1, 1)."""

_RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)
_EPSILON = 0.008856
_KAPPA = 7.787


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """Convert `[..., 3, H, W]` sRGB in [0, 1] to L/50 - 1, a/110, b/110 of the same shape."""
    linear = torch.where(
        rgb > 0.04045, ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92
    )
    matrix = _matrix(rgb)
    xyz = torch.einsum("ij,...jhw->...ihw", matrix, linear)
    ratio = xyz / rgb.new_tensor(_WHITE).view(3, 1, 1)
    f = torch.where(
        ratio > _EPSILON, ratio.clamp_min(_EPSILON) ** (1 / 3), _KAPPA * ratio + 16 / 116
    )
    x, y, z = f.unbind(-3)
    return torch.stack(
        ((116 * y - 16) / 50 - 1, 500 * (x - y) / AB_SCALE, 200 * (y - z) / AB_SCALE), dim=-3
    )


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Convert `[..., 3, H, W]` of L/50 - 1, a/110, b/110 to sRGB, clipped to [0, 1]."""
    lightness, a, b = lab.unbind(-3)
    y = ((lightness + 1) * 50 + 16) / 116
    f = torch.stack((y + a * AB_SCALE / 500, y, y - b * AB_SCALE / 200), dim=-3)
    threshold = 6 / 29
    ratio = torch.where(f > threshold, f**3, (f - 16 / 116) / _KAPPA)
    xyz = ratio * lab.new_tensor(_WHITE).view(3, 1, 1)
    linear = torch.einsum("ij,...jhw->...ihw", torch.linalg.inv(_matrix(lab)), xyz)
    return _encoded(linear).clamp(0, 1)


def luminance_to_grey(luminance: Tensor) -> Tensor:
    """Convert L/50 - 1 of any shape to the value in [0, 1] of a grey's channels in sRGB."""
    f = ((luminance + 1) * 50 + 16) / 116
    linear = torch.where(f > 6 / 29, f**3, (f - 16 / 116) / _KAPPA)
    return _encoded(linear).clamp(0, 1)


def _encoded(linear: Tensor) -> Tensor:
    """Linear light to sRGB's values."""
    return torch.where(
        linear > 0.0031308,
        1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055,
        12.92 * linear,
    )


def _matrix(like: Tensor) -> Tensor:
    return torch.tensor(_RGB_TO_XYZ, dtype=like.dtype, device=like.device)
