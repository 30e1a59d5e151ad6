"""The plugin in TensorRT's own Python: its decorators, checks and templates, without its C++.

What TensorRT's C++ would call while it builds an engine is called here in its order, with sizes
that stay free until a launch.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import fake_tensorrt as fake
import numpy as np
import pytest
import torch

from pikfix.export import ExportError
from pikfix.export.runtimes.programs import ENGINE_WARP_NAME

pytest.importorskip("triton")
PLUGIN = "pikfix.export.runtimes.tensorrt_plugin"
CONVERTERS = "torch_tensorrt.dynamo.conversion.plugins"
TEMPERATURE = 0.01
CALL = {"batch": 3, "queries": 1000, "keys": 4100}


def _ours(name: str) -> bool:
    return name.split(".", maxsplit=1)[0] in ("tensorrt", "torch_tensorrt") or name == PLUGIN


@pytest.fixture(scope="module")
def trt() -> Iterator[Any]:
    """TensorRT's Python sources, on classes that stand for its C++, with the plugin registered."""
    folder = fake.sources()
    if folder is None:
        if os.environ.get("CI"):
            raise ImportError("tensorrt-cu13-bindings is missing: pip install 'pikfix[rtx]'")
        pytest.skip("TensorRT's Python sources are not installed (pip install 'pikfix[rtx]')")
    with pytest.MonkeyPatch.context() as patch:
        for name in filter(_ours, list(sys.modules)):
            patch.delitem(sys.modules, name)
        module = fake.tensorrt(folder)
        patch.setitem(sys.modules, "tensorrt", module)
        parts = CONVERTERS.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            patch.setitem(sys.modules, name, types.ModuleType(name))
        converted: list[str] = []
        patch.setattr(
            sys.modules[CONVERTERS],
            "generate_plugin_converter",
            lambda name, **options: converted.append(name),
            raising=False,
        )
        patch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        importlib.import_module("tensorrt.plugin")
        importlib.import_module(PLUGIN).register()
        assert converted == [ENGINE_WARP_NAME]
        yield module
        for name in filter(_ours, list(sys.modules)):
            del sys.modules[name]


def made(trt: Any, colours: int | str = 48, kind: str = "HALF") -> tuple[Any, Any, Any]:
    """The plugin as a network's layer, its inputs' types, and the shapes of its outputs."""
    tensors = [trt.ITensor() for _ in range(3)]
    operator = trt.plugin.op.pikfix.correlation_warp_engine
    # torch-tensorrt passes numbers as arrays of float64, and asks for what needs no Python.
    inputs, shapes, plugin = operator(*tensors, temperature=np.array([TEMPERATURE]))(
        trt.QuickPluginCreationRequest.STRICT_AOT
    )
    assert (inputs, shapes) == (tensors, [])
    types_ = [trt.DataType[kind]] * 3
    plugin.get_output_data_types(types_, [3, 3, 3])
    width = fake.size(colours) if isinstance(colours, str) else fake.Expression(colours)
    free = {name: fake.size(name) for name in CALL}
    given = [
        [free["batch"], free["queries"], fake.Expression(64)],
        [free["batch"], free["keys"], fake.Expression(64)],
        [free["batch"], free["keys"], width],
    ]
    return plugin, types_, plugin.get_output_shapes(given, [], fake.ExpressionBuilder())


