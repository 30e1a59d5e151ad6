"""The plugin's side that needs no TensorRT, and what it tells TensorRT, by a stand-in."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pikfix_steps import module_of, steps_of

from pikfix.export import ExportError
from pikfix.export.onnx import example_inputs
from pikfix.export.precision import MixedPrecision
from pikfix.export.runtimes.engines import EngineOptions
from pikfix.export.runtimes.programs import ENGINE_WARP_NAME, trace_by_name, use_engine_warp
from pikfix.systems.pikfix.networks import load_checkpoint

pytest.importorskip("triton")
PLUGIN = "pikfix.export.runtimes.tensorrt_plugin"
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_warps_of_a_fixed_width_go_to_the_plugin(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    (spec,) = (s for s in steps_of(model.config) if s.name == "similarity")
    module = module_of(model, "similarity")
    half = MixedPrecision(module, "fp16", half_warp=True)
    program = use_engine_warp(trace_by_name(half, spec, keep_warp=True, device="cpu"))
    warps = [n for n in program.graph.nodes if "pikfix" in str(n.target)]
    # Four scales; the references' shares have as many columns as there are references.
    assert [str(n.target) for n in warps] == ["pikfix.correlation_warp_engine.default"] * 4
    for warp in warps:
        assert [a.meta["val"].dtype for a in warp.args[:3]] == [torch.float16] * 3
        assert warp.args[3] == pytest.approx(model.config.temperature)
    inputs = example_inputs(spec)
    with torch.no_grad():
        got, expected = program.module()(*inputs), module(*inputs)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=0.05, rtol=0)


class Expression:
    """A symbolic size: a constant, or the name of a free one with what was done to it."""

    def __init__(self, value: int | str) -> None:
        self.value = value
        self.is_constant = isinstance(value, int)

    def constant_value(self) -> int:
        assert isinstance(self.value, int)
        return self.value

    def __mul__(self, other: int) -> Expression:
        return Expression(f"{self.value} * {other}")


class Tensor:
    def __init__(self, shape: tuple[int | str, ...], dtype: str) -> None:
        self.shape_expr = [Expression(size) for size in shape]
        self.dtype = dtype


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, dict[str, Any]]]:
    calls: dict[str, Any] = {}
    trt = types.ModuleType("tensorrt")
    trt.__dict__.update(float16="half", bfloat16="bfloat", float32="float")

    def keep(kind: str):  # type: ignore[no-untyped-def]
        def named(name: str):  # type: ignore[no-untyped-def]
            return lambda function: calls.setdefault(kind, (name, function))

        return named

    def from_shape_expr(shape: tuple[Expression, ...], dtype: str) -> Tensor:
        return Tensor(tuple(size.value for size in shape), dtype)

    trtp = types.ModuleType("tensorrt.plugin")
    trtp.__dict__.update(
        TensorDesc=Tensor,
        KernelLaunchParams=type("KernelLaunchParams", (), {}),
        SymExprs=list,
        SymIntExprs=lambda count: [None] * count,
        SymInt32=lambda expression: ("int32", expression.value),
        from_shape_expr=from_shape_expr,
        cdiv=lambda a, b: Expression(f"ceil({a.value} / {b})"),
        register=keep("register"),
        aot_impl=keep("aot_impl"),
    )
    trt.plugin = trtp  # type: ignore[attr-defined]
    converters = types.ModuleType("torch_tensorrt.dynamo.conversion.plugins")
    converters.generate_plugin_converter = (  # type: ignore[attr-defined]
        lambda name, **options: calls.update(converter=(name, options))
    )
    names = ["torch_tensorrt", "torch_tensorrt.dynamo", "torch_tensorrt.dynamo.conversion"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, converters.__name__, converters)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", trtp)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    sys.modules.pop(PLUGIN, None)
    yield importlib.import_module(PLUGIN), calls
    sys.modules.pop(PLUGIN, None)


def test_it_is_registered_before_its_converter_and_once(plugin: Any) -> None:
    module, calls = plugin
    module.register()
    module.register()
    assert list(calls) == ["register", "aot_impl", "converter"]
    assert calls["register"] == (ENGINE_WARP_NAME, module.describe)
    assert calls["aot_impl"] == (ENGINE_WARP_NAME, module.launch)
    name, options = calls["converter"]
    assert name == ENGINE_WARP_NAME
    assert options == {"supports_dynamic_shapes": True, "use_aot_if_available": True}
    # TensorRT compares annotations with types; text would fail its check.
    assert module.describe.__annotations__["query"] is Tensor


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    return (
        Tensor(("batch", "queries", 64), "half"),
        Tensor(("batch", "keys", 64), "half"),
        Tensor(("batch", "keys", 48), "half"),
    )


def test_outputs_are_described_as_the_operator_gives_them(plugin: Any) -> None:
    module, _ = plugin
    outputs = module.describe(*tensors(), np.array(0.01))
    shapes = [[size.value for size in t.shape_expr] for t in outputs]
    assert shapes == [["batch", "queries", 48], ["batch", "queries"], ["batch", "queries"]]
    assert [t.dtype for t in outputs] == ["half", "float", "float"]


def test_the_launch_covers_all_rows_columns_and_batch_items(plugin: Any) -> None:
    module, _ = plugin
    outputs = module.describe(*tensors(), np.array(0.01))
    name, ptx, grid, integers = module.launch(*tensors(), np.array([0.01]), outputs, 0)
    assert f".entry {name}(" in ptx
    assert "sm_80" in ptx
    assert integers == [("int32", "batch"), ("int32", "queries"), ("int32", "keys")]
    assert grid.grid_z.value == "batch"
    assert grid.grid_x.value == "ceil(queries / 128) * 1"
    assert grid.block_x in (128, 256)
    assert 0 < grid.shared_mem <= 48 << 10
    free = Tensor(("batch", "keys", "references"), "half")
    with pytest.raises(ExportError, match="fixed number"):
        module.launch(*tensors()[:2], free, np.array(0.01), outputs, 0)


def test_an_engine_with_the_kernel_is_for_the_gpu_that_built_it(
    plugin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = plugin
    monkeypatch.setattr(module, "use_engine_warp", lambda program: program)
    _, options = module.prepare(object(), EngineOptions(hardware_compatible=True))
    assert not options.version_compatible
    assert not options.hardware_compatible
