"""Half precision with islands of float32, held to PyTorch in float32 on a CPU."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from pikfix_steps import SYSTEM, module_of, steps_of
from torch import nn
from torch.nn import functional as F

from pikfix.export.onnx import example_inputs, export_onnx
from pikfix.export.parity import CASES, Arrays, Runner, check_parity
from pikfix.export.precision import MixedPrecision, typed
from pikfix.export.runtimes.onnxruntime import onnx_runner
from pikfix.export.runtimes.programs import trace_by_name
from pikfix.export.runtimes.tensorrt import LIMITS
from pikfix.kernels import center_normalize, correlation_warp, naive
from pikfix.systems.base import Step
from pikfix.systems.pikfix.networks import PikFix, load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> PikFix:
    return load_checkpoint(checkpoint)


def module_runner(module: nn.Module, spec: Step) -> Runner:
    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            out = module(*(torch.from_numpy(inputs[tensor.name]) for tensor in spec.inputs))
        values = tuple(out) if isinstance(out, tuple | list) else (out,)
        return {t.name: v.numpy() for t, v in zip(spec.outputs, values, strict=True)}

    return run


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_stays_within_the_gates_limits(model: PikFix, precision: str) -> None:
    # That of the shipped network: a third of it magnifies rounding three times.
    model = copy.deepcopy(model)
    model.similarity.temperature = 0.03
    specs = steps_of(model.config)
    modules = {spec.name: module_of(model, spec.name) for spec in specs}
    runners = {
        spec.name: module_runner(typed(modules[spec.name], spec.precision(precision)), spec)
        for spec in specs
    }
    limits = dict.fromkeys(modules, LIMITS[precision])
    figures = check_parity(SYSTEM, modules, specs, runners, limits=limits, cases=CASES[1:2])
    # It is half precision that was measured: float32 would be far closer.
    for spec in specs:
        assert (figures[spec.name]["max_abs"] > 1e-5) == (spec.lowest_precision != "fp32")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_the_islands_are_needed(half: torch.dtype) -> None:
    """Correlation in half precision at the trained temperature is not the same softmax."""
    torch.manual_seed(0)
    query, key = (center_normalize(torch.randn(1, 256, 64)) for _ in range(2))
    values = torch.rand(1, 256, 8)
    exact, _ = naive.correlation_warp(*(t.double() for t in (query, key, values)), 0.01)
    scores = (query.to(half) @ key.to(half).transpose(1, 2)) / 0.01
    rounded = torch.softmax(scores, dim=-1).float() @ values
    island, _ = correlation_warp(query, key, values, 0.01)
    assert (rounded - exact).abs().max() > 20 * (island - exact).abs().max()


def test_weights_of_the_given_network_are_left_alone(model: PikFix) -> None:
    module = module_of(model, "restore")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    mixed = MixedPrecision(module, "fp16")
    weights = {n: p.dtype for n, p in mixed.named_parameters() if "weight" in n}
    assert set(weights.values()) == {torch.float16}
    tone = MixedPrecision(module_of(model, "tone"), "fp16")
    assert {p.dtype for p in tone.parameters()} == {torch.float32}
    for name, value in module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_folded_batch_norm_is_pytorchs() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(6).eval()
    for parameter in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
        assert parameter is not None
        nn.init.uniform_(parameter, 0.5, 2)
    x = torch.randn(2, 6, 8, 8)
    with torch.no_grad():
        got = MixedPrecision(layer, "fp16")(x)  # float32 in, so the scale is float32 too
        torch.testing.assert_close(got, layer(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="evaluation mode"):
        MixedPrecision(nn.BatchNorm2d(6).train(), "fp16")(x)


class Kinds(nn.Module):
    """Records in which types the calls arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 1)
        self.seen: dict[str, set[torch.dtype]] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.convolution(x)
        self.seen["convolution"] = {y.dtype}
        positions = center_normalize(y.flatten(2).transpose(1, 2))
        self.seen["norm"] = {positions.dtype}
        warped, confidence = correlation_warp(positions, positions, positions, 0.1)
        self.seen["warp"] = {warped.dtype, confidence.dtype}
        return F.relu(y)


@pytest.mark.parametrize("half_warp", [False, True])
def test_each_kind_of_layer_gets_its_type(half_warp: bool) -> None:
    module = MixedPrecision(Kinds(), "fp16", half_warp=half_warp)
    with torch.no_grad():
        assert module(torch.randn(1, 2, 8, 8)).dtype == torch.float32
    assert module.module.seen == {
        "convolution": {torch.float16},
        "norm": {torch.float32},
        "warp": {torch.float32},  # of a half operator too, for which the plugin's test looks inside
    }


def test_the_onnx_file_for_tensorrt_has_its_types_in_the_graph(
    model: PikFix, tmp_path: Path
) -> None:
    """What a strongly typed network is parsed from, run by onnxruntime."""
    (spec,) = (s for s in steps_of(model.config) if s.name == "restore")
    module = module_of(model, "restore")
    export_onnx(MixedPrecision(module, "fp16"), spec, tmp_path / "m.onnx", runtime="tensorrt")
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "m.onnx")).graph
    half = onnx.TensorProto.FLOAT16
    weights = {i.name: i.data_type for i in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert convolutions
    assert all(weights[node.input[1]] == half or ".tone." in node.input[1] for node in convolutions)
    assert {o.type.tensor_type.elem_type for o in graph.output} == {onnx.TensorProto.FLOAT}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    casts = [node for node in graph.node if node.op_type == "Cast"]
    assert sum(half in {types[c.input[0]], types[c.output[0]]} for c in casts) <= 6
    runner = onnx_runner(tmp_path / "m.onnx")
    limits = {"restore": LIMITS["fp16"]}
    undamaged = dataclasses.replace(
        SYSTEM,
        sample_inputs=lambda rng, case: {"filled_l": SYSTEM.sample_inputs(rng, case)["photo_l"]},
    )
    check_parity(
        undamaged, {"restore": module}, [spec], {"restore": runner}, limits=limits, cases=CASES[1:2]
    )


CASES_OF_NAMES = [
    ("restore", False),
    ("colorize", False),
    ("similarity", False),
    ("similarity", True),
]


@pytest.mark.parametrize(("name", "keep_warp"), CASES_OF_NAMES)
def test_programs_for_torch_tensorrt(model: PikFix, name: str, keep_warp: bool) -> None:
    """Inputs have the contract's names, operators are ATen's, results are PyTorch's."""
    (spec,) = (s for s in steps_of(model.config) if s.name == name)
    module = module_of(model, name)
    program = trace_by_name(module, spec, keep_warp=keep_warp, device="cpu")
    signature = program.graph_signature
    assert list(signature.user_inputs) == [tensor.name for tensor in spec.inputs]
    ours = {str(n.target) for n in program.graph.nodes if "pikfix" in str(n.target)}
    assert ours == ({"pikfix.correlation_warp.default"} if keep_warp else set())
    arrays = {t.name: x.numpy() for t, x in zip(spec.inputs, example_inputs(spec), strict=True)}
    if name != "colorize":  # another size and batch than it was traced with
        arrays = {n: np.ascontiguousarray(a[:1, ..., :64, :96]) for n, a in arrays.items()}
    got = module_runner(program.module(), spec)(arrays)
    for tensor, value in module_runner(module, spec)(arrays).items():
        np.testing.assert_allclose(got[tensor], value, atol=1e-4)
