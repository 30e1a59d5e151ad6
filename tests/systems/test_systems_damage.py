"""The damage networks as a system: exported, and served as a model of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient import grpc

from pikfix.export import export_checkpoint
from pikfix.serving.server import start_server
from pikfix.systems.checkpoint import load, save_checkpoint
from pikfix.systems.damage.networks import Damage, DamageConfig


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Tiny networks with seeded weights that find something and change it."""
    torch.manual_seed(0)
    network = Damage(DamageConfig("tiny", (4, 6), (4, 6), limit=128, softness=0.2))
    torch.nn.init.normal_(network.detector.output.weight, std=1.0)
    torch.nn.init.constant_(network.detector.output.bias, -0.85)
    torch.nn.init.normal_(network.filler.output.weight, std=0.1)
    path = tmp_path / "damage.safetensors"
    save_checkpoint(network, path, system="damage")
    return path


def test_a_checkpoint_names_its_step(checkpoint: Path) -> None:
    loaded = load(checkpoint)
    assert (loaded.system.name, [step.name for step in loaded.steps]) == ("damage", ["damage"])
    assert loaded.config.detector_channels == (4, 6)


@pytest.mark.serving
@pytest.mark.parametrize("runtime", ["onnxruntime", "pytorch"])
def test_it_is_served_as_a_model_of_its_own(checkpoint: Path, tmp_path: Path, runtime: str) -> None:
    repository = tmp_path / "model_repository"
    export_checkpoint(checkpoint, repository, runtime=runtime, precision="fp32")
    photo = np.random.default_rng(1).uniform(-1, 1, (2, 1, 150, 230)).astype(np.float32)
    given = grpc.InferInput("photo_l", list(photo.shape), "FP32")
    given.set_data_from_numpy(photo)
    with start_server(repository) as server, grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("damage", [given])
    filled, mask = answer.as_numpy("filled_l"), answer.as_numpy("damage_mask")
    with torch.no_grad():
        expected = load(checkpoint).model(torch.from_numpy(photo))
    np.testing.assert_allclose(mask, expected[1].numpy(), atol=1e-4)
    np.testing.assert_allclose(filled, expected[0].numpy(), atol=1e-4)
    assert 0.01 < (mask > 0).mean() < 0.99
    np.testing.assert_array_equal(filled[mask == 0], photo[mask == 0])
