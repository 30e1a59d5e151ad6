"""Toy models behind a real tritonserver: small graphs whose answers are known in closed form."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import workers
from onnx import TensorProto, helper, numpy_helper

from pikfix.serving.server import RunningServer, start_server

TILE_PIXELS = 96 * 96
TILE_HALO = 24

RESTORE_CONFIG = f"""
parameters {{ key: "tile_pixels" value {{ string_value: "{TILE_PIXELS}" }} }}
parameters {{ key: "tile_halo" value {{ string_value: "{TILE_HALO}" }} }}
parameters {{ key: "tile_align" value {{ string_value: "8" }} }}
"""
BATCHING = "dynamic_batching { max_queue_delay_microseconds: 300000 }\n"

IDENTITY_STEP = """
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse(
                [pb_utils.Tensor("y", pb_utils.get_input_tensor_by_name(r, "x").as_numpy())]
            )
            for r in requests
        ]
"""


def _value(name: str, rank: int, channels: int | None = None) -> onnx.ValueInfoProto:
    shape: list[str | int] = [f"{name}_{axis}" for axis in range(rank)]
    if channels is not None:
        shape[1] = channels
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray] | None = None,
) -> None:
    """Write one ONNX graph."""
    initializers = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "toy", list(inputs), list(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def save_restore(path: Path, seed: int = 0) -> None:
    """Two 5 x 5 convolutions at full size, one 3 x 3 at 1/8 brought back: radius 8 + 8 + 4 = 20."""
    rng = np.random.default_rng(seed)
    fine = [rng.normal(0, 0.2, (4, 1, 5, 5)), rng.normal(0, 0.1, (1, 4, 5, 5))]
    nodes = [
        helper.make_node("Conv", ["photo_l", "w0"], ["f0"], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["f0"], ["f1"]),
        helper.make_node("Conv", ["f1", "w1"], ["f2"], pads=[2, 2, 2, 2]),
        helper.make_node("AveragePool", ["photo_l"], ["c0"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["c0", "w2"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["c1", "", "scales"], ["c2"], mode="linear"),
        helper.make_node("Add", ["f2", "c2"], ["repaired_l"]),
    ]
    constants = {
        "w0": fine[0].astype(np.float32),
        "w1": fine[1].astype(np.float32),
        "w2": rng.normal(0, 0.3, (1, 1, 3, 3)).astype(np.float32),
        "scales": np.array([1, 1, 8, 8], np.float32),
    }
    outputs = [_value("repaired_l", 4, 1)]
    save(path / "model.onnx", nodes, [_value("photo_l", 4, 1)], outputs, constants)


def save_tone(path: Path) -> None:
    """working_l is the mean of the whole picture, which no tile knows."""
    nodes = [
        helper.make_node("Identity", ["repaired_l"], ["restored_l"]),
        helper.make_node("GlobalAveragePool", ["restored_l"], ["working_l"]),
    ]
    inputs = [_value("repaired_l", 4, 1)]
    outputs = [_value("restored_l", 4, 1), _value("working_l", 4, 1)]
    save(path / "model.onnx", nodes, inputs, outputs)


def config(
    name: str,
    backend: str,
    inputs: dict[str, str],
    outputs: dict[str, str],
    more: str = "",
) -> str:
    """Text of a config.pbtxt with FP32 tensors."""
    lines = [f'name: "{name}"', "max_batch_size: 8"]
    lines.append('platform: "ensemble"' if backend == "ensemble" else f'backend: "{backend}"')
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor, dims in tensors.items():
            lines.append(f'{kind} {{ name: "{tensor}" data_type: TYPE_FP32 dims: [ {dims} ] }}')
    if backend != "ensemble":
        lines.append("instance_group { kind: KIND_CPU count: 1 }")
    return "\n".join(lines) + "\n" + more


def write_identity(repository: Path, name: str = "identity", code: str = IDENTITY_STEP) -> Path:
    """A repository with one python step that answers its input: the fastest to start."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(code)
    image = "1, -1, -1"
    text = config(name, "python", {"x": image}, {"y": image})
    (repository / name / "config.pbtxt").write_text(text)
    return repository


