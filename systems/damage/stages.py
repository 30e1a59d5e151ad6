"""Training of the damage networks: where a photo is damaged, then what may have been there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchmetrics.functional.classification import binary_auroc

from pikfix.systems.checkpoint import save_checkpoint
from pikfix.systems.damage.networks import Damage, hole, smoothly_filled, softened
from pikfix.systems.damage.samples import Sample, SampleConfig, cropped, draw
from pikfix.training.config import OptimizerConfig
from pikfix.training.dataset import generator
from pikfix.training.degradation_cracks import Stamp
from pikfix.training.errors import TrainingError, in_one_line
from pikfix.training.photo_store import PhotoStore
from pikfix.training.stage import Figures, Stage
from pikfix.training.stage_run import Material

_VALIDATION_SEED = 20_201_109
_VALIDATION_SIDE = 256
_VALIDATION_COUNT = 60
_STAMPS_KEPT = 10
_GRID_ROWS = 10

Batch = dict[str, Tensor]
"""photo, truth, damaged, judged: uint8 `[B, 1, S, S]`, 0 to 255."""


class Inputs(NamedTuple):
    """photo_l, truth_l: L/50 - 1; damaged, judged: 0 or 1. All `[B, 1, S, S]`."""

    photo_l: Tensor
    truth_l: Tensor
    damaged: Tensor
    judged: Tensor


class DamageBatches(Dataset[Batch]):
    """Item `step` is the batch of that step, a function of (seed, step, rank).

    Args:
        store: the photos.
        stamps: photographs of dirt; may be empty.
        config: of the samples.
        crop: their side.
        batch: samples of this rank.
        seed: of everything drawn.
        rank: of this process.
    """

    def __init__(
        self,
        store: PhotoStore,
        stamps: Sequence[Stamp],
        config: SampleConfig,
        *,
        crop: int,
        batch: int,
        seed: int,
        rank: int = 0,
    ) -> None:
        self.store = store
        self.stamps = stamps
        self.config = config
        self.crop = crop
        self.batch = batch
        self.seed = seed
        self.rank = rank

    def __getitem__(self, step: int) -> Batch:
        first = self.rank * self.batch
        return collated([self._sample(step, i) for i in range(first, first + self.batch)])

    def _sample(self, step: int, index: int) -> Sample:
        rng = generator(self.seed, step, index)
        photo = self.store[int(rng.integers(len(self.store)))]
        luminance = cropped(photo, self.crop, rng, self.config)
        return draw(luminance, rng, self.config, self.stamps)


def collated(samples: Sequence[Sample]) -> Batch:
    """Samples as one batch."""
    return {
        name: torch.from_numpy(
            np.stack([np.rint(getattr(s, name) * 255).astype(np.uint8) for s in samples])[:, None]
        )
        for name in Sample._fields
    }


def read_stamps(folder: Path | None) -> list[Stamp]:
    """The pictures of a folder as coverage: bright is dirt.

    Raises:
        TrainingError: the folder holds no picture, or one that cannot be read.
    """
    if folder is None:
        return []
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".png", ".webp", ".jpg"))
    if not paths:
        raise TrainingError(f"{folder} holds no stamps: give a folder of grey .png or .webp files")
    try:
        return [np.asarray(Image.open(path).convert("L")) for path in paths]
    except OSError as error:
        raise TrainingError(
            f"{folder} holds a stamp that cannot be read ({in_one_line(error)}): take it out"
        ) from error


def validation_samples(
    store: PhotoStore, stamps: Sequence[Stamp], config: SampleConfig, side: int, count: int
) -> list[Sample]:
    """The same samples at every validation, the photos one after another as often as it takes."""
    samples = []
    for index in range(count):
        rng = generator(_VALIDATION_SEED, index, 0)
        luminance = cropped(store[index % len(store)], side, rng, config)
        samples.append(draw(luminance, rng, config, stamps))
    return samples


class DamageStage(Stage):
    """A stage that trains one of the two networks.

    Every tenth stamp is kept for validation.

    Raises:
        TrainingError: the configuration has no such network, or the stamps cannot be read.
    """

    network: Damage
    needs_colors = False
    takes = ("stamps",)
    part: str
    samples = SampleConfig()
    optimizer = OptimizerConfig(
        learning_rate=2e-3, weight_decay=1e-4, warmup=50, ema=0.995, temperature_start=None
    )

    def __init__(self, material: Material) -> None:
        config, stamps = material.config, read_stamps(material.stamps)
        self.network = material.network
        if getattr(self.network, self.part) is None:
            raise TrainingError(
                f"these damage networks have no {self.part}: give them one with "
                f"--ablation {self.part}_channels=24,40,64,96,120"
            )
        self.photos = len(material.photos)
        self.data = DamageBatches(
            material.photos,
            [stamp for index, stamp in enumerate(stamps) if index % _STAMPS_KEPT],
            self.samples,
            crop=config.crop,
            batch=material.batch,
            seed=config.seed,
            rank=material.rank,
        )
        self.validation: Sequence[Sample] = ()
        if material.validation is None:
            self.measures = ()
        else:
            self.validation = validation_samples(
                material.validation,
                stamps[::_STAMPS_KEPT],
                self.samples,
                min(_VALIDATION_SIDE, config.side),
                _VALIDATION_COUNT,
            )

    def parameters(self) -> list[nn.Parameter]:
        """Those of the network that is trained."""
        return list(self.network.get_submodule(self.part).parameters())

    def batch(self, raw: Batch) -> Inputs:
        """Convert to floats, channels last."""
        last = torch.channels_last
        photo, truth, damaged, judged = (
            raw[name].float().div(255).contiguous(memory_format=last) for name in Sample._fields
        )
        return Inputs(2 * photo - 1, 2 * truth - 1, damaged, judged)

    @torch.inference_mode()
    def validate(self, network: nn.Module) -> Figures:
        """Measure on all validation samples."""
        assert isinstance(network, Damage)
        rows: list[dict[str, float]] = []
        pictures: list[Tensor] = []
        device = next(network.parameters()).device
        for sample in self.validation:
            raw = {name: tensor.to(device) for name, tensor in collated([sample]).items()}
            inputs = self.batch(raw)
            row, shown = self.measure(network, inputs)
            rows.append(row)
            if len(pictures) < _GRID_ROWS:
                tiles = [inputs.photo_l / 2 + 0.5, inputs.damaged, *shown]
                pictures.append(torch.cat([*tiles, inputs.truth_l / 2 + 0.5], dim=-1))
        means = {name: float(np.nanmean([row[name] for row in rows])) for name in self.measures}
        grid = torch.cat(pictures, dim=-2)[0, 0].clamp(0, 1).mul(255).byte().cpu().numpy()
        return Figures(means, self.score(means), np.repeat(grid[..., None], 3, axis=2))

    def measure(self, network: Damage, inputs: Inputs) -> tuple[dict[str, float], list[Tensor]]:
        """Figures of one sample, and pictures in [0, 1]."""
        raise NotImplementedError

    def score(self, means: dict[str, float]) -> float:
        """What the best weights have most of."""
        raise NotImplementedError

    def save(self, network: Any, path: Path, metadata: dict[str, str]) -> None:
        save_checkpoint(network, path, metadata, system="damage")


class Detector(DamageStage):
    """Learns which pixels to replace, where somebody could say.

    By Dice it takes off: cross entropy alone finds nothing for long, where so little is damaged.
    But Dice is best served by masking whatever might be damage, so it gives way to the error of
    the repaired photo: a false alarm costs what it spoils, next to nothing in a clear sky.
    """

    name = "detector"
    part = "detector"
    weights: Mapping[str, float] = MappingProxyType({"entropy": 1.0, "dice": 1.0, "repair": 0.0})
    shown = ("entropy", "dice", "repair")
    measures = ("auc", "iou", "error", "input_error")

    repair = 6.0
    """Weight of the error of the repaired photo at the end."""
    taken_off = 0.3
    """Share of the budget by which Dice has gone."""

    def anneal(self, network: nn.Module, used: float) -> dict[str, float]:
        dice = max(0.0, 1 - used / self.taken_off)
        self.weights = {"entropy": 1.0, "dice": dice, "repair": self.repair * (1 - dice)}
        return {"dice_weight": dice}

    def forward(self, inputs: Inputs) -> Tensor:
        logits: Tensor = self.network.detector(inputs.photo_l)
        return logits

    def losses(self, inputs: Inputs, outputs: Tensor) -> dict[str, Tensor]:
        logits, target = outputs.float(), inputs.damaged
        entropy = F.binary_cross_entropy_with_logits(logits, target, inputs.judged)
        probability = torch.sigmoid(logits) * inputs.judged
        # Of every photo for itself: else a hole outweighs all the hairlines of the batch.
        overlap, found, there = (
            x.flatten(1).sum(dim=1) for x in (probability * target, probability, target)
        )
        dice = 1 - (2 * overlap + 1) / (found + there + 1)
        some = (there > 0).float()
        repaired = self.repaired(self.network, inputs, logits)
        return {
            "entropy": entropy,
            "dice": (dice * some).sum() / some.sum().clamp(min=1),
            "repair": self.error(repaired, inputs),
        }

    @staticmethod
    def repaired(network: Damage, inputs: Inputs, logits: Tensor) -> Tensor:
        """The photos, filled smoothly where they are found to be damaged."""
        mask = network.replaced(torch.sigmoid(logits.float()))
        smooth = smoothly_filled(inputs.photo_l, hole(mask))
        return inputs.photo_l + mask * (smooth - inputs.photo_l)

    @staticmethod
    def error(photo_l: Tensor, inputs: Inputs) -> Tensor:
        """Mean absolute error: from the truth where damaged, from what came in where sound."""
        wanted = torch.where(inputs.damaged > 0, inputs.truth_l, inputs.photo_l)
        return ((photo_l - wanted).abs() * inputs.judged).mean()

    def measure(self, network: Damage, inputs: Inputs) -> tuple[dict[str, float], list[Tensor]]:
        logits = network.detector(inputs.photo_l)
        probability = torch.sigmoid(logits)
        judged = inputs.judged[0, 0] > 0
        found, truth = probability[0, 0][judged], inputs.damaged[0, 0][judged] > 0
        said = found > network.config.threshold
        both, either = (said & truth).sum(), (said | truth).sum()
        row = {
            "auc": float(binary_auroc(found, truth.long())) if truth.any() else float("nan"),
            "iou": float(both / either) if truth.any() else float("nan"),
            "error": float(self.error(self.repaired(network, inputs, logits), inputs)),
            "input_error": float(self.error(inputs.photo_l, inputs)),
        }
        return row, [probability]

    def score(self, means: dict[str, float]) -> float:
        return -means["error"]


class Filler(DamageStage):
    """Learns what may lie under known damage: L1 of values and of their differences.

    The mask is the true one with what a detector would do to it: wider by up to three pixels, and
    at times wrong.
    """

    name = "filler"
    part = "filler"
    # What comes after the damage would be in the truth's place, and none of it can be filled.
    samples = replace(SampleConfig(), damaged=1.0, later=0.0)
    weights: Mapping[str, float] = MappingProxyType({"values": 1.0, "edges": 1.0})
    shown = ("values", "edges")
    measures = ("error_ratio", "smooth_ratio")

    def forward(self, inputs: Inputs) -> Tensor:
        return self.network.fill(inputs.photo_l, softened(self.holes(inputs)))

    def holes(self, inputs: Inputs) -> Tensor:
        """The damage, each sample's widened by its own margin, and for half of them a mistake.

        That is another sample's damage: where the photo is sound, it is to be kept.
        """
        holes = []
        for index, damaged in enumerate(inputs.damaged):
            reach = 2 * (int(inputs.photo_l[index].sum().abs()) % 4) + 1
            wrong = inputs.damaged[index - 1] * (index % 2)
            found = torch.maximum(damaged, wrong)
            holes.append(F.max_pool2d(found, reach, stride=1, padding=reach // 2))
        return torch.stack(holes)

    def losses(self, inputs: Inputs, outputs: Tensor) -> dict[str, Tensor]:
        holes, filled, truth = self.holes(inputs), outputs.float(), inputs.truth_l
        count = holes.sum().clamp(min=1)
        values = ((filled - truth).abs() * holes).sum() / count
        edges = torch.zeros((), device=filled.device)
        for dim in (-1, -2):
            size = filled.shape[dim] - 1
            change = (filled - truth).diff(dim=dim).abs()
            edges = edges + (change * holes.narrow(dim, 0, size)).sum() / count
        return {"values": values, "edges": edges}

    def measure(self, network: Damage, inputs: Inputs) -> tuple[dict[str, float], list[Tensor]]:
        holes = F.max_pool2d(inputs.damaged, 3, stride=1, padding=1)
        filled = network.fill(inputs.photo_l, softened(holes))
        smooth = smoothly_filled(inputs.photo_l, holes)
        before = ((inputs.photo_l - inputs.truth_l).abs() * inputs.damaged).sum()
        row = {}
        for name, picture in (("error_ratio", filled), ("smooth_ratio", smooth)):
            after = ((picture - inputs.truth_l).abs() * inputs.damaged).sum()
            row[name] = float(after / before) if before > 0 else float("nan")
        return row, [smooth / 2 + 0.5, filled / 2 + 0.5]

    def score(self, means: dict[str, float]) -> float:
        return -means["error_ratio"]
