"""The pytorch backend in its form for a GPU, with the CPU as its device."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from backend_files import load_backend
from google.protobuf import json_format, text_format
from pikfix_steps import NETWORKS, module_of, step_of
from tritonclient import grpc
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from pikfix.evaluation.parity import compare
from pikfix.export import Manifest, export_checkpoint, exporter
from pikfix.export.parity import CASES
from pikfix.export.runtimes import pytorch
from pikfix.inference import InferenceStep, load_step, save_step
from pikfix.serving import embedded
from pikfix.serving.server import RunningServer, start_server
from pikfix.systems.pikfix.networks import load_checkpoint

TILE_PIXELS = 288 * 288  # the smallest that the halo allows
Exported = tuple[Path, Manifest, list[str]]


@pytest.fixture(scope="module")
def gpu_export(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """What `pikfix export --runtime pytorch --device cuda --precision fp16` writes here."""
    folder = tmp_path_factory.mktemp("gpu") / "model_repository"
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:  # the gate has tests of its own
        patch.setattr(exporter, "CASES", CASES[3:])
        patch.setattr(pytorch, "CASES", CASES[3:])
        manifest = export_checkpoint(
            checkpoint,
            folder,
            runtime="pytorch",
            device="cuda",
            precision="fp16",
            progress=lines.append,
        )
    return folder, manifest, lines


def read_config(repository: Path, name: str) -> pb.ModelConfig:
    text = (repository / name / "config.pbtxt").read_text()
    return text_format.Parse(text, pb.ModelConfig())


def parameters(config: pb.ModelConfig) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


@pytest.fixture(scope="module")
def on_cpu(gpu_export: Exported) -> Path:
    """The same repository with instances on the CPU, little warm-up and small tiles."""
    source, _, _ = gpu_export
    folder = shutil.copytree(source, source.with_name("on-cpu"))
    for name in NETWORKS:
        config = read_config(folder, name)
        config.instance_group[0].kind = pb.ModelInstanceGroup.KIND_CPU
        del config.model_warmup[:]
        if name == "restore":
            config.parameters["tile_pixels"].string_value = str(TILE_PIXELS)
        (folder / name / "config.pbtxt").write_text(text_format.MessageToString(config))
    return folder


def test_configs_ask_for_gpus_graphs_and_tensors_of_the_host(gpu_export: Exported) -> None:
    folder, manifest, lines = gpu_export
    assert (manifest.device, manifest.precision, manifest.target) == ("cuda", "fp16", "embedded")
    found = {name: read_config(folder, name) for name in NETWORKS}
    for config in found.values():
        (group,) = config.instance_group
        assert config.backend == "pytorch"
        assert group.kind == pb.ModelInstanceGroup.KIND_GPU
        assert not group.gpus  # one instance on each that the server sees
        assert int(parameters(config)["graphs"]) > 0
        # A shape is recorded the second time it comes.
        graphs = [w for w in config.model_warmup if w.count == 2]
        assert {w.batch_size for w in graphs} == {1, 2, 4, 8}
        # What stays on a GPU between python steps can be lost on its way.
        assert "FORCE_CPU_ONLY_INPUT_TENSORS" not in parameters(config)
    if not torch.cuda.is_available():
        assert set(manifest.tested_on.values()) == {"CPU x86_64"}
        assert "says nothing about a GPU's arithmetic" in lines[0]


def test_weights_are_halves_but_the_tone(gpu_export: Exported) -> None:
    for name, dtype in (("restore", torch.float16), ("tone", torch.float32)):
        step = load_step(gpu_export[0] / name / "1" / "model.safetensors")
        assert step.dtype == dtype
        assert {value.dtype for value in step.network.state_dict().values()} == {dtype}


@pytest.fixture(scope="module")
def server(on_cpu: Path) -> Iterator[RunningServer]:
    with start_server(on_cpu) as running:
        yield running


def tensors(**arrays: np.ndarray) -> list[grpc.InferInput]:
    inputs = []
    for name, array in arrays.items():
        tensor = grpc.InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def photo(*shape: int, seed: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.9, 0.9, shape).astype(np.float32)


@pytest.mark.serving
def test_replays_give_what_float32_gives(server: RunningServer, checkpoint: Path) -> None:
    """The third request of a shape is a replay, and every photo gets its own answer."""
    model = load_checkpoint(checkpoint)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        for seed, batch in ((1, 1), (2, 1), (3, 1), (4, 2), (5, 2)):
            image = photo(batch, 1, 96, 128, seed=seed)
            reference = photo(batch, 2, 3, 64, 96, seed=seed + 10)
            answer = client.infer("pikfix", tensors(photo_l=image, reference_lab=reference))
            with torch.no_grad():
                expected = model(torch.from_numpy(image), torch.from_numpy(reference))
            for name, value in (("restored_l", expected.restored_l), ("ab", expected.ab)):
                psnr = compare(value.numpy(), answer.as_numpy(name)).psnr
                # Above: in float16 indeed, not in float32 by accident.
                assert 50 < psnr < 110, (name, seed, psnr)


@pytest.mark.serving
def test_tiles_equal_the_whole(server: RunningServer, on_cpu: Path) -> None:
    image = photo(1, 1, 288, 320)
    assert image.size > TILE_PIXELS
    whole = load_step(on_cpu / "restore" / "1" / "model.safetensors")(
        {"filled_l": torch.from_numpy(image)}
    )
    with grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.infer("restore", tensors(filled_l=image))
    for name, value in whole.items():
        assert compare(value.numpy(), answer.as_numpy(name)).max_abs <= 2**-8, name


@pytest.mark.serving
def test_errors_are_those_of_the_cpu(server: RunningServer) -> None:
    image, reference = photo(1, 1, 64, 64), photo(1, 1, 3, 64, 64)
    holes = image.copy()
    holes[0, 0, 3, 3] = np.nan
    with grpc.InferenceServerClient(server.grpc_url) as client:
        with pytest.raises(InferenceServerException, match=r"\[restore\] bad_tensor: .* NaN"):
            client.infer("restore", tensors(filled_l=holes))
        with pytest.raises(InferenceServerException, match=r"\[similarity\] bad_tensor: .* of 32"):
            client.infer("similarity", tensors(working_l=image[..., :40], reference_lab=reference))
        with pytest.raises(InferenceServerException, match=r"\[restore\] bad_tensor: .* is empty"):
            client.infer("restore", tensors(filled_l=image[..., :0]))
    assert server.health().healthy


@pytest.fixture(scope="module")
def module(on_cpu: Path) -> Any:
    """`serving.device_network`, importable beside Triton's own module alone."""
    load_backend(embedded.BACKENDS / "pytorch/model.py")
    return sys.modules["pikfix.serving.device_network"]


