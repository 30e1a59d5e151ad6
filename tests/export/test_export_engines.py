"""TensorRT's own parser and builder on this project's networks, by TensorRT for RTX: no GPU needed.

Every sub-net goes the way of `pikfix export --runtime tensorrt`, from the same file to the same
builder, with the shapes that memory allows.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from pikfix_steps import NETWORKS, SYSTEM, module_of, step_of, steps_of
from rtx import API, OPTIONS, tensorrt_for_rtx

from pikfix.export.capacity import capacity_of
from pikfix.export.configs import ServingSettings
from pikfix.export.onnx import export_onnx
from pikfix.export.parity import check_parity
from pikfix.export.precision import typed
from pikfix.export.profiles import Largest, profile_of
from pikfix.export.runtimes.onnxruntime import onnx_runner
from pikfix.export.runtimes.tensorrt import LIMITS
from pikfix.export.runtimes.tensorrt_lint import OPERATORS, refusals
from pikfix.systems.base import Case, Step
from pikfix.systems.pikfix.networks import PRESETS, PikFix, load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

ROOT = Path(__file__).parents[2]
SETTINGS = ServingSettings()


@pytest.fixture(scope="module")
def trt() -> Iterator[Any]:
    with tensorrt_for_rtx() as found:
        yield found


class Exported:
    """Networks of a preset as ONNX files, each written once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.models: dict[str, PikFix] = {}

    def model(self, preset: str) -> PikFix:
        if preset not in self.models:
            torch.manual_seed(0)
            shipped = ROOT / "checkpoints" / "compact.safetensors"
            self.models[preset] = (
                load_checkpoint(shipped) if preset == "compact" else PikFix(PRESETS[preset]).eval()
            )
        return self.models[preset]

    def spec(self, preset: str, name: str) -> Step:
        return step_of(self.model(preset).config, name)

    def largest(self, preset: str, name: str, precision: str) -> Largest:
        """What an engine of a sub-net is built for, as an export counts it."""
        spec = self.spec(preset, name)
        return capacity_of(
            {name: typed(module_of(self.model(preset), name), precision)},
            [spec],
            budget=OPTIONS.workspace_bytes,
            max_batch=SETTINGS.max_batch_size,
            reference_side=SETTINGS.reference_side,
            fused_warp=False,
        ).largest[name]

    def file(self, preset: str, name: str, precision: str) -> Path:
        path = self.folder / f"{preset}-{name}-{precision}.onnx"
        if not path.exists():
            module = typed(module_of(self.model(preset), name), precision)
            export_onnx(module, self.spec(preset, name), path, runtime="tensorrt")
        return path


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("engines"))


def build(networks: Exported, preset: str, name: str, precision: str) -> bytes:
    """The engine of a sub-net, as `pikfix export` builds it."""
    largest = networks.largest(preset, name, precision)
    profile = profile_of(
        networks.spec(preset, name), largest, reference_side=SETTINGS.reference_side
    )
    api = importlib.import_module(API)
    engine: bytes = api.build_from_onnx(
        networks.file(preset, name, precision),
        [profile],
        OPTIONS,
        name=name,
        report=lambda line: None,
    )
    return engine


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_engine_of_the_shipped_network_builds(
    trt: Any, networks: Exported, name: str, precision: str
) -> None:
    file = networks.file("compact", name, precision)
    assert refusals(file) == []
    assert len(build(networks, "compact", name, precision)) > file.stat().st_size / 2


@pytest.mark.engines
@pytest.mark.parametrize(
    ("preset", "name", "precision"),
    list(itertools.product(PRESETS, NETWORKS, ("fp32", "fp16", "bf16"))),
)
def test_every_engine_builds(
    trt: Any, networks: Exported, preset: str, name: str, precision: str
) -> None:
    file = networks.file(preset, name, precision)
    assert refusals(file) == []
    assert len(build(networks, preset, name, precision)) > file.stat().st_size / 2


def test_the_files_that_engines_are_built_from_compute_what_pytorch_does(
    networks: Exported,
) -> None:
    """The same files on ONNX Runtime, which can run them here."""
    model = networks.model("compact")
    specs = steps_of(model.config)
    modules = {s.name: module_of(model, s.name) for s in specs}
    runners = {s.name: onnx_runner(networks.file("compact", s.name, "fp32")) for s in specs}
    limits = dict.fromkeys(modules, LIMITS["fp32"])
    cases = (Case(2, 3, (97, 203), (64, 160)), Case(1, 1, (31, 700), (32, 32)))
    figures = check_parity(SYSTEM, modules, specs, runners, limits=limits, cases=cases)
    assert figures["restore"]["max_abs"] < 1e-4


