from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from pikfix.networks import PikFixConfig
from pikfix.training.config import DataConfig, LossConfig, OptimizerConfig, TrainConfig

TINY = PikFixConfig(
    name="tiny",
    restoration_channels=4,
    restoration_growth=2,
    restoration_blocks=1,
    restoration_units=1,
    backbone_blocks=(1, 1, 1, 1),
    backbone_width=4,
    adapter_channels=4,
    feature_channels=8,
    bins=8,
    stem_channels=4,
    encoder_units=(1, 1, 1, 1),
    growth=4,
    bottleneck=8,
    dropout=0.1,
    fusion_units=1,
    decoder_channels=(8, 8, 8, 4, 4),
    decoder_units=(1, 1, 1, 1, 1),
)


def tiny_config(**changes: object) -> TrainConfig:
    values: dict[str, object] = {
        "network": TINY,
        "data": DataConfig(crop=64, side=80, references=2, neighbours=2),
        "loss": LossConfig(discriminator_width=4),
        "optimizer": OptimizerConfig(batch=2, warmup=2, learning_rate=1e-3, precision="fp32"),
        "seed": 3,
    }
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.fixture
def config() -> Callable[..., TrainConfig]:
    return tiny_config


@pytest.fixture
def noise() -> Callable[..., torch.Tensor]:
    """Seeded uniform values in [-0.8, 0.8]."""

    def draw(*shape: int, seed: int = 0) -> torch.Tensor:
        rng = np.random.default_rng(seed)
        return torch.from_numpy(rng.uniform(-0.8, 0.8, shape).astype(np.float32))

    return draw
