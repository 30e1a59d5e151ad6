"""Photos and their aged twins, with holes where they are damaged, for training and measuring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pikfix.systems.damage.samples import DAMAGED_FROM
from pikfix.training.dataset import generator, random_crop
from pikfix.training.degradation import DegradationConfig, degrade
from pikfix.training.degradation_fields import Array
from pikfix.training.photo_store import PhotoStore, Pixels

AGE = DegradationConfig(structured={})
"""What age does to all of a photo."""
DAMAGE = DegradationConfig()
"""The same, and defects of its surface."""

DAMAGED = 0.5  # how many photos have defects
_UNMASKED = 0.1  # of these, how many have none of them in the mask: no detector finds all
_GREY = 0.1
_FLIPPED = 0.5
_LUMA = np.array((0.299, 0.587, 0.114), np.float32)
_FILLS = {"white": 0.5, "noise": 0.25, "as drawn": 0.25}
"""What holes hold. The server paints them white; what only nearly matches has to do as well."""
_WIDEST_MARGIN = 2

Batch = dict[str, Tensor]
"""clean, aged: `[B, 3, S, S]`; hole: `[B, 1, S, S]`; real: `[B]`. uint8, 0 to 255."""


class Sample(NamedTuple):
    """A photo and the same one aged, `[S, S, 3]`, and holes, `[S, S]`, all in [0, 1].

    real: whether it is an old photo, whose clean form nobody knows: both are the same.
    """

    clean: Array
    aged: Array
    hole: Array
    real: bool = False


def cropped(photo: Pixels, side: int, rng: np.random.Generator) -> Array:
    """A square window of a photo, `[side, side, 3]` in [0, 1], at times turned over or grey."""
    window = random_crop(photo, side, rng).astype(np.float32) / 255
    if rng.random() < _FLIPPED:
        window = window[:, ::-1]
    if rng.random() < _GREY:
        window = np.repeat((window @ _LUMA)[..., None], 3, axis=2)
    return np.ascontiguousarray(window)


def clean(window: Array, rng: np.random.Generator | None = None) -> Sample:
    """A photo as it is; nothing of it is drawn."""
    return Sample(window, window, np.zeros(window.shape[:2], np.float32))


def aged(window: Array, rng: np.random.Generator, damaged: float = DAMAGED) -> Sample:
    """A photo with its aged twin, of which some have defects.

    Args:
        window: `[S, S, 3]` in [0, 1].
        rng: the only source of randomness.
        damaged: share with defects; 0 for what is trained without holes.
    """
    if rng.random() >= damaged:
        return Sample(window, degrade(window, rng, AGE).image, np.zeros_like(window[..., 0]))
    found = degrade(window, rng, replace(DAMAGE, pixel_scale=float(rng.uniform(0.7, 2.0))))
    hole = (found.mask >= DAMAGED_FROM).astype(np.float32)
    if rng.random() < _UNMASKED:
        return Sample(window, found.image, np.zeros_like(hole))
    hole = _widened(hole, int(rng.integers(0, _WIDEST_MARGIN + 1)))
    fill = str(rng.choice(list(_FILLS), p=list(_FILLS.values())))
    picture = found.image
    if fill != "as drawn":
        paint = np.ones_like(picture)
        if fill == "noise":
            paint = rng.random(picture.shape, dtype=np.float32)
        picture = picture + hole[..., None] * (paint - picture)
    return Sample(window, picture.astype(np.float32), hole)


def _widened(hole: Array, margin: int) -> Array:
    for _ in range(margin):
        grown = np.pad(hole, 1)
        height, width = hole.shape
        hole = np.max(
            [grown[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0
        )
    return hole


class LatentBatches(Dataset[Batch]):
    """Item `step` is the batch of that step, a function of (seed, step, rank).

    Args:
        store: colour photos.
        draw: makes a sample of a window.
        old: real old photos, which are every second sample, or None.
        crop: side of the samples.
        batch: samples of this rank.
        seed: of everything drawn.
        rank: of this process.
    """

    def __init__(
        self,
        store: PhotoStore,
        draw: Callable[[Array, np.random.Generator], Sample],
        old: PhotoStore | None = None,
        *,
        crop: int,
        batch: int,
        seed: int,
        rank: int = 0,
    ) -> None:
        self.store = store
        self.draw = draw
        self.old = old
        self.crop = crop
        self.batch = batch
        self.seed = seed
        self.rank = rank

    def __getitem__(self, step: int) -> Batch:
        first = self.rank * self.batch
        return collated([self._sample(step, i) for i in range(first, first + self.batch)])

    def _sample(self, step: int, index: int) -> Sample:
        rng = generator(self.seed, step, index)
        if self.old is not None and index % 2:
            photo = self.old[int(rng.integers(len(self.old)))]
            return clean(cropped(photo, self.crop, rng))._replace(real=True)
        photo = self.store[int(rng.integers(len(self.store)))]
        return self.draw(cropped(photo, self.crop, rng), rng)


def collated(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch."""

    def stacked(pictures: list[Array]) -> Tensor:
        levels = np.stack([np.rint(picture * 255).astype(np.uint8) for picture in pictures])
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(levels, -1, 1)))

    return {
        "clean": stacked([sample.clean for sample in samples]),
        "aged": stacked([sample.aged for sample in samples]),
        "hole": stacked([sample.hole[..., None] for sample in samples]),
        "real": torch.tensor([255 * sample.real for sample in samples], dtype=torch.uint8),
    }
