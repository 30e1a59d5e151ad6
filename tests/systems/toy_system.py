"""A system of two steps: brightens a photo in tiles, then takes its mean away."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pikfix.systems.base import Case, Ensemble, Step, System, TensorSpec

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


SYSTEM = System(
    name="toy",
    config_type=ToyConfig,
    build=Toy,
    steps=steps,
    python_steps=(),
    ensembles=(Ensemble("toy", (PHOTO,), (LEVEL,), steps=("brighten", "level")),),
    sample_inputs=sample_inputs,
)
