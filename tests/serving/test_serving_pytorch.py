"""The python-based pytorch backend, behind a real server."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from pikfix_steps import inference_step
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from pikfix.evaluation.parity import compare
from pikfix.export import export_checkpoint, exporter
from pikfix.export.parity import CASES
from pikfix.export.runtimes import pytorch
from pikfix.serving.errors import ServingError
from pikfix.serving.server import RunningServer, start_server
from pikfix.systems.pikfix.networks import load_checkpoint

pytestmark = pytest.mark.serving

TILE_PIXELS = 320 * 320


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pytorch") / "model_repository"
    with pytest.MonkeyPatch.context() as patch:  # the gate has tests of its own
        patch.setattr(exporter, "CASES", CASES[3:])
        patch.setattr(pytorch, "CASES", CASES[3:])
        export_checkpoint(checkpoint, folder, runtime="pytorch", precision="bf16")
    # Small tiles, so that a photo of moderate size is cut.
    path = folder / "restore" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), pb.ModelConfig())
    config.parameters["tile_pixels"].string_value = str(TILE_PIXELS)
    path.write_text(text_format.MessageToString(config))
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with start_server(repository) as running:
        yield running


def tensors(**arrays: np.ndarray) -> list[grpc.InferInput]:
    inputs = []
    for name, array in arrays.items():
        tensor = grpc.InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def photo(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).uniform(-0.9, 0.9, shape).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_ensemble_gives_what_float32_gives(
    server: RunningServer, checkpoint: Path, batch: int
) -> None:
    image, reference = photo(batch, 1, 96, 128), photo(batch, 2, 3, 64, 96)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("pikfix", tensors(photo_l=image, reference_lab=reference))
    with torch.no_grad():
        expected = load_checkpoint(checkpoint)(torch.from_numpy(image), torch.from_numpy(reference))
    assert compare(expected.restored_l.numpy(), answer.as_numpy("restored_l")).psnr > 45
    assert compare(expected.ab.numpy(), answer.as_numpy("ab")).psnr > 45
    # In bfloat16 indeed, not in float32 by accident.
    assert compare(expected.restored_l.numpy(), answer.as_numpy("restored_l")).psnr < 90


def test_tiles_equal_the_whole(server: RunningServer, checkpoint: Path) -> None:
    image = photo(1, 1, 608, 352)
    assert image.size > TILE_PIXELS
    with grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("restore", tensors(filled_l=image))
    step = inference_step(load_checkpoint(checkpoint), "restore", "bf16")
    whole = step({"filled_l": torch.from_numpy(image)})
    # A tile's place in memory may change the order of a sum: one unit in the last of 8 bits.
    for name, value in whole.items():
        assert compare(value.numpy(), answer.as_numpy(name)).max_abs <= 2**-8, name


def test_errors_are_those_of_the_other_backend(server: RunningServer) -> None:
    image, reference = photo(1, 1, 64, 64), photo(1, 1, 3, 64, 64)
    holes = image.copy()
    holes[0, 0, 3, 3] = np.nan
    late = int(time.time() * 1000) - 1000
    with grpc.InferenceServerClient(server.grpc_url) as client:
        with pytest.raises(InferenceServerException, match=r"\[restore\] bad_tensor: .* NaN"):
            client.infer("restore", tensors(filled_l=holes))
        with pytest.raises(InferenceServerException, match=r"\[similarity\] bad_tensor: .* of 32"):
            client.infer("similarity", tensors(working_l=image[..., :40], reference_lab=reference))
        with pytest.raises(InferenceServerException, match=r"\[damage\] deadline_exceeded: "):
            client.infer(
                "pikfix",
                tensors(photo_l=image, reference_lab=reference),
                parameters={"deadline_unix_ms": late},
            )
    assert server.health().healthy


def test_a_file_of_another_step_is_refused(repository: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "models"
    shutil.copytree(repository / "restore", wrong / "solo")
    text = (wrong / "solo" / "config.pbtxt").read_text().replace('"restore"', '"solo"', 1)
    (wrong / "solo" / "config.pbtxt").write_text(text)
    with pytest.raises(ServingError, match="holds restore, not solo; run `pikfix export` again"):
        start_server(wrong, log_file=tmp_path / "log")
