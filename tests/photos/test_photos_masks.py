"""Masks that come with a photo, and what is filled by them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from skimage import data, restoration

from pikfix.photos import PhotoError
from pikfix.photos.masks import decode_mask, filled


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_mask_of_another_size_is_scaled_to_the_photo():
    small = np.zeros((20, 30), np.uint8)
    small[5:10, 12:21] = 255
    mask = decode_mask(png(small), (40, 60), 1_000_000)
    assert mask.shape == (40, 60)
    assert mask[12:18, 26:40].min() == 1
    assert mask[:8].max() == 0
    with pytest.raises(PhotoError, match="send a mask of the photo's size") as caught:
        decode_mask(png(small), (60, 40), 1_000_000)
    assert caught.value.code == "bad_options"


def test_a_ramp_is_filled_as_it_was():
    """Averages of what surrounds a hole give back what changes evenly."""
    ramp = np.tile(np.linspace(0.2, 0.8, 96, dtype=np.float32), (80, 1))
    marked = np.zeros_like(ramp)
    marked[30:50, 40:52] = 1
    broken = np.where(marked > 0, np.float32(0), ramp)
    assert np.abs(filled(broken, marked) - ramp).max() < 0.05


def test_only_what_is_marked_changes():
    photo = data.astronaut()[:101, :77]
    marked = np.zeros(photo.shape[:2], np.float32)
    marked[20:27, 30:60] = 1
    marked[70, :] = 0.5
    out = filled(photo, marked)
    assert (out.dtype, out.shape) == (np.uint8, photo.shape)
    assert np.array_equal(out[marked == 0], photo[marked == 0])
    assert not np.array_equal(out[marked > 0], photo[marked > 0])


def test_thin_damage_is_filled_about_as_well_as_by_solving_for_the_smoothest_surface():
    photo = data.camera()[100:228, 180:308].astype(np.float32) / 255
    marked = np.zeros_like(photo)
    marked[:, 60:63] = marked[40:42, :] = 1
    broken = np.where(marked > 0, np.float32(1), photo)
    hole = marked > 0
    own = np.abs(filled(broken, marked) - photo)[hole].mean()
    biharmonic = np.abs(restoration.inpaint_biharmonic(broken, hole) - photo)[hole].mean()
    damage = np.abs(broken - photo)[hole].mean()
    assert own < 0.25 * damage
    assert own < 1.6 * biharmonic


def test_a_hole_wider_than_its_surroundings_closes():
    photo = np.full((64, 64), 200, np.uint8)
    marked = np.ones((64, 64), np.float32)
    marked[:3, :5] = 0
    assert (
        np.abs(filled(photo * (marked == 0).astype(np.uint8), marked).astype(int) - 200).max() <= 1
    )


def test_a_mask_of_all_the_photo_is_refused():
    with pytest.raises(PhotoError, match="the mask marks all of the photo") as caught:
        filled(np.zeros((8, 8), np.uint8), np.ones((8, 8), np.float32))
    assert caught.value.code == "bad_options"
