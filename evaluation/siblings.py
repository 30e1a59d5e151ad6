"""Siblings: another view of a photo as its own reference, under an affine map and color jitter.

After Pik-Fix (Xu et al., WACV 2023, sec. 4). Training and evaluation differ in ranges alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

NO_AFFINE = np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32)
NO_JITTER = np.array([0, 1, 1], dtype=np.float32)


@dataclass(frozen=True)
class SiblingRange:
    """Ranges of a sibling's departure from its photo, either way; each value is drawn evenly.

    rotation, shear, hue: in degrees, the hue's in the ab plane.
    scale, saturation, contrast: departures from 1.
    shift: as a share of the side.
    """

    rotation: float = 25
    shear: float = 8
    scale: float = 0.2
    shift: float = 0.1
    hue: float = 20
    saturation: float = 0.2
    contrast: float = 0.25


def random_affine(
    strength: float, rng: np.random.Generator, limits: SiblingRange = SiblingRange()
) -> npt.NDArray[np.float32]:
    """A map `[2, 3]` from output to input positions in [-1, 1]: rotation, scale, shear, shift.

    strength: of all of them; 1 uses the whole ranges.
    """
    ranges = (np.deg2rad(limits.rotation), np.deg2rad(limits.shear), limits.scale)
    angle, shear, scale = rng.uniform(-strength, strength, 3) * ranges
    shift = rng.uniform(-strength, strength, 2) * (2 * limits.shift)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = rotation @ np.array([[1, np.tan(shear)], [0, 1]]) / (1 + scale)
    matrix: npt.NDArray[np.float32] = np.hstack((linear, shift[:, None])).astype(np.float32)
    return matrix


def random_jitter(
    strength: float, rng: np.random.Generator, limits: SiblingRange = SiblingRange()
) -> npt.NDArray[np.float32]:
    """Hue in radians, and factors of saturation and contrast."""
    ranges = (np.deg2rad(limits.hue), limits.saturation, limits.contrast)
    drawn = rng.uniform(-strength, strength, 3) * ranges
    jitter: npt.NDArray[np.float32] = (drawn + NO_JITTER).astype(np.float32)
    return jitter


def rotate_hue(lab: Tensor, angle: Tensor) -> Tensor:
    """Turn ab of scaled Lab `[B, 3, H, W]` by `[B]` radians; L stays."""
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    lightness, a, b = lab.unbind(1)
    return torch.stack((lightness, cos * a - sin * b, sin * a + cos * b), dim=1)


def jitter_colors(lab: Tensor, hue: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Turn, scale and stretch scaled Lab `[B, 3, H, W]`, each by its own `[B]` amount.

    The contrast turns about each picture's mean L; results stay in [-1, 1].
    """
    lab = rotate_hue(lab, hue)
    lightness, ab = lab[:, :1], lab[:, 1:]
    mean = lightness.mean(dim=(2, 3), keepdim=True)
    lightness = mean + (lightness - mean) * contrast.view(-1, 1, 1, 1)
    ab = ab * saturation.view(-1, 1, 1, 1)
    return torch.cat((lightness, ab), dim=1).clamp(-1, 1)
