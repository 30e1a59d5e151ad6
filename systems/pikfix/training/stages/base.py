"""The common part of Pik-Fix's stages: material, batches, temperature, validation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from pikfix.systems.checkpoint import save_checkpoint
from pikfix.systems.pikfix.networks import PikFix
from pikfix.systems.pikfix.training.augment import Inputs, prepare
from pikfix.systems.pikfix.training.batches import Batch, TrainingBatches
from pikfix.systems.pikfix.training.config import TrainConfig
from pikfix.systems.pikfix.training.validation import Sample, Validation, gray
from pikfix.training import schedule
from pikfix.training.features import FeatureNet
from pikfix.training.stage import Figures, Stage

_GRID_ROWS = 8

Outputs = Mapping[str, Tensor]
"""restored_l `[B, 1, S, S]`; ab `[B, 2, S, S]`; semantic `[2B, C, h, w]`, the distillation head's
answer for photos and first references: what the stages of a run compute of them."""


@dataclass(frozen=True)
class Material:
    """The network of a run and all that it trains on.

    features: a frozen feature net, for the perceptual and distillation terms; without one they are
        left out.
    validation: photos to measure with, or None.
    """

    network: PikFix
    config: TrainConfig
    data: TrainingBatches
    features: FeatureNet | None = None
    validation: Validation | None = None


class PikFixStage(Stage):
    """A stage that trains parts of `PikFix`.

    parts: names of what it can train, as in `TrainConfig.parts`.
    terms: of the objective.
    feature_terms: those of them that need a feature net.
    figures: what `measure` gives, the first being the score.
    """

    parts: ClassVar[tuple[str, ...]] = ()
    terms: ClassVar[tuple[str, ...]] = ()
    feature_terms: ClassVar[tuple[str, ...]] = ()
    figures: ClassVar[tuple[str, ...]] = ()

    def __init__(self, material: Material) -> None:
        self.network: PikFix = material.network
        self.config = material.config
        self.features = material.features
        self.validation = material.validation
        self.data = material.data
        self.photos = len(material.data.store)
        self.weights = {name: getattr(self.config.loss, name) for name in self.terms}
        self.shown = self.terms[:1]
        self.left_out = tuple(
            name for name in self.feature_terms if self.weights[name] > 0 and self.features is None
        )
        self.measures = self.figures if self.validation else ()

    def modules(self) -> list[nn.Module]:
        """The modules that are trained."""
        return [self.network.get_submodule(p) for p in self.parts if p in self.config.parts]

    def parameters(self) -> list[nn.Parameter]:
        """Those of `modules`, but for a frozen backbone's."""
        return [p for module in self.modules() for p in module.parameters() if p.requires_grad]

    def anneal(self, network: nn.Module, used: float) -> dict[str, float]:
        """Set the temperature of the correlation."""
        final = self.config.network.temperature
        temperature = schedule.temperature(self.config.optimizer, final, used)
        assert isinstance(network, PikFix)
        network.similarity.temperature = temperature
        return {"temperature": temperature}

    def batch(self, raw: Batch) -> Inputs:
        """Convert to the networks' tensors."""
        inputs, last = prepare(raw), torch.channels_last
        return inputs._replace(
            photo_l=inputs.photo_l.contiguous(memory_format=last),
            truth_lab=inputs.truth_lab.contiguous(memory_format=last),
        )

    def forward(self, inputs: Inputs) -> Outputs:
        """Run the networks."""
        return self.compute(inputs, {})

    def compute(self, inputs: Inputs, known: Outputs) -> Outputs:
        """Outputs of this stage, given those of the stages before it."""
        raise NotImplementedError

    def measure(self, network: PikFix, sample: Sample) -> tuple[dict[str, float], list[Tensor]]:
        """Figures of one validation photo by name, and RGB pictures `[1, 3, S, S]`."""
        raise NotImplementedError

    @torch.inference_mode()
    def validate(self, network: nn.Module) -> Figures:
        """Measure a network on all validation photos.

        Each of the first has a row in the grid: degraded, what `measure` shows, and the truth.
        """
        assert self.validation is not None and isinstance(network, PikFix)
        rows: list[dict[str, float]] = []
        pictures: list[Tensor] = []
        for sample in self.validation:
            row, tiles = self.measure(network, sample)
            rows.append(row)
            if len(pictures) < _GRID_ROWS:
                tiles = [gray(sample.nearest.photo_l), *tiles, sample.nearest.truth_rgb]
                pictures.append(torch.cat(tiles, dim=-1))
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        grid = torch.cat(pictures, dim=-2)[0].permute(1, 2, 0)
        shown = (grid * 255).round().byte().cpu().numpy()
        return Figures(means, means[self.measures[0]], shown)

    def save(self, network: Any, path: Path, metadata: dict[str, str]) -> None:
        """Write a checkpoint whose configuration has the temperature that was trained so far."""
        network.config = dataclasses.replace(
            self.config.network, temperature=network.similarity.temperature
        )
        training = {"training": json.dumps(self.config.to_dict())}
        save_checkpoint(network, path, training | metadata)