def launched(trt: Any, plugin: Any, types_: list[Any]) -> tuple[Any, fake.LaunchedIntegers, Any]:
    """What the plugin has for a launch: grid and blocks, integers, and the kernel's code."""
    outputs = plugin.output_types
    tensors = [
        fake.PluginTensorDesc((-1, -1, -1), kind, trt.TensorFormat.LINEAR)
        for kind in (*types_, *outputs)
    ]
    dynamic = [fake.DynamicPluginTensorDesc(tensor) for tensor in tensors]
    combinations = plugin.get_supported_format_combinations(dynamic, len(types_))
    assert [tensor.type for tensor in combinations] == [*types_, *outputs]
    assert {tensor.format for tensor in combinations} == {trt.TensorFormat.LINEAR}
    plugin.configure_plugin(dynamic[:3], dynamic[3:])
    assert plugin.get_valid_tactics() == []
    plugin.set_tactic(0)
    grid, integers = types.SimpleNamespace(), fake.LaunchedIntegers()
    plugin.get_launch_params([], dynamic, 3, grid, integers, fake.ExpressionBuilder())
    return grid, integers, plugin.get_kernel(tensors[:3], tensors[3:])


@pytest.mark.parametrize("kind", ["HALF", "BF16", "FLOAT"])
def test_tensorrt_gets_the_operators_shapes_and_types(trt: Any, kind: str) -> None:
    plugin, _, shapes = made(trt, kind=kind)
    assert [[s.at(CALL) for s in shape] for shape in shapes] == [
        [3, 1000, 48],
        [3, 1000],
        [3, 1000],
    ]
    assert [found.name for found in plugin.output_types] == [kind, "FLOAT", "FLOAT"]


@pytest.mark.parametrize("kind", ["HALF", "FLOAT"])
def test_tensorrt_gets_a_kernel_and_a_launch_that_covers_a_call(trt: Any, kind: str) -> None:
    plugin, types_, _ = made(trt, kind=kind)
    grid, integers, (name, code) = launched(trt, plugin, types_)
    entry = re.search(rf"\.entry {name}\((.*?)\)", code.decode(), re.DOTALL)
    assert entry is not None
    # Tensors, then what TensorRT was told to put between, then outputs.
    widths = re.findall(r"\.param \.(\w+)", entry[1])
    assert widths == ["u64"] * 3 + ["u32"] * 3 + ["u64"] * 3
    assert ".target sm_90" in code.decode()
    assert [integers[i].expr.at(CALL) for i in range(3)] == [3, 1000, 4100]
    assert {integers[i].dtype for i in range(3)} == {trt.PluginArgDataType.INT32}
    threads = re.search(r"\.reqntid (\d+)", code.decode())
    assert threads is not None
    assert grid.block_x.expr.at(CALL) == int(threads[1])
    assert (grid.grid_y.expr.at(CALL), grid.grid_z.expr.at(CALL)) == (1, 3)
    rows = 1000 / grid.grid_x.expr.at(CALL)
    assert rows <= 128  # the largest tile
    # As many programs as the rows need, and no more, whatever a call's size.
    assert grid.grid_x.expr.at(CALL | {"queries": 128 * 7}) % 7 == 0
    assert grid.shared_mem.expr.at(CALL) <= 48 << 10


def test_tensorrt_is_refused_a_free_number_of_colours(trt: Any) -> None:
    plugin, types_, _ = made(trt, colours="references")
    with pytest.raises(ExportError, match="fixed number of channels of the colours"):
        launched(trt, plugin, types_)


def test_a_copy_of_the_plugin_has_its_kernel(trt: Any) -> None:
    """TensorRT clones a plugin before it asks."""
    plugin, types_, _ = made(trt)
    copy = plugin.clone()
    assert launched(trt, copy, types_)[2] == launched(trt, plugin, types_)[2]


def test_tensorrts_checks_are_in_force(trt: Any) -> None:
    """Annotations as text, which a future import would make of them, are what they refuse."""
    plugin = importlib.import_module(PLUGIN)
    text = types.FunctionType(plugin.describe.__code__, plugin.describe.__globals__)
    text.__annotations__ = dict.fromkeys(plugin.describe.__annotations__, "TensorDesc")
    with pytest.raises((TypeError, ValueError)):  # depending on the version
        trt.plugin.register("pikfix::other")(text)
    with pytest.raises(ValueError, match=r"already has a defini?tion"):
        trt.plugin.register(ENGINE_WARP_NAME)(plugin.describe)
