"""The similarity sub-net as a python step on the fused operators, behind a real tritonserver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from pikfix.export import Manifest, export_checkpoint
from pikfix.export.runtimes import onnxruntime as onnx_export
from pikfix.serving.server import RunningServer, start_server
from pikfix.systems.base import Step
from pikfix.systems.pikfix.networks import load_checkpoint

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def server(
    checkpoint: Path, exported: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    source, _ = exported

    def copied(module: object, model: Step, path: Path, *, runtime: str) -> None:
        path.write_bytes((source / model.name / "1" / path.name).read_bytes())

    repository = tmp_path_factory.mktemp("kernel") / "model_repository"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "export_onnx", copied)  # those networks are not under test
        manifest = export_checkpoint(checkpoint, repository, similarity="kernel")
    assert manifest.models["similarity"]["file"] == "checkpoint.safetensors"
    assert not (repository / "similarity" / "1" / "model.onnx").exists()
    with start_server(repository) as running:
        yield running


@pytest.mark.parametrize(
    ("batch", "references", "sides"), [(1, 1, (256, 128)), (2, 3, (64, 96)), (1, 2, (32, 32))]
)
def test_the_step_gives_what_pytorch_gives(
    server: RunningServer, checkpoint: Path, batch: int, references: int, sides: tuple[int, int]
) -> None:
    rng = np.random.default_rng(3)
    photo_l = rng.uniform(-1, 1, (batch, 1, *sides)).astype(np.float32)
    lab = rng.uniform(-0.8, 0.8, (batch, references, 3, *sides)).astype(np.float32)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("pikfix", inputs(photo_l, lab))
    with torch.no_grad():
        expected = load_checkpoint(checkpoint)(torch.from_numpy(photo_l), torch.from_numpy(lab))
    np.testing.assert_allclose(answer.as_numpy("ab"), expected.ab.numpy(), atol=1e-3)


def test_bad_tensors_are_refused_and_the_step_lives(server: RunningServer) -> None:
    grey = np.zeros((1, 1, 64, 64), np.float32)
    lab = np.zeros((1, 1, 3, 64, 64), np.float32)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        for bad, says in ((lab[..., :33], "multiples of 32"), (lab + np.nan, "NaN")):
            with pytest.raises(InferenceServerException, match=rf"\[similarity\].*{says}"):
                client.infer("pikfix", inputs(grey, bad))
        assert client.infer("pikfix", inputs(grey, lab)).as_numpy("ab").shape == (1, 2, 64, 64)
    assert server.dead_instances() == []


def inputs(photo_l: np.ndarray, lab: np.ndarray) -> list[grpc.InferInput]:
    made = []
    for name, values in (("photo_l", photo_l), ("reference_lab", lab)):
        made.append(grpc.InferInput(name, list(values.shape), "FP32"))
        made[-1].set_data_from_numpy(np.ascontiguousarray(values))
    return made
