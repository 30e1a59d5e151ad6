"""Sub-nets as TensorRT engines, for Triton's tensorrt backend.

An engine is built on the GPU that will run it. This module decides what is built; the calls into
TensorRT and torch-tensorrt are in modules of their own, imported when an engine is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.configs import ServingSettings, set_parameter
from pikfix.export.errors import ExportError
from pikfix.export.onnx import export_onnx
from pikfix.export.parity import Limits, Runner
from pikfix.export.precision import typed
from pikfix.export.profiles import Capacity, Profile, profile_of
from pikfix.export.runtimes.engines import INSTALL, EngineOptions
from pikfix.export.runtimes.programs import trace_by_name
from pikfix.export.runtimes.tensorrt_lint import refusals
from pikfix.photos import write_atomically
from pikfix.systems.base import Step

ENGINE_FILE = "model.plan"
ONNX_FILE = "model.onnx"

LIMITS = {
    "fp32": Limits(),
    "fp16": Limits(max_abs=None, min_psnr=50.0, max_worst_tile=0.01),
    "bf16": Limits(max_abs=None, min_psnr=40.0, max_worst_tile=0.03),
}
"""One of 255 grey values is 0.008 on [-1, 1]: no tile of fp16 is further off than that by much.
Rounded features let single places match elsewhere in the reference, so that a bound on single
values would say nothing."""


class TensorRTRuntime:
    """TensorRT engines in float32, or in half precision with islands of float32.

    Args:
        settings: how the models are scheduled; the profiles follow from it.
        precision: "fp32", "fp16" or "bf16".
        options: how engines are built.
        warp_plugin: run the correlation warp's own kernel inside the engine of `similarity`.
        capacity: gives the largest shapes.
        report: called with lines of progress.

    Raises:
        ExportError: TensorRT or a GPU is missing; the message says what to install and where.
    """

    gate_device = "cuda"

    def __init__(
        self,
        settings: ServingSettings,
        precision: str,
        *,
        options: EngineOptions | None = None,
        warp_plugin: bool = False,
        capacity: Callable[[], Capacity] = Capacity,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._settings = settings
        self._precision = precision
        self._options = options or EngineOptions()
        self._plugin = warp_plugin
        self._capacity = capacity
        self._report = report
        self.limits = LIMITS[precision]
        self._tensorrt = _load("tensorrt_api", "tensorrt")
        if not torch.cuda.is_available():
            raise ExportError(
                "no NVIDIA GPU is visible: TensorRT builds an engine on the GPU that will run it"
            )

    def export(self, module: nn.Module, model: Step, folder: Path) -> tuple[str, Runner]:
        """Write model.plan, and beside it the model.onnx that it was built from, if any."""
        self._report(f"{model.name}: {self._needs(model)}")
        plan = folder / ENGINE_FILE
        write_atomically(plan, self._build(module, model, folder))
        names = [tensor.name for tensor in model.outputs]
        runner: Runner = self._tensorrt.EngineRunner(plan, names)
        return ENGINE_FILE, runner

    def configure(self, model: Step, config: pb.ModelConfig) -> None:
        """Name the backend, the file, and the outputs as the engine has them."""
        config.backend = "tensorrt"
        config.default_model_filename = ENGINE_FILE
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
        # Read before a server starts, which would say it in a page of log.
        sign = ">=" if self._newer(model) else "=="
        set_parameter(config, "tensorrt", f"{sign}{self._tensorrt.version()}")
        if self._through_torch(model):
            for index, output in enumerate(config.output):
                output.name = f"output{index}"

    def versions(self) -> dict[str, str]:
        """Of TensorRT, and of what wrote the graphs."""
        versions = {"tensorrt": str(self._tensorrt.version()), "onnx": onnx.__version__}
        if self._plugin or self._options.builder == "torch":
            versions["torch-tensorrt"] = _version("torch-tensorrt")
        return versions

    def _profile(self, model: Step) -> Profile:
        largest = self._capacity().of(model)
        return profile_of(model, largest, reference_side=self._settings.reference_side)

    def _needs(self, model: Step) -> str:
        """What has to be in the container that serves the engine."""
        built = f"TensorRT {self._tensorrt.version()}"
        if self._newer(model):
            return (
                f"an engine for {built} or newer, with "
                "--backend-config=tensorrt,version-compatible=true"
            )
        return f"an engine for a container with exactly {built}"

    def _newer(self, model: Step) -> bool:
        """Whether newer versions of TensorRT load the engine, too."""
        return self._options.version_compatible and not self._warps(model)

    def _warps(self, model: Step) -> bool:
        return self._plugin and model.correlation

    def _through_torch(self, model: Step) -> bool:
        # The plugin is an operator of PyTorch's, not of ONNX.
        return self._options.builder == "torch" or self._warps(model)

    def _build(self, module: nn.Module, model: Step, folder: Path) -> bytes:
        """The engine of a sub-net, by whichever way its kind takes."""
        network = typed(module, self._precision, half_warp=self._warps(model))
        if not self._through_torch(model):
            export_onnx(network, model, folder / ONNX_FILE, runtime="tensorrt")
            if refused := refusals(folder / ONNX_FILE):
                raise ExportError(f"{model.name}: TensorRT takes no such graph: {refused[0]}")
            engine: bytes = self._tensorrt.build_from_onnx(
                folder / ONNX_FILE,
                [self._profile(model)],
                self._options,
                name=model.name,
                report=self._report,
            )
            return engine
        torch_tensorrt = _load("torch_tensorrt_api", "torch_tensorrt")
        options = self._options
        program = trace_by_name(network, model, keep_warp=self._warps(model), device="cuda")
        if self._warps(model):
            plugin = _load("tensorrt_plugin", "torch_tensorrt")
            program, options = plugin.prepare(program, options)
        self._report(f"{model.name}: building through torch-tensorrt")
        try:
            built: bytes = torch_tensorrt.build_from_program(program, self._profile(model), options)
        except RuntimeError as error:
            raise ExportError(
                f"{model.name}: torch-tensorrt built no engine ({_first_line(error)}): "
                "try the ONNX parser, --engine-builder onnx"
            ) from error
        return built


def _load(module: str, needs: str) -> Any:
    """Import one of the modules that need TensorRT."""
    try:
        # A package of stubs alone can be imported, and holds nothing.
        if getattr(importlib.import_module(needs), "__file__", None) is None:
            raise ImportError(needs)
        return importlib.import_module(f"pikfix.export.runtimes.{module}")
    except (ImportError, OSError) as error:
        raise ExportError(f"{INSTALL} ({_first_line(error)})") from error


def _version(package: str) -> str:
    return metadata.version(package)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
