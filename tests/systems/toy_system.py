"""A system of two steps: brightens a photo in tiles, then takes its mean away.

It is trained to do nothing, and measured by how far it is from that.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pikfix.evaluation.protocol import Measured, Photo, Protocol
from pikfix.systems.base import Case, Ensemble, Step, System, TensorSpec
from pikfix.systems.checkpoint import save_checkpoint
from pikfix.training.config import OptimizerConfig
from pikfix.training.dataset import lightness
from pikfix.training.stage import Stage
from pikfix.training.stage_run import Material

PHOTO = TensorSpec("photo_l", (1, "H", "W"))
BRIGHT = TensorSpec("bright_l", (1, "H", "W"))
LEVEL = TensorSpec("level_l", (1, "H", "W"))


@dataclass(frozen=True)
class ToyConfig:
    name: str = "toy"
    channels: int = 4

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ToyConfig:
        return cls(**values)


class Toy(nn.Module):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.brighten = nn.Sequential(
            nn.Conv2d(1, config.channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(config.channels, 1, 3, padding=1),
        )


class Level(nn.Module):
    def forward(self, bright_l: Tensor) -> Tensor:
        return bright_l - bright_l.mean(dim=(2, 3), keepdim=True)


def steps(config: ToyConfig) -> tuple[Step, ...]:
    own: Any = {"system": "toy", "config": config}
    return (
        Step("brighten", (PHOTO,), (BRIGHT,), module=lambda model: model.brighten, halo=2, **own),
        Step("level", (BRIGHT,), (LEVEL,), module=lambda model: Level(), **own),
    )


def sample_inputs(rng: np.random.Generator, case: Case) -> dict[str, Tensor]:
    shape = (case.batch, 1, *case.photo)
    return {"photo_l": torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32))}


class Idle(Stage):
    name = "idle"
    weights = MappingProxyType({"change": 1.0})
    optimizer = OptimizerConfig(batch=2, learning_rate=1e-2, warmup=1, temperature_start=None)

    def __init__(self, material: Material) -> None:
        self.network, self.photos = material.network, len(material.photos)
        side, store = material.config.crop, material.photos
        crops = [lightness(photo[:side, :side]) * 2 - 1 for photo in store]
        self.data = [torch.from_numpy(np.stack(crops))[:, None]] * 100

    def forward(self, inputs: Tensor) -> Tensor:
        bright: Tensor = self.network.brighten(inputs)
        return bright

    def losses(self, inputs: Tensor, outputs: Tensor) -> dict[str, Tensor]:
        return {"change": (outputs - inputs).abs().mean()}

    def save(self, network: Any, path: Path, metadata: dict[str, str]) -> None:
        save_checkpoint(network, path, metadata, system="toy")


class Distance(Protocol):
    name = "distance"
    summary = "how far a photo is changed"

    def measure(self, model: Toy, photo: Photo, rng: np.random.Generator) -> Measured:
        grey = photo.rgb.mean(dim=0)[None, None] * 2 - 1
        change = float((model.brighten(grey) - grey).abs().mean())
        return Measured({"model": {"change": change}}, {}, [])


SYSTEM = System(
    name="toy",
    config_type=ToyConfig,
    build=Toy,
    steps=steps,
    python_steps=(),
    ensembles=(Ensemble("toy", (PHOTO,), (LEVEL,), steps=("brighten", "level")),),
    sample_inputs=sample_inputs,
    presets={"compact": ToyConfig()},
    stages={"idle": "toy_system:Idle"},
    protocols={"distance": "toy_system:Distance"},
)
