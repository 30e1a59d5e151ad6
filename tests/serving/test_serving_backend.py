"""The python-based onnxruntime backend, behind a real server."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from pikfix.serving.server import RunningServer, start_server

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def client(toy_server: RunningServer):
    with grpc.InferenceServerClient(toy_server.grpc_url) as client:
        yield client


def tensors(**arrays: np.ndarray) -> list[Any]:
    types = {np.float32: "FP32", np.float64: "FP64"}
    inputs = []
    for name, array in arrays.items():
        tensor = grpc.InferInput(name, list(array.shape), types[array.dtype.type])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def photo(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def whole(repository: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(repository / "restore/1/model.onnx"))
    (repaired,) = session.run(["repaired_l"], {"photo_l": image})
    return repaired


@pytest.mark.parametrize("shape", [(1, 1, 32, 64), (2, 1, 96, 96), (1, 1, 256, 328)])
def test_restore_equals_the_whole_picture(client, toy_repository, shape):
    """The last shape is tiled on the server (84k of 9k pixels) and batch 2 is cut in two."""
    image = photo(*shape)
    answer = client.infer("restore", tensors(photo_l=image))
    repaired = whole(toy_repository, image)
    np.testing.assert_allclose(answer.as_numpy("repaired_l"), repaired, atol=2e-6)


@pytest.mark.parametrize("batch", [1, 2])
def test_ensemble_through_all_models(client, toy_repository, batch):
    image, reference = photo(batch, 1, 40, 48), photo(batch, 2, 3, 16, 24, seed=2)
    answer = client.infer("pikfix", tensors(photo_l=image, reference_lab=reference))
    restored = whole(toy_repository, image)
    working = restored.mean(axis=(2, 3), keepdims=True)
    expected = np.tanh(reference.mean(axis=1)[:, 1:] + working)
    np.testing.assert_allclose(answer.as_numpy("restored_l"), restored, atol=2e-6)
    np.testing.assert_allclose(answer.as_numpy("ab"), expected, atol=2e-6)


def ask_together(client, requests: list[list[Any]], model: str) -> list[Any]:
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for index, inputs in enumerate(requests):
        client.async_infer(
            model, inputs, lambda result, error, i=index: answers.put((i, result, error))
        )
    got = sorted((answers.get(timeout=20) for _ in requests), key=lambda answer: answer[0])
    return [error or result for _, result, error in got]


def test_equal_shapes_run_as_one_batch(client):
    """The model answers with the size of the batch that ONNX Runtime saw."""
    requests = [tensors(x=photo(n, 1, 8, 8)) for n in (1, 2, 1)]
    results = ask_together(client, requests, "merged")
    assert [result.as_numpy("y").shape[0] for result in results] == [1, 2, 1]
    assert {float(result.as_numpy("y").max()) for result in results} == {4.0}


def test_bad_request_in_a_batch_fails_alone(client):
    bad = photo(1, 1, 8, 8)
    bad[0, 0, 3, 3] = np.inf
    results = ask_together(
        client,
        [tensors(x=photo(1, 1, 8, 8)), tensors(x=bad), tensors(x=photo(1, 1, 8, 8))],
        "merged",
    )
    assert "[merged] bad_tensor: x holds NaN or infinity" in str(results[1])
    assert [float(results[i].as_numpy("y").max()) for i in (0, 2)] == [2.0, 2.0]


def nan_photo() -> np.ndarray:
    image = photo(1, 1, 32, 32)
    image[0, 0, 5, 7] = np.nan
    return image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (nan_photo(), r"\[restore\] bad_tensor: photo_l holds NaN or infinity"),
        (photo(1, 2, 32, 32), "unexpected shape for input 'photo_l'"),
        (photo(1, 32, 32), "unexpected shape for input 'photo_l'"),
        (photo(1, 1, 32, 32).astype(np.float64), "data-type is 'FP64'"),
        (photo(1, 1, 0, 32), r"\[restore\] bad_tensor: photo_l is empty"),
    ],
    ids=["nan", "channels", "rank", "dtype", "empty"],
)
def test_bad_tensor_is_one_line_and_harmless(client, toy_server, image, message):
    reference = photo(1, 1, 3, 16, 16)
    with pytest.raises(InferenceServerException, match=message) as caught:
        client.infer("pikfix", tensors(photo_l=image, reference_lab=reference))
    assert "\n" not in caught.value.message().strip()
    assert toy_server.health().healthy


def test_model_that_rejects_a_shape_names_the_step(client):
    """warped_1 = ab + working_l broadcasts [2, 16, 24] with [1, 5, 7]: impossible."""
    with pytest.raises(InferenceServerException, match=r"\[similarity\] (internal|bad_tensor): "):
        client.infer(
            "similarity", tensors(working_l=photo(1, 1, 5, 7), reference_lab=photo(1, 1, 3, 16, 24))
        )


def test_deadline_in_the_past_is_not_worked_on(client):
    image, reference = photo(1, 1, 32, 32), photo(1, 1, 3, 16, 16)
    inputs = tensors(photo_l=image, reference_lab=reference)
    late = int(time.time() * 1000) - 5000
    with pytest.raises(InferenceServerException, match=r"\[restore\] deadline_exceeded: .* ms ago"):
        client.infer("pikfix", inputs, parameters={"deadline_unix_ms": late})
    ahead = int(time.time() * 1000) + 60_000
    client.infer("pikfix", inputs, parameters={"deadline_unix_ms": ahead})


def test_deadline_that_is_no_number(client):
    with pytest.raises(InferenceServerException, match=r"bad_options: deadline_unix_ms must be"):
        client.infer(
            "restore", tensors(photo_l=photo(1, 1, 32, 32)), parameters={"deadline_unix_ms": "soon"}
        )


def test_only_requested_outputs_come_back(client):
    wanted = [grpc.InferRequestedOutput("working_l")]
    answer = client.infer("tone", tensors(repaired_l=photo(1, 1, 256, 328)), outputs=wanted)
    assert answer.as_numpy("working_l") is not None
    assert answer.as_numpy("restored_l") is None


def test_model_without_its_file_does_not_load(toy_repository, tmp_path):
    """The failed start is one line that names the model, the file and the remedy."""
    from pikfix.serving.errors import ServingError

    repository = tmp_path / "models"
    restore = repository / "solo"
    (restore / "1").mkdir(parents=True)
    source = toy_repository / "restore"
    text = (source / "config.pbtxt").read_text().replace('"restore"', '"solo"')
    (restore / "config.pbtxt").write_text(text)
    (restore / "1/other.onnx").write_bytes((source / "1/model.onnx").read_bytes())
    with pytest.raises(ServingError, match=r"solo failed to load.*model\.onnx is missing"):
        start_server(repository, log_file=tmp_path / "log")
