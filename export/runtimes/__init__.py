"""The runtimes that sub-nets can be exported for, one module each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pikfix.export.calibration import RangesByStep
from pikfix.export.configs import ServingSettings
from pikfix.export.errors import ExportError
from pikfix.export.profiles import Capacity
from pikfix.export.runtimes.base import Choice, Runtime, StepInputs, given_alone
from pikfix.export.runtimes.engines import PRECISIONS, EngineOptions
from pikfix.inference.quantized import vnni_supported
from pikfix.kernels import cpu


@dataclass(frozen=True)
class Request:
    """Everything that a runtime may want to know before it exports.

    settings: how the models are scheduled.
    engines: how TensorRT engines are built.
    warp_plugin: run the correlation warp's kernel inside the engine of `similarity`.
    report: called with lines of progress.
    native: whether the server has NVIDIA's own backends.
    ranges: gives the activation ranges that int8 needs, by sub-net.
    capacity: gives the largest shapes that engines are built for.
    inputs: gives what a step gets, of what its system draws.
    """

    choice: Choice
    settings: ServingSettings
    engines: EngineOptions = field(default_factory=EngineOptions)
    warp_plugin: bool = False
    report: Callable[[str], None] = lambda line: None
    native: bool = False
    ranges: Callable[[], RangesByStep] = dict
    capacity: Callable[[], Capacity] = Capacity
    inputs: StepInputs = given_alone


Factory = Callable[[Request], Runtime]


def _onnxruntime(request: Request) -> Runtime:
    from pikfix.export.runtimes.onnxruntime import OnnxRuntime

    return OnnxRuntime(request.settings, request.choice.device)


def _pytorch(request: Request) -> Runtime:
    from pikfix.export.runtimes.pytorch import PyTorch

    if request.native:
        raise ExportError(
            "the weights of --runtime pytorch on a CPU are for the embedded server: "
            "leave out --target, or use --runtime onnxruntime"
        )
    return PyTorch(
        request.settings,
        request.choice.precision,
        device=request.choice.device,
        report=request.report,
        ranges=request.ranges,
        inputs=request.inputs,
    )


def _pytorch_on_gpu(request: Request) -> Runtime:
    """Packages for the container's backend, weights for the embedded server's."""
    if not request.native:
        return _pytorch(request)
    from pikfix.export.runtimes.aotinductor import AOTInductor

    return AOTInductor(request.choice.precision, native=request.native)


def _tensorrt(request: Request) -> Runtime:
    from pikfix.export.runtimes.tensorrt import TensorRTRuntime

    return TensorRTRuntime(
        request.settings,
        request.choice.precision,
        options=request.engines,
        warp_plugin=request.warp_plugin,
        capacity=request.capacity,
        report=request.report,
    )


_FACTORIES: dict[Choice, Factory] = {
    Choice("onnxruntime", "cpu", "fp32"): _onnxruntime,
    Choice("onnxruntime", "cuda", "fp32"): _onnxruntime,
    Choice("pytorch", "cpu", "fp32"): _pytorch,
    Choice("pytorch", "cpu", "bf16"): _pytorch,
    Choice("pytorch", "cpu", "int8"): _pytorch,
    **{Choice("pytorch", "cuda", precision): _pytorch_on_gpu for precision in PRECISIONS},
    **{Choice("tensorrt", "cuda", precision): _tensorrt for precision in PRECISIONS},
}
"""Imported when chosen: TensorRT is a gigabyte that a CPU has no use for."""


def runtime_of(request: Request) -> Runtime:
    """The runtime for a choice.

    Raises:
        ExportError: there is none, or what it needs is not installed.
    """
    if request.choice not in _FACTORIES:
        known = "; ".join(f"{c.runtime} {c.device} {c.precision}" for c in _FACTORIES)
        raise ExportError(f"no export for {request.choice}; this version has: {known}")
    return _FACTORIES[request.choice](request)


def candidates(
    settings: ServingSettings,
    ranges: Callable[[], RangesByStep],
    inputs: StepInputs = given_alone,
) -> dict[Choice, Runtime]:
    """All runtimes for this CPU, for the choice that is measured.

    Precisions that it emulates are left out: to measure one takes longer than all the others.
    """
    good = cpu.good_precisions()
    return {
        choice: runtime_of(Request(choice, settings, ranges=ranges, inputs=inputs))
        for choice in _FACTORIES
        if choice.device == "cpu"
        and choice.precision in good
        and (choice.precision != "int8" or vnni_supported())
    }


__all__ = ["Choice", "EngineOptions", "Request", "Runtime", "candidates", "runtime_of"]
