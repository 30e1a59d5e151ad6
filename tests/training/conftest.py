from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from training_runs import Quiet

from pikfix.systems.pikfix.networks import PikFixConfig
from pikfix.systems.pikfix.training.config import DataConfig, LossConfig, TrainConfig
from pikfix.systems.pikfix.training.run import train
from pikfix.training.config import OptimizerConfig
from pikfix.training.loop import Budget
from pikfix.training.run import RunOptions


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five colour photos, one of them in a sub-folder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for name in ("astronaut", "chelsea", "coffee", "rocket", "sub/retina"):
        image = Image.fromarray(getattr(data, Path(name).name)())
        image.thumbnail((160, 160))
        image.save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def stamp_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty stamps: bright blots on black."""
    folder = tmp_path_factory.mktemp("stamps")
    rng = np.random.default_rng(5)
    for index in range(20):
        pixels = np.zeros((100, 100), np.uint8)
        row, column = rng.integers(20, 70, 2)
        pixels[row : row + 12, column : column + 5] = 255
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def config(smallest_config: PikFixConfig) -> Callable[..., TrainConfig]:
    """Make a configuration of the smallest networks; keywords replace its fields."""

    def make(**changes: object) -> TrainConfig:
        values: dict[str, object] = {
            # Dropout draws random numbers, which a resumed run has to draw again.
            "network": dataclasses.replace(smallest_config, dropout=0.1),
            "data": DataConfig(crop=64, side=80, references=2, neighbours=2),
            "loss": LossConfig(discriminator_width=4),
            "optimizer": OptimizerConfig(batch=2, warmup=2, learning_rate=1e-3, precision="fp32"),
            "seed": 3,
        }
        return TrainConfig(**(values | changes))  # type: ignore[arg-type]

    return make


BUDGET = {field.name for field in dataclasses.fields(Budget)}


@pytest.fixture
def run(photo_folder, tmp_path):
    """Train in `tmp_path / name` and return the result; keywords are options or the budget's."""

    def start(config, name="run", reporter=None, **changes):
        budget = {key: changes.pop(key) for key in list(changes) if key in BUDGET}
        options = RunOptions(photos=photo_folder, folder=tmp_path / name, workers=0)
        options = dataclasses.replace(
            options, budget=Budget(**({"log_steps": 1} | budget)), **changes
        )
        return train(config, options, reporter or Quiet())

    return start


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """Seeded uniform values in [-0.8, 0.8]."""

    def draw(*shape: int, seed: int = 0) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        return torch.from_numpy(rng.uniform(-0.8, 0.8, shape).astype(np.float32))

    return draw
