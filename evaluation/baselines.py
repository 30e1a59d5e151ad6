"""Baselines: no colour at all, a classical transfer of histograms, the best curve and filter."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pikfix.evaluation.pictures import compose, split_lab

BANDS = 48
"""Of spatial frequency, in which the best filter has one gain each."""


def grey(luminance: Tensor) -> Tensor:
    """RGB [3, H, W] of a luminance [1, H, W] without colour (ab = 0)."""
    return compose(luminance, luminance.new_zeros((2, *luminance.shape[1:])))


def histogram_match(luminance: Tensor, reference: Tensor) -> Tensor:
    """Colour a luminance [1, H, W] by the histograms of a reference [3, H_r, W_r]; RGB [3, H, W].

    The ab of a grey photo are constant and have no histogram to match. So the grey photo's red,
    green and blue are each matched to the reference's, and a and b are taken from the result; the
    luminance stays the photo's own.
    """
    photo = grey(luminance).numpy()
    target = reference.numpy()
    matched = np.stack([match_channel(p, t) for p, t in zip(photo, target, strict=True)])
    ab = split_lab(torch.from_numpy(matched.astype(np.float32)).clamp(0, 1))[1]
    return compose(luminance, ab)


def match_channel(source: npt.NDArray[Any], reference: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Give `source` the distribution of `reference` by a monotone map of its values (any shapes).

    As scikit-image's `match_histograms`: each value becomes the reference's interpolated quantile
    at its own cumulative frequency.
    """
    _, place, counts = np.unique(source.ravel(), return_inverse=True, return_counts=True)
    values, value_counts = np.unique(reference.ravel(), return_counts=True)
    quantiles = np.cumsum(counts) / source.size
    matched = np.interp(quantiles, np.cumsum(value_counts) / reference.size, values)
    return np.asarray(matched[place].reshape(source.shape), dtype=np.float64)


def best_fit(damaged: npt.NDArray[Any], truth: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A damaged picture after the cubic curve and the isotropic filter of least squared error.

    Both are fitted to the truth, as nobody can: a scale for what a restoration may reach. The
    filter has one gain in each of `BANDS` rings of frequencies (a Wiener filter that knows the
    photo).

    Args:
        damaged: `[H, W]` in [0, 1].
        truth: the same shape and range.
    """
    x, y = damaged.astype(np.float64), truth.astype(np.float64)
    x = np.polyval(np.polyfit(x.ravel(), y.ravel(), 3), x)
    height, width = x.shape
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    ring = np.minimum((radius / radius.max() * BANDS).astype(np.intp), BANDS - 1)
    given, wanted = np.fft.rfft2(x - y.mean()), np.fft.rfft2(y - y.mean())
    shared = np.bincount(ring.ravel(), (wanted * given.conj()).real.ravel(), BANDS)
    power = np.bincount(ring.ravel(), (np.abs(given) ** 2).ravel(), BANDS)
    gain = np.divide(shared, power, out=np.zeros(BANDS), where=power > 0)
    filtered = np.fft.irfft2(given * gain[ring], x.shape) + y.mean()
    fitted: npt.NDArray[np.float32] = np.clip(filtered, 0, 1).astype(np.float32)
    return fitted
