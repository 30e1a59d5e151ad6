"""Which of the similar pictures to take: those whose colours agree with the other ones'.

A grey photo does not tell its colours, and pictures that look like it in grey differ widely in
theirs. What the similar ones have in common is the best guess: of all candidates the one nearest to
the expected colours has the least expected error, whatever the true ones are. Every candidate is
known by its palette, and the candidate with the least summed distance to the others (their medoid,
a geometric median that is one of them) comes first. What this is worth, beside the order of the
scores: benchmarks/results/reference-choice.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BANDS = 4
"""Bands of luminance, from shadows to lights, whose mean colours make up a palette."""
VALUES = 2 * BANDS
_SHARE = 0.02
"""A band takes the whole picture's mean colour for so much of its pixels: an empty one has it."""

Palette = npt.NDArray[np.float32]


def palette(lab: npt.NDArray[np.float32]) -> Palette:
    """Mean colours of a picture's shadows, two middle tones and lights.

    Args:
        lab: [3, H, W], L/50 - 1, a/110, b/110.

    Returns:
        [8] float32, a/110 and b/110 of each band. Neighbouring bands share the pixels between
        their centres in proportion, so that a slightly lighter copy has nearly the same palette.
    """
    ab = lab[1:].reshape(2, -1).astype(np.float64)
    mean = ab.mean(axis=1)
    place = np.clip((lab[0].ravel() + 1) / 2 * BANDS - 0.5, 0, BANDS - 1)
    weight = np.clip(1 - np.abs(place - np.arange(BANDS)[:, None]), 0, 1)
    share = _SHARE * place.size
    colours = (weight @ ab.T + share * mean) / (weight.sum(axis=1, keepdims=True) + share)
    found: Palette = colours.ravel().astype(np.float32)
    return found


def consensus(palettes: npt.NDArray[Any]) -> list[int]:
    """Indices of palettes [N, 8], the one that agrees most with the others first.

    Equal ones, and one or two alone, keep their order.
    """
    if len(palettes) < 3:
        return list(range(len(palettes)))
    values = np.asarray(palettes, dtype=np.float64)
    apart = np.linalg.norm(values[:, None] - values[None], axis=2).sum(axis=1)
    # Rounding must not decide between equal ones.
    order: list[int] = np.argsort(np.round(apart, 9), kind="stable").tolist()
    return order
