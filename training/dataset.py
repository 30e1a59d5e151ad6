"""Batches by step: each is a function of (seed, step, rank), whoever computes it."""

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

from pikfix.training.photo_store import Pixels

Batch = dict[str, Tensor]
"""Tensors of one step, on the CPU."""


def generator(seed: int, step: int, index: int) -> np.random.Generator:
    """The random stream of one sample."""
    return np.random.default_rng([seed, step, index])


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


class _Steps(Sampler[int]):
    """The steps from `start` on, without end."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        step = self._start
        while True:
            yield step
            step += 1


def batch_loader(dataset: Dataset[Batch], start: int, workers: int) -> DataLoader[Any]:
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


def batches_from(dataset: Dataset[Batch], start: int, workers: int) -> Generator[Batch, None, None]:
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
