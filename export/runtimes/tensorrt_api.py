"""All calls into `tensorrt`, which this module alone imports.

Versions 10 and 11: every network is strongly typed, so that its types are those of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorrt as trt  # type: ignore[import-not-found,unused-ignore]
import torch

from pikfix.export.errors import ExportError
from pikfix.export.parity import Arrays
from pikfix.export.profiles import Profile
from pikfix.export.runtimes.engines import EngineOptions
from pikfix.photos import write_atomically

Report = Callable[[str], None]


def version() -> str:
    """Of TensorRT."""
    return str(trt.__version__)


class Progress(trt.IProgressMonitor):  # type: ignore[misc,unused-ignore]
    """Tells the builder's outermost phases, with their steps, as lines."""

    def __init__(self, name: str, report: Report) -> None:
        trt.IProgressMonitor.__init__(self)
        self._name = name
        self._report = report
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        if not parent_phase:
            self._steps[phase_name] = num_steps
            self._report(f"{self._name}: {phase_name}, {num_steps} steps")

    def step_complete(self, phase_name: str, step: int) -> bool:
        if phase_name in self._steps:
            self._report(f"{self._name}: {phase_name} {step + 1}/{self._steps[phase_name]}")
        return True  # False would cancel the build

    def phase_finish(self, phase_name: str) -> None:
        self._steps.pop(phase_name, None)


def build_from_onnx(
    onnx_file: Path,
    profiles: Sequence[Profile],
    options: EngineOptions,
    *,
    name: str,
    report: Report,
) -> bytes:
    """Build an engine from an ONNX file.

    Args:
        onnx_file: its types become the engine's.
        profiles: each with a range for every input.
        options: how to build.
        name: of the sub-net, for messages.
        report: called with lines of progress.

    Returns:
        The serialized engine.

    Raises:
        ExportError: TensorRT refuses the file, a shape, or finds no implementation.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # Accepted and without effect on 11, where no other kind of network is left.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    # Its stubs call a data type `bool` and mean that one here and below.
    if not parser.parse_from_file(str(onnx_file)):
        reasons = [  # type: ignore[unreachable,unused-ignore]
            parser.get_error(i).desc() for i in range(parser.num_errors)
        ]
        raise ExportError(
            f"{name}: TensorRT {version()} cannot parse the ONNX file "
            f"({'; '.join(reasons[:3])}): use TensorRT 10.14 or newer"
        )
    config = builder.create_builder_config()
    # Islands of float32 are there for their precision.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    config.builder_optimization_level = options.optimization_level
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    config.progress_monitor = Progress(name, report)
    for profile in profiles:
        made = builder.create_optimization_profile()
        for tensor, ranges in profile.ranges.items():
            made.set_shape(
                tensor,
                trt.Dims(list(ranges.smallest)),
                trt.Dims(list(ranges.common)),
                trt.Dims(list(ranges.largest)),
            )
        if config.add_optimization_profile(made) < 0:
            raise ExportError(f"{name}: TensorRT refuses the profile {profile}")
    _attach_timing_cache(config, options.timing_cache)
    engine: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if engine is None:  # which its types do not tell
        raise ExportError(  # type: ignore[unreachable,unused-ignore]
            f"{name}: TensorRT {version()} built no engine (its messages are above); "
            "a smaller optimization level or another precision may help"
        )
    _keep_timing_cache(config, options.timing_cache)
    return bytes(engine)


def _attach_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    if path is None:
        return
    stored = path.read_bytes() if path.is_file() else b""
    # A cache of another GPU or version is no error: measurements of it are not used.
    if not config.set_timing_cache(config.create_timing_cache(stored), ignore_mismatch=False):
        config.set_timing_cache(  # type: ignore[unreachable,unused-ignore]
            config.create_timing_cache(b""), ignore_mismatch=False
        )


def _keep_timing_cache(config: trt.IBuilderConfig, path: Path | None) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, bytes(config.get_timing_cache().serialize()))


def _sizes(dims: trt.Dims) -> tuple[int, ...]:
    return tuple(int(dims[axis]) for axis in range(len(dims)))


class EngineRunner:
    """Runs an engine on the GPU as Triton's backend does, choosing the profile by the shapes.

    Args:
        plan: the serialized engine.
        outputs: names for its outputs, in their order.

    Raises:
        ExportError: the engine cannot be loaded, or has other outputs.
    """

    def __init__(self, plan: Path, outputs: Sequence[str]) -> None:
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        # A version-compatible engine brings its own runtime; it was built here just now.
        self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise ExportError(f"TensorRT {version()} cannot load {plan.name} again")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if modes[name] == trt.TensorIOMode.OUTPUT]
        if len(self._outputs) != len(outputs):
            raise ExportError(f"the engine has outputs {self._outputs}, expected {list(outputs)}")
        in_order = set(outputs) != set(self._outputs)
        self._names = (
            dict(zip(self._outputs, outputs, strict=True))
            if in_order
            else {name: name for name in outputs}
        )
        self._context = self._engine.create_execution_context()

    def __call__(self, inputs: Arrays) -> Arrays:
        """Named arrays in, named arrays out; a batch over the engine's in parts."""
        size = next(iter(inputs.values())).shape[0]
        most = _sizes(self._engine.get_tensor_profile_shape(self._inputs[0], 0)[2])[0]
        parts = [
            self._run({name: value[start : start + most] for name, value in inputs.items()})
            for start in range(0, size, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, inputs: Arrays) -> Arrays:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            given = {n: torch.from_numpy(inputs[n]).cuda().contiguous() for n in self._inputs}
            profile = self._profile({name: tuple(v.shape) for name, v in given.items()})
            self._context.set_optimization_profile_async(profile, stream.cuda_stream)
            for name, value in given.items():
                self._context.set_input_shape(name, tuple(value.shape))
                self._context.set_tensor_address(name, value.data_ptr())
            results = {}
            for name in self._outputs:
                shape = _sizes(self._context.get_tensor_shape(name))
                # Poisoned: an engine that leaves a value out must not pass for what was there.
                results[name] = torch.full(shape, torch.nan, device="cuda")
                self._context.set_tensor_address(name, results[name].data_ptr())
            if not self._context.execute_async_v3(stream.cuda_stream):
                raise ExportError("TensorRT could not run the engine (its messages are above)")
        stream.synchronize()
        return {
            self._names[name]: value.cpu().numpy().astype(np.float32)
            for name, value in results.items()
        }

    def _profile(self, shapes: dict[str, tuple[int, ...]]) -> int:
        for index in range(self._engine.num_optimization_profiles):
            limits = {
                name: self._engine.get_tensor_profile_shape(name, index) for name in self._inputs
            }
            if all(
                low <= size <= high
                for name, shape in shapes.items()
                for low, size, high in zip(
                    _sizes(limits[name][0]), shape, _sizes(limits[name][2]), strict=True
                )
            ):
                return index
        raise ExportError(f"no optimization profile holds the shapes {shapes}")