def write_pikfix(repository: Path) -> Path:
    """A repository of the project's form: its steps and the ensemble, all toys."""
    plane, reference = "1, -1, -1", "-1, 3, -1, -1"

    def add(name: str, text: str) -> Path:
        version = repository / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        (repository / name / "config.pbtxt").write_text(text)
        return version

    ort, outputs = "onnxruntime", {"repaired_l": plane}
    version = add("restore", config("restore", ort, {"photo_l": plane}, outputs, RESTORE_CONFIG))
    save_restore(version)
    outputs = {"restored_l": plane, "working_l": plane}
    save_tone(add("tone", config("tone", ort, {"repaired_l": plane}, outputs)))

    inputs = {"working_l": plane, "reference_lab": reference}
    version = add("similarity", config("similarity", ort, inputs, {"warped_1": "2, -1, -1"}))
    save(
        version / "model.onnx",
        [
            helper.make_node("ReduceMean", ["reference_lab"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("Slice", ["mean", "one", "three", "one"], ["ab"]),
            helper.make_node("Add", ["ab", "working_l"], ["warped_1"]),
        ],
        [_value("working_l", 4, 1), _value("reference_lab", 5)],
        [_value("warped_1", 4, 2)],
        {"one": np.array([1], np.int64), "three": np.array([3], np.int64)},
    )
    version = add(
        "colorize", config("colorize", ort, {"warped_1": "2, -1, -1"}, {"ab": "2, -1, -1"})
    )
    save(
        version / "model.onnx",
        [helper.make_node("Tanh", ["warped_1"], ["ab"])],
        [_value("warped_1", 4, 2)],
        [_value("ab", 4, 2)],
    )

    def step(name: str, inputs: Sequence[str], outputs: Sequence[str]) -> str:
        maps = [f'input_map {{ key: "{i}" value: "{i}" }}' for i in inputs]
        maps += [f'output_map {{ key: "{o}" value: "{o}" }}' for o in outputs]
        return f'step {{ model_name: "{name}" model_version: -1 {" ".join(maps)} }}'

    steps = [
        step("restore", ["photo_l"], ["repaired_l"]),
        step("tone", ["repaired_l"], ["restored_l", "working_l"]),
        step("similarity", ["working_l", "reference_lab"], ["warped_1"]),
        step("colorize", ["warped_1"], ["ab"]),
    ]
    inputs, outputs = (
        {"photo_l": plane, "reference_lab": reference},
        {"restored_l": plane, "ab": "2, -1, -1"},
    )
    schedule = "ensemble_scheduling { " + "\n".join(steps) + " }"
    add("pikfix", config("pikfix", "ensemble", inputs, outputs, schedule))
    return repository


def write_merged(repository: Path) -> None:
    """A model that answers each request with the size of the batch it was merged into."""
    version = repository / "merged" / "1"
    text = config("merged", "onnxruntime", {"x": "1, -1, -1"}, {"y": "1, -1, -1"}, BATCHING)
    save(
        version / "model.onnx",
        [
            helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
            helper.make_node("Cast", ["batch"], ["count"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["x", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "count"], ["y"]),
        ],
        [_value("x", 4, 1)],
        [_value("y", 4, 1)],
        {"zero": np.zeros(1, np.float32)},
    )
    (repository / "merged" / "config.pbtxt").write_text(text)


@pytest.fixture(scope="session")
def toy_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's form plus the batch counter."""
    repository = write_pikfix(tmp_path_factory.mktemp("serving") / "model_repository")
    write_merged(repository)
    return repository


@pytest.fixture(scope="session")
def toy_server(toy_repository: Path) -> Iterator[RunningServer]:
    """One real server for every test that does not end it."""
    with start_server(toy_repository, supervise=False) as server:
        yield server


@pytest.fixture
def identity_repository(tmp_path: Path) -> Path:
    """The repository that starts fastest."""
    return write_identity(tmp_path / "models")


@pytest.fixture
def make_identity(tmp_path: Path) -> Callable[..., Path]:
    """Writes such a repository with another name or another step's code."""
    return lambda name, code: write_identity(tmp_path / "models", name, code)


@pytest.fixture
def nothing_left() -> Iterator[Callable[[], list[str]]]:
    """A function that lists what runs since the test's start have left behind."""
    from pikfix.serving.rundir import FOLDER_PREFIX, base_folders

    def neighbours_regions() -> set[str]:
        """Regions of the runs that other workers' tests have now."""
        prefixes = set()
        for base in workers.neighbours_folders():
            for file in base.glob(f"{FOLDER_PREFIX}*/shm-region-prefix"):
                with contextlib.suppress(OSError):  # it has just ended
                    prefixes.add(file.read_text())
        return {str(p) for p in Path("/dev/shm").glob("pikfix-*") if p.name[:20] in prefixes}

    def ours() -> set[str]:
        # A run's folder is there before its regions and after them.
        theirs = neighbours_regions()
        found = {str(p) for p in Path("/dev/shm").glob("pikfix-*")}
        found -= theirs | neighbours_regions()
        for base in base_folders():
            found |= {str(p) for p in base.glob(f"{FOLDER_PREFIX}*")}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or not workers.is_mine(entry):
                continue
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"bin/tritonserver" in words or b"triton_python_backend_stub" in words:
                found.add(f"{entry.name} {words[:80]!r}")
        return found

    before = ours()
    assert os.access("/dev/shm", os.W_OK)
    yield lambda: sorted(ours() - before)