def graph(
    operator: str,
    inputs: dict[str, list[Any]],
    *,
    kind: int = TensorProto.FLOAT,
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
    before: str | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """A graph of one node; `before` is an operator that its first input passes first."""
    constants = constants or {}
    nodes = [helper.make_node(before, ["x"], ["first"])] if before else []
    names = [*inputs, *constants]
    if before:
        names[0] = "first"
    nodes.append(helper.make_node(operator, names, ["y"], name="the node", **attributes))
    made = helper.make_graph(
        nodes,
        "one node",
        [helper.make_tensor_value_info(n, kind, shape) for n, shape in inputs.items()],
        [helper.make_empty_tensor_value_info("y")],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made.output[0].type.tensor_type.elem_type = kind
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


PICTURE = {"x": [1, 1, 8, 8]}
SCALES = {"roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 0.5, 0.5], np.float32)}
HEADS = {"q": [1, 2, 8, 16], "k": [1, 2, 8, 16]}

REFUSED: dict[str, Callable[[], onnx.ModelProto]] = {
    "antialias": lambda: graph("Resize", PICTURE, constants=SCALES, mode="linear", antialias=1),
    "half_pixel_symmetric": lambda: graph(
        "Resize",
        PICTURE,
        constants=SCALES,
        mode="linear",
        coordinate_transformation_mode="half_pixel_symmetric",
    ),
    "softmax_precision": lambda: graph(
        "Attention", {**HEADS, "v": [1, 2, 8, 16]}, softmax_precision=1
    ),
    "softcap": lambda: graph("Attention", {**HEADS, "v": [1, 2, 8, 16]}, softcap=2.0),
    "one width": lambda: graph("Attention", {**HEADS, "v": [1, 2, 8, 12]}),
    "training_mode": lambda: graph(
        "BatchNormalization",
        PICTURE,
        constants={n: np.ones(1, np.float32) for n in ("s", "b", "m", "v")},
        training_mode=1,
    ),
    "reduction": lambda: graph(
        "ScatterND",
        {"x": [8]},
        constants={"i": np.zeros((1, 1), np.int64), "u": np.ones(1, np.float32)},
        reduction="add",
    ),
    "no such operator": lambda: graph("Det", {"x": [3, 3]}),
    "INT16": lambda: graph("Abs", {"x": [3]}, kind=TensorProto.INT16),
    "9 dimensions": lambda: graph("Abs", {"x": [1] * 9}),
}

ACCEPTED: dict[str, Callable[[], onnx.ModelProto]] = {
    "resize": lambda: graph("Resize", PICTURE, constants=SCALES, mode="linear"),
    "attention": lambda: graph("Attention", {**HEADS, "v": [1, 2, 8, 16]}),
    "scatter": lambda: graph(
        "ScatterND",
        {"x": [8]},
        constants={"i": np.zeros((1, 1), np.int64), "u": np.ones(1, np.float32)},
    ),
    "norm": lambda: graph(
        "BatchNormalization", PICTURE, constants={n: np.ones(1, np.float32) for n in "sbmv"}
    ),
    "8 dimensions": lambda: graph("Abs", {"x": [1] * 8}),
}


def parses(trt: Any, file: Path) -> bool:
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = trt.Builder(logger).create_network(flag)
    return bool(trt.OnnxParser(network, logger).parse_from_file(str(file)))


@pytest.mark.parametrize("rule", REFUSED)
def test_what_the_lint_refuses_is_refused_by_the_parser(
    trt: Any, tmp_path: Path, rule: str
) -> None:
    onnx.save(REFUSED[rule](), tmp_path / "m.onnx")
    assert not parses(trt, tmp_path / "m.onnx")
    found = refusals(tmp_path / "m.onnx")
    assert any(rule in line for line in found), found
    assert all("the node" in line for line in found)


@pytest.mark.parametrize("kind", ACCEPTED)
def test_what_the_lint_accepts_is_accepted_by_the_parser(
    trt: Any, tmp_path: Path, kind: str
) -> None:
    onnx.save(ACCEPTED[kind](), tmp_path / "m.onnx")
    assert parses(trt, tmp_path / "m.onnx")
    assert refusals(tmp_path / "m.onnx") == []


def test_the_lint_knows_the_parsers_operators(trt: Any) -> None:
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    parser = trt.OnnxParser(trt.Builder(logger).create_network(), logger)
    schemas = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    known = {name for name in schemas if parser.supports_operator(name)}
    assert known >= OPERATORS & schemas
    assert {"Resize", "Attention", "Mod"} <= OPERATORS & known
    assert not {"Det", "DFT", "BitShift", "QLinearConv"} & (OPERATORS | known)


def test_a_remainder_that_the_parser_would_take_is_refused(tmp_path: Path) -> None:
    """It parses, but gives TensorRT another number: nothing would say so before a photo came."""
    made = graph(
        "Mod", {"x": [1]}, kind=TensorProto.INT64, constants={"d": np.array([8])}, before="Neg"
    )
    onnx.save(made, tmp_path / "m.onnx")
    assert refusals(tmp_path / "m.onnx") == [
        "Mod the node: the remainder of a negative number is negative on TensorRT, unlike ONNX's"
    ]
