"""Pik-Fix's samples: a photo, degraded or not, and references of several kinds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pikfix.evaluation.siblings import NO_AFFINE, NO_JITTER, random_affine, random_jitter
from pikfix.systems.pikfix.training.config import DataConfig
from pikfix.training.dataset import generator, lightness, random_crop
from pikfix.training.degradation import DegradationConfig, degrade
from pikfix.training.photo_store import PhotoStore, Pixels

SIBLING, NEAR, RANDOM = 0, 1, 2
"""Kinds of references: another crop of the photo, one of its nearest photos, any other photo."""

_BATCH_STREAM = 1 << 32
"""Sample index of the generator that draws what a whole batch shares."""

Batch = dict[str, Tensor]
"""Tensors of one step, R being the same for all its samples:

truth: uint8 `[B, 3, S, S]`, the clean crops, sRGB.
degraded: uint8 `[B, 1, S, S]`, L * 2.55 of the degraded crops; equals the clean L where
    `is_degraded` is 0.
is_degraded: bool `[B]`.
references: uint8 `[B, R, 3, S, S]`, sRGB, before affine map and jitter.
kinds: uint8 `[B, R]`, SIBLING, NEAR or RANDOM.
affine: float32 `[B, R, 2, 3]` for `torch.nn.functional.affine_grid`.
jitter: float32 `[B, R, 3]`: hue in radians, saturation, contrast.
hue: float32 `[B]`, radians by which truth and references are rotated together.
photos: int64 `[B]`, indices into the store.
"""


class TrainingBatches(Dataset[Batch]):
    """Item `step` is the batch of that step.

    Args:
        store: the photos.
        neighbours: `[N, K]`, for every photo its K nearest, best first.
        config: shares and sizes.
        batch: samples of this rank.
        seed: of everything drawn.
        rank: of this process, of `world` ones; sample i of rank r is sample r * batch + i of the
            step, so a run's data depend on the product of batch and world alone.
        world: number of processes.
    """

    def __init__(
        self,
        store: PhotoStore,
        neighbours: npt.NDArray[np.int32],
        config: DataConfig,
        batch: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(neighbours) != len(store):
            raise ValueError(f"{len(neighbours)} rows of neighbours for {len(store)} photos")
        self.store = store
        self.neighbours = neighbours
        self.config = config
        self.batch = batch
        self.seed = seed
        self.rank = rank
        self.world = world
        self._epoch = -1
        self._order: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __getitem__(self, step: int) -> Batch:
        shared = generator(self.seed, step, _BATCH_STREAM)
        references = int(shared.integers(1, self.config.references + 1))
        first = self.rank * self.batch
        samples = [
            self._sample(step, index, references) for index in range(first, first + self.batch)
        ]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def photo_of(self, step: int, index: int) -> int:
        """The photo of sample `index` (over all ranks): every photo once per epoch, shuffled."""
        position = step * self.batch * self.world + index
        epoch, place = divmod(position, len(self.store))
        if epoch != self._epoch:
            # Stream index one past the batch's keeps epochs apart from steps.
            rng = generator(self.seed, epoch, _BATCH_STREAM + 1)
            self._order = rng.permutation(len(self.store))
            self._epoch = epoch
        return int(self._order[place])

    def _sample(self, step: int, index: int, references: int) -> dict[str, Tensor]:
        config = self.config
        rng = generator(self.seed, step, index)
        photo = self.photo_of(step, index)
        truth = random_crop(self.store[photo], config.crop, rng)
        luminance = lightness(truth)
        degraded = rng.random() < config.degraded and config.strength > 0
        old = luminance
        if degraded:
            settings = DegradationConfig(strength=config.strength)
            if config.sparse_damage_share and rng.random() < config.sparse_damage_share:
                settings = settings.thinned(float(rng.random()))
            old = degrade(luminance, rng, settings).image
        kinds = self._kinds(rng, references)
        crops, affines, jitters = [], [], []
        for kind in kinds:
            other = self._reference(photo, int(kind), rng)
            crops.append(random_crop(self.store[other], config.crop, rng))
            sibling = kind == SIBLING
            affines.append(random_affine(config.affine, rng) if sibling else NO_AFFINE)
            jitters.append(random_jitter(config.jitter, rng) if sibling else NO_JITTER)
        rotated = bool((kinds == SIBLING).all()) and rng.random() < config.hue_rotation
        return {
            "truth": _channels_first(truth),
            "degraded": torch.from_numpy(np.rint(old * 255).astype(np.uint8))[None],
            "is_degraded": torch.tensor(bool(degraded)),
            "references": torch.stack([_channels_first(crop) for crop in crops]),
            "kinds": torch.from_numpy(kinds),
            "affine": torch.from_numpy(np.stack(affines)),
            "jitter": torch.from_numpy(np.stack(jitters)),
            "hue": torch.tensor(rng.uniform(-np.pi, np.pi) if rotated else 0.0),
            "photos": torch.tensor(photo),
        }

    def _kinds(self, rng: np.random.Generator, references: int) -> npt.NDArray[np.uint8]:
        """Kinds of a sample's references: the first by the shares, the others no better.

        A sibling among several references is accompanied by other kinds half of the time, so that
        the softmax must find it; a random first reference has only random company, so that the
        sample stays one that no reference helps with.
        """
        shares = self.config.reference_shares
        first = int(rng.choice(3, p=shares))
        kinds = np.full(references, first, dtype=np.uint8)
        if first == SIBLING and references > 1 and rng.random() < 0.5:
            kinds[1:] = rng.choice((NEAR, RANDOM), size=references - 1)
        return kinds

    def _reference(self, photo: int, kind: int, rng: np.random.Generator) -> int:
        if kind == SIBLING or len(self.store) == 1:
            return photo
        if kind == NEAR and self.neighbours.shape[1]:
            count = min(self.config.neighbours, self.neighbours.shape[1])
            return int(self.neighbours[photo, rng.integers(count)])
        other = int(rng.integers(len(self.store) - 1))
        return other + (other >= photo)


def _channels_first(image: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
