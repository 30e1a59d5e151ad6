"""Training batches: every batch is a function of (seed, step, rank), whoever computes it."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from pikfix.evaluation.siblings import NO_AFFINE, NO_JITTER, random_affine, random_jitter
from pikfix.training.config import DataConfig
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


def generator(seed: int, step: int, index: int) -> np.random.Generator:
    """The random stream of one sample."""
    return np.random.default_rng([seed, step, index])


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


def random_crop(photo: Pixels, crop: int, rng: np.random.Generator) -> Pixels:
    """A square window of a photo, resized to `crop`, mirrored half of the time.

    The window's side is uniform between `crop` and the short side: at one end the photo's own
    resolution, at the other all of its content.
    """
    height, width = photo.shape[:2]
    side = float(rng.uniform(crop, min(height, width)))
    left = float(rng.uniform(0, width - side))
    top = float(rng.uniform(0, height - side))
    # Pillow filters a region much faster when it gets no more than that.
    x0, y0 = int(left), int(top)
    x1, y1 = min(width, int(np.ceil(left + side))), min(height, int(np.ceil(top + side)))
    image = Image.fromarray(photo[y0:y1, x0:x1])
    box = (left - x0, top - y0, min(left - x0 + side, x1 - x0), min(top - y0 + side, y1 - y0))
    out = np.asarray(image.resize((crop, crop), Image.Resampling.BICUBIC, box))
    return out[:, ::-1] if rng.random() < 0.5 else out


def lightness(rgb: Pixels) -> npt.NDArray[np.float32]:
    """CIELAB L/100 of sRGB `[H, W, 3]`."""
    linear = _LINEAR[rgb]
    y = linear @ np.array((0.212671, 0.715160, 0.072169), dtype=np.float32)
    f = np.where(y > 0.008856, np.cbrt(y), 7.787 * y + 16 / 116)
    scaled: npt.NDArray[np.float32] = np.clip(1.16 * f - 0.16, 0, 1).astype(np.float32)
    return scaled


def _linear_table() -> npt.NDArray[np.float32]:
    value = np.arange(256) / 255
    linear = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    table: npt.NDArray[np.float32] = linear.astype(np.float32)
    return table


_LINEAR = _linear_table()


def _channels_first(image: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class _Steps(Sampler[int]):
    """The steps from `start` on, without end."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        step = self._start
        while True:
            yield step
            step += 1


def batch_loader(dataset: TrainingBatches, start: int, workers: int) -> DataLoader[Any]:
    """Batches from step `start` on, without end, computed ahead by `workers` processes."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=_Steps(start),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_be_a_worker if workers else None,
        prefetch_factor=4 if workers else None,
    )


def batches_from(
    dataset: TrainingBatches, start: int, workers: int
) -> Generator[Batch, None, None]:
    """The batches of `batch_loader`; closing it ends the workers.

    They leave signals to the training process, so that a process with one of their iterators
    alive, in a traceback perhaps, would wait for them for ever when it ends.
    """
    yield from batch_loader(dataset, start, workers)


def _be_a_worker(_: int) -> None:
    torch.set_num_threads(1)
    # A signal to the whole process group is the training process's to answer: it ends the run
    # after the step at hand, and its workers with it.
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
