"""What counts as colours, on photos that have them and on photos that lost them."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from pikfix.photos import has_colours

COLOURED = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee")}


def sepia(pixels: np.ndarray) -> np.ndarray:
    light = pixels.mean(axis=2, keepdims=True) / 255
    return np.rint(255 * light ** np.array([0.8, 1.0, 1.3])).astype(np.uint8)


@pytest.mark.parametrize("name", COLOURED)
def test_colours_are_told_from_grey_and_from_sepia(name: str) -> None:
    photo = COLOURED[name]
    grey = np.rint(photo.mean(axis=2)).astype(np.uint8)
    assert has_colours(photo)
    assert not has_colours(grey)
    assert not has_colours(np.repeat(grey[..., None], 3, axis=2))
    assert not has_colours(sepia(photo))


@pytest.mark.parametrize("name", COLOURED)
def test_depth_and_size_do_not_matter(name: str) -> None:
    photo = COLOURED[name]
    assert has_colours(photo[::9, ::9])
    assert has_colours(photo.astype(np.float32) / 255)
    assert not has_colours(sepia(photo).astype(np.float32) / 255)


def test_noise_of_a_colour_scan_is_no_colour() -> None:
    grey = np.repeat(data.camera()[..., None], 3, axis=2).astype(float)
    noisy = grey + np.random.default_rng(0).normal(0, 12, grey.shape)
    assert not has_colours(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def test_one_pixel() -> None:
    assert not has_colours(np.zeros((1, 1, 3), np.uint8))
