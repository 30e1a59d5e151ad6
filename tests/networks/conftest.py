from __future__ import annotations

import pytest
import torch

from pikfix.networks import PikFix, PikFixConfig


@pytest.fixture
def tiny(tiny_config: PikFixConfig) -> PikFix:
    """A tiny network whose outputs are not the untrained zero."""
    torch.manual_seed(0)
    model = PikFix(tiny_config)
    for layer in (model.restoration.output, model.colorization.output):
        torch.nn.init.normal_(layer.weight, std=0.05)
    torch.nn.init.normal_(model.restoration.tone.estimate[-1].weight, std=0.1)
    return model.eval()
