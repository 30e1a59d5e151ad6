"""TensorRT's C++ classes as far as its own Python sources for plugins use them.

Those sources are in the wheel `tensorrt-cu13-bindings`, whose C++ half wants libraries of two
gigabytes. Here they run without it: sizes are expressions until a test gives them numbers, and the
registry keeps what is registered.
"""

from __future__ import annotations

import enum
import importlib.util
import operator
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Sizes = Mapping[str, int]

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "SUM": operator.add,
    "PROD": operator.mul,
    "MAX": max,
    "MIN": min,
    "SUB": operator.sub,
    "EQUAL": operator.eq,
    "LESS": operator.lt,
    "FLOOR_DIV": operator.floordiv,
    "CEIL_DIV": lambda a, b: -(-a // b),
}


def sources() -> Path | None:
    """The folder of `tensorrt_bindings`, or None where its wheel is not installed."""
    found = importlib.util.find_spec("tensorrt_bindings")
    folders = map(Path, (found.submodule_search_locations or ()) if found else ())
    return next((folder for folder in folders if (folder / "plugin" / "_lib.py").is_file()), None)


class Expression:
    """A size: a constant, or what to compute from the sizes of a call."""

    def __init__(self, value: int | Callable[[Sizes], int]) -> None:
        self._value = value

    def is_constant(self) -> bool:
        return isinstance(self._value, int)

    def get_constant_value(self) -> int:
        assert isinstance(self._value, int)
        return self._value

    def at(self, sizes: Sizes) -> int:
        """Its value in a call."""
        return self._value if isinstance(self._value, int) else self._value(sizes)


def size(name: str) -> Expression:
    """A size that calls differ in."""
    return Expression(lambda sizes: sizes[name])


class ExpressionBuilder:
    def constant(self, value: int) -> Expression:
        return Expression(value)

    def operation(self, kind: enum.Enum, a: Expression, b: Expression) -> Expression:
        compute = _OPERATIONS[kind.name]
        if a.is_constant() and b.is_constant():
            return Expression(compute(a.get_constant_value(), b.get_constant_value()))
        return Expression(lambda sizes: compute(a.at(sizes), b.at(sizes)))


@dataclass
class PluginTensorDesc:
    dims: Sequence[int] = ()
    type: Any = None
    format: Any = None
    scale: float = 1.0


@dataclass
class DynamicPluginTensorDesc:
    desc: PluginTensorDesc = field(default_factory=PluginTensorDesc)


class PluginField:
    def __init__(self, name: str, data: Any, type: Any) -> None:
        self.name, self.data, self.type = name, data, type


class Registry:
    """Creators by name, version and namespace, as the C++ one asks the creator itself for them."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> None:
        assert creator.plugin_namespace == namespace
        self.creators[creator.name, creator.plugin_version, namespace] = creator

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators[name, version, namespace]


class LaunchedIntegers(dict[int, Any]):
    """The integers of a launch by their position, after the count that was set first."""

    nbSymExprs = 0

    def __setitem__(self, position: int, expression: Any) -> None:
        assert 0 <= position < self.nbSymExprs
        super().__setitem__(position, expression)


class Logger:
    WARNING = 2

    def log(self, severity: int, message: str) -> None:
        """What plugins log, that they are experimental, is nobody's concern here."""


def _interface(name: str) -> type:
    """One of the C++ classes that Python ones derive from."""
    return type(name, (), {})


def tensorrt(folder: Path) -> types.ModuleType:
    """A module `tensorrt` whose submodule `plugin` is found in the sources in `folder`."""
    module = types.ModuleType("tensorrt")
    module.__path__ = [str(folder)]
    registry = Registry()
    enums = {
        "DataType": "FLOAT HALF BF16 INT8 INT32 INT64 BOOL UINT8 FP8 INT4 FP4",
        "DimensionOperation": " ".join(_OPERATIONS),
        "PluginArgDataType": "INT8 INT16 INT32",
        "PluginArgType": "INT",
        "PluginFieldType": "UNKNOWN CHAR INT8 INT16 INT32 INT64 FLOAT16 FLOAT32 FLOAT64",
        "QuickPluginCreationRequest": "PREFER_JIT PREFER_AOT STRICT_JIT STRICT_AOT",
        "TensorFormat": "LINEAR",
        "TensorRTPhase": "BUILD RUNTIME",
    }
    interfaces = (
        "IPluginCreatorV3Quick IPluginV3 IPluginV3QuickAOTBuild IPluginV3QuickBuild "
        "IPluginV3QuickCore IPluginV3QuickRuntime ISymExpr ITensor"
    )
    kinds = {name: enum.Enum(name, members) for name, members in enums.items()}
    values = {
        **kinds,
        **{name: _interface(name) for name in interfaces.split()},
        "float16": kinds["DataType"]["HALF"],
        "bfloat16": kinds["DataType"]["BF16"],
        "float32": kinds["DataType"]["FLOAT"],
        "Logger": Logger,
        "Dims": type("Dims", (tuple,), {"MAX_DIMS": 8}),
        "DimsExprs": lambda length: [None] * length,
        "IDimensionExpr": Expression,
        "IExprBuilder": ExpressionBuilder,
        "PluginTensorDesc": PluginTensorDesc,
        "DynamicPluginTensorDesc": DynamicPluginTensorDesc,
        "PluginField": PluginField,
        "PluginFieldCollection": list,
        "get_plugin_registry": lambda: registry,
    }
    module.__dict__.update(values)
    return module
