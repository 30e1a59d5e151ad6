"""Tone: one curve for a whole photo, from what all of it shows.

Fading lifts the blacks and dulls the whites of a whole print. Which grey was black is written in
the photo's darkest and brightest places, wherever they are: no window of convolutions sees them
all, and different tiles of a large photo would find different answers. So the tone is set after
restoration's published network (Pik-Fix, sec. 3.1), which is convolutions alone: on a photo without
scratches, holes and grain, which are often the darkest and brightest of a damaged one. The photo as
it was is looked at, too: how it was damaged tells what else has happened to it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.sizes import pad_to_multiple

DEGREE = 3
"""Of the correction, a polynomial in luminance: exposure, contrast, gamma, and the shoulder."""

_CELL = 8
_DENOISE = 2
_SUMMARIES = 6
_RIDGE = 1e-6


class Tone(nn.Module):
    """Estimates the curve that sets a photo's tone.

    Both pictures are summed up by the least, mean and greatest value of every 8 x 8 pixels (of
    fours, so that single grains of noise do not count); features of these and of their
    surroundings are averaged, and their greatest taken, over the photo; two layers turn them into
    coefficients.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.values = nn.Conv2d(_SUMMARIES, channels, 1)
        self.places = nn.Sequential(
            nn.Conv2d(_SUMMARIES, channels, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.estimate = nn.Sequential(
            nn.Linear(4 * channels, 2 * channels),
            nn.ReLU(),
            nn.Linear(2 * channels, DEGREE + 1),
        )

    def identity(self) -> None:
        """Let the curve of every photo change nothing, as it does before training."""
        last = self.estimate[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, photo_l: Tensor, repaired_l: Tensor) -> Tensor:
        """The coefficients `[B, 4]` of 1, x, x^2 and x^3 for whole photos `[B, 1, H, W]`.

        Args:
            photo_l: as they came.
            repaired_l: with their defects removed.
        """
        pictures = pad_to_multiple(torch.cat((photo_l, repaired_l), dim=1), _CELL)
        fours = F.avg_pool2d(pictures, _DENOISE)
        cell = _CELL // _DENOISE
        least, greatest = -F.max_pool2d(-fours, cell), F.max_pool2d(fours, cell)
        cells = torch.cat((least, F.avg_pool2d(fours, cell), greatest), dim=1)
        found = []
        for features in (F.relu(self.values(cells)), self.places(cells)):
            found += [features.mean(dim=(2, 3)), features.amax(dim=(2, 3))]
        coefficients: Tensor = self.estimate(torch.cat(found, dim=1))
        return coefficients

    def set(self, photo_l: Tensor, repaired_l: Tensor) -> Tensor:
        """Repaired photos with their tone set, `[B, 1, H, W]`; not clamped."""
        return apply_tone(repaired_l, self(photo_l, repaired_l))


def apply_tone(luminance: Tensor, coefficients: Tensor) -> Tensor:
    """Set the tone of photos.

    Args:
        luminance: `[B, 1, H, W]`, L/50 - 1.
        coefficients: `[B, 4]`.

    Returns:
        `[B, 1, H, W]`: the luminance plus the polynomial's value for it; not clamped.
    """
    change = torch.zeros_like(luminance)
    for coefficient in reversed(coefficients.to(luminance.dtype).unbind(dim=1)):
        change = change * luminance + coefficient.view(-1, 1, 1, 1)
    return luminance + change


def best_tone(luminance: Tensor, truth: Tensor) -> Tensor:
    """The coefficients `[B, 4]` that bring photos nearest to the truth, by least squares.

    Args:
        luminance: `[B, 1, H, W]`, L/50 - 1.
        truth: `[B, 1, H, W]`.
    """
    # In float64: the normal equations of powers up to the third are badly conditioned.
    x, change = (t.flatten(1).double() for t in (luminance, truth - luminance))
    powers = torch.stack([x**k for k in range(DEGREE + 1)], dim=2)
    transposed = powers.transpose(1, 2)
    # A photo of one grey determines no curve; the ridge then takes the smallest.
    ridge = _RIDGE * x.shape[1] * torch.eye(DEGREE + 1, dtype=x.dtype, device=x.device)
    solved = torch.linalg.solve(transposed @ powers + ridge, transposed @ change.unsqueeze(2))
    coefficients: Tensor = solved.squeeze(2).to(luminance.dtype)
    return coefficients