@pytest.fixture(scope="module")
def network(module: ModuleType, on_cpu: Path, checkpoint: Path, tmp_path_factory: Any) -> Any:
    """Makes networks in float32: a CPU is slow in float16."""
    model = load_checkpoint(checkpoint)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_step(module_of(model, "restore"), step_of(model.config, "restore"), "fp32", path)
    return partial(make_network, module, on_cpu, path)


def make_network(module: ModuleType, repository: Path, path: Path, **changed: str) -> Any:
    config = json_format.MessageToDict(
        read_config(repository, "restore"), preserving_proto_field_name=True
    )
    for name, value in changed.items():
        config["parameters"][name] = {"string_value": value}
    tensors = module.DeviceTensors(torch.device("cpu"))
    return module.DeviceNetwork(config, path, tensors)


class SmallMemory:
    """A network that fits no more than so many pixels at a time."""

    def __init__(self, step: InferenceStep, pixels: int) -> None:
        self._step, self._pixels, self.name = step, pixels, step.name
        self.sizes: list[int] = []

    def _check(self, image: torch.Tensor) -> None:
        self.sizes.append(image.numel())
        if image.numel() > self._pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def __call__(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self._check(inputs["filled_l"])
        return self._step(inputs)


def test_what_does_not_fit_is_retried_in_tiles(network: Any) -> None:
    large = network(tile_pixels=str(1 << 20))
    image = torch.from_numpy(photo(1, 1, 480, 640))
    whole = large.run({"filled_l": image}, ["repaired_l"])
    large.step = small = SmallMemory(large.step, 160_000)
    tiled = large.run({"filled_l": image}, ["repaired_l"])
    assert small.sizes[0] == 480 * 640
    assert max(small.sizes[1:]) <= 160_000
    for name, value in whole.items():
        assert compare(value, tiled[name]).max_abs <= 1e-5, name


def test_graphs_are_given_up_before_the_photo_is(network: Any) -> None:
    large = network()
    tensors = {"filled_l": torch.from_numpy(photo(1, 1, 64, 64))}
    for _ in range(2):
        large.run(tensors, ["repaired_l"])
    assert len(large.graphs) == 1
    failing = iter([True, False])
    step = large.step

    def once(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if next(failing):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(inputs)

    once.name = step.name  # type: ignore[attr-defined]
    large.step = once
    tensors = {"filled_l": torch.from_numpy(photo(1, 1, 64, 96))}
    assert large.run(tensors, ["repaired_l"])["repaired_l"].shape == (1, 1, 64, 96)
    assert len(large.graphs) == 0


def test_what_fits_in_no_way_is_refused(network: Any) -> None:
    large = network()
    large.step = SmallMemory(large.step, 1000)
    with pytest.raises(Exception, match="does not suffice for 64 x 64") as caught:
        large.run({"filled_l": torch.from_numpy(photo(1, 1, 64, 64))}, ["repaired_l"])
    assert caught.value.code == "out_of_memory"  # type: ignore[attr-defined]


def test_answers_do_not_change_with_the_next_photo(network: Any) -> None:
    large = network()
    answers = []
    for seed in range(4):
        given = {"filled_l": torch.from_numpy(photo(1, 1, 64, 64, seed=seed))}
        answers.append((given, large.run(given, ["repaired_l"])["repaired_l"]))
    for given, answer in answers:
        assert compare(large.step(given)["repaired_l"].numpy(), answer).max_abs <= 1e-6


def test_a_gpu_that_is_not_there_is_one_line(module: ModuleType) -> None:
    assert module.device_of({"model_instance_kind": "CPU"}).type == "cpu"
    if torch.cuda.is_available():
        pytest.skip("there is one")
    asked = {"model_instance_kind": "GPU", "model_instance_device_id": "0"}
    with pytest.raises(ValueError, match=r"export again with --device cpu$") as caught:
        module.device_of(asked)
    assert "\n" not in str(caught.value)


def test_each_gpu_has_its_own_instance(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = {"model_instance_kind": "GPU", "model_instance_device_id": "1"}
    assert module.device_of(asked) == torch.device("cuda", 1)
    asked["model_instance_device_id"] = "2"
    with pytest.raises(ValueError, match="gave out GPU 2, and PyTorch sees 2"):
        module.device_of(asked)

    def too_old() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update it."
        )

    monkeypatch.setattr(torch.cuda, "init", too_old)
    with pytest.raises(ValueError, match=r"too old \(found version 11040\)\): mend or renew"):
        module.device_of(asked)
