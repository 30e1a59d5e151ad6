"""The runtimes that sub-nets can be exported for, one module each."""

from __future__ import annotations

from collections.abc import Callable

from pikfix.export.configs import ServingSettings
from pikfix.export.errors import ExportError
from pikfix.export.runtimes.base import Choice, Runtime

Factory = Callable[[ServingSettings], Runtime]


def _onnxruntime(settings: ServingSettings) -> Runtime:
    from pikfix.export.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime(settings)


_FACTORIES: dict[Choice, Factory] = {
    Choice("onnxruntime", "cpu", "fp32"): _onnxruntime,
    Choice("onnxruntime", "cuda", "fp32"): _onnxruntime,
}
"""Imported when chosen: TensorRT is a gigabyte that a CPU has no use for."""


def runtime_of(choice: Choice, settings: ServingSettings) -> Runtime:
    """The runtime for a choice.

    Raises:
        ExportError: there is none, or what it needs is not installed.
    """
    if choice not in _FACTORIES:
        known = "; ".join(f"{c.runtime} {c.device} {c.precision}" for c in _FACTORIES)
        raise ExportError(f"no export for {choice}; this version has: {known}")
    return _FACTORIES[choice](settings)


__all__ = ["Choice", "Runtime", "runtime_of"]
