"""Quick figures and a picture grid during training; `pikfix evaluate` has the full protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pikfix.evaluation.siblings import NO_AFFINE, NO_JITTER, random_affine, random_jitter
from pikfix.layers.color import lab_to_rgb
from pikfix.systems.pikfix.training.augment import Inputs, prepare
from pikfix.systems.pikfix.training.batches import NEAR, SIBLING, Batch
from pikfix.systems.pikfix.training.neighbours import Table
from pikfix.training.dataset import generator, lightness, random_crop
from pikfix.training.degradation import DegradationConfig, degrade
from pikfix.training.photo_store import PhotoStore, Pixels

_SEED = 20_220_104  # of crops, jitter and degradation: the same at every validation


class Sample(NamedTuple):
    """A validation photo, degraded, with its nearest references, and with a sibling of its own."""

    nearest: Inputs
    sibling: Inputs


@dataclass(frozen=True)
class Validation:
    """Photos that are not trained on, each as a `Sample` of one.

    store: validation photos.
    pool: photos that references come from.
    table: `[N, K]`, for every validation photo the nearest of the pool.
    references: how many of them are used at once.
    side: of the centre crops, a multiple of 32, at most the store's side.
    strength: of the degradation.
    autocast: gives the context networks run in.
    device: they run on.
    """

    store: PhotoStore
    pool: PhotoStore
    table: Table
    references: int
    side: int
    strength: float
    autocast: Callable[[], AbstractContextManager[None]]
    device: torch.device

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self.store)):
            yield Sample(self._inputs(index, NEAR), self._inputs(index, SIBLING))

    def _inputs(self, index: int, kind: int) -> Inputs:
        rng = generator(_SEED, index, kind)
        truth = center_crop(self.store[index], self.side)
        old = lightness(truth)
        old = degrade(old, rng, DegradationConfig(strength=self.strength)).image
        if kind == SIBLING:
            crops = [random_crop(self.store[index], self.side, rng)]
            affine, jitter = random_affine(1.0, rng), random_jitter(1.0, rng)
        else:
            indices = self.table[index, : self.references]
            crops = [center_crop(self.pool[int(i)], self.side) for i in indices]
            affine, jitter = NO_AFFINE, NO_JITTER
        count = len(crops)
        batch: Batch = {
            "truth": _tensor(truth)[None],
            "degraded": torch.from_numpy(np.rint(old * 255).astype(np.uint8))[None, None],
            "is_degraded": torch.tensor([True]),
            "references": torch.stack([_tensor(crop) for crop in crops])[None],
            "kinds": torch.full((1, count), kind, dtype=torch.uint8),
            "affine": torch.from_numpy(affine).repeat(1, count, 1, 1),
            "jitter": torch.from_numpy(jitter).repeat(1, count, 1),
            "hue": torch.zeros(1),
        }
        return prepare({name: tensor.to(self.device) for name, tensor in batch.items()})


def center_crop(photo: Pixels, side: int) -> Pixels:
    """The largest centred square, resized to `side`."""
    height, width = photo.shape[:2]
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    image = Image.fromarray(photo[top : top + short, left : left + short])
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def gray(luminance: Tensor) -> Tensor:
    """RGB `[1, 3, H, W]` of a luminance `[1, 1, H, W]` without color."""
    return lab_to_rgb(torch.cat((luminance, torch.zeros_like(luminance).repeat(1, 2, 1, 1)), 1))


def _tensor(image: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
