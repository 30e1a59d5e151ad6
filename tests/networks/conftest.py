from __future__ import annotations

import pytest
import torch

from pikfix.networks import PikFix, PikFixConfig


@pytest.fixture(scope="session")
def tiny_config() -> PikFixConfig:
    """The paper's layout, every width cut down."""
    return PikFixConfig(
        name="tiny",
        restoration_channels=8,
        restoration_growth=4,
        backbone_blocks=(1, 1, 1, 1),
        backbone_width=8,
        adapter_channels=8,
        feature_channels=16,
        bins=8,
        stem_channels=8,
        encoder_units=(2, 2, 2, 2),
        growth=4,
        bottleneck=8,
        fusion_units=2,
        decoder_channels=(16, 16, 8, 8, 8),
        decoder_units=(1, 1, 1, 1, 1),
    )


@pytest.fixture
def tiny(tiny_config: PikFixConfig) -> PikFix:
    """A tiny network whose outputs are not the untrained zero."""
    torch.manual_seed(0)
    model = PikFix(tiny_config)
    for layer in (model.restoration.output, model.colorization.output):
        torch.nn.init.normal_(layer.weight, std=0.05)
    return model.eval()
