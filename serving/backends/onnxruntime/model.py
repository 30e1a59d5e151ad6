"""ONNX Runtime as a python-based Triton backend: `backend: "onnxruntime"` in a config.pbtxt.

The server embedded in nvidia-pytriton carries the python backend alone. With this file in its
backend directory it serves the repository that the NGC container serves with its native
onnxruntime backend: same model files, same configs, same parameter names.

Each model instance is one process with one session. The file is copied into the server's backend
directory and runs there, so what it shares with the other backends it imports from pikfix, which
the embedded server's Python always has.

Parameters in config.pbtxt, all optional. As in the native backend: `intra_op_thread_count`
(default: cores / instances, so that instances share the machine instead of fighting for it),
`inter_op_thread_count`, `execution_mode`, `enable_mem_arena` (default 0, unlike there),
`enable_mem_pattern`, and `optimization.graph.level`. Of this backend alone: `tile_pixels`,
`tile_halo` and `tile_align` (see `Tiling`), and `side_multiple` (height and width of every image
tensor must be a multiple of it), and `nice` (see `lower_priority`).

Errors have the form `[model] code: message`, code one of bad_tensor, deadline_exceeded, internal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import triton_python_backend_utils as pb_utils

from pikfix.serving.network_step import (
    Array,
    NetworkStep,
    lower_priority,
    parameter,
    return_free_memory,
    run_tiled,
    threads_per_instance,
    tiling_of,
)

# Inputs of more elements than this end with the session's and malloc's free memory handed back:
# one large photo must not decide what the process holds for the rest of its life.
SHRINK_ELEMENTS = 1_000_000


def session_options(config: dict[str, Any]) -> ort.SessionOptions:
    """Session options from the config, by the native backend's parameter names."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads_per_instance(config)
    options.inter_op_num_threads = parameter(config, "inter_op_thread_count", 0)
    if parameter(config, "execution_mode", 0) == 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    # The arena keeps the power of two above the largest photo's need for good; malloc returns it,
    # at the same speed for operators as heavy as convolutions.
    options.enable_cpu_mem_arena = parameter(config, "enable_mem_arena", 0) == 1
    options.enable_mem_pattern = parameter(config, "enable_mem_pattern", 1) == 1
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = {
        -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    }.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    # Several sessions share the cores; a pool that spins between operators takes them from
    # the step that has work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A softmax at a low temperature is full of subnormal weights, ten times slower to multiply.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options


def providers(kind: str, device_id: int) -> list[Any]:
    """Execution providers of an instance; the python backend leaves the choice to the model.

    Triton turns an instance group without a kind into a GPU one wherever it sees a GPU, so a
    CPU build of onnxruntime there is the ordinary case and runs on the CPU.
    """
    if kind != "GPU" or "CUDAExecutionProvider" not in ort.get_available_providers():
        return ["CPUExecutionProvider"]
    return [("CUDAExecutionProvider", {"device_id": device_id}), "CPUExecutionProvider"]


class Network:
    """One ONNX model with its sessions and its tiling; knows arrays, not requests."""

    def __init__(self, config: dict[str, Any], version_dir: Path, kind: str, device_id: int):
        self.options = session_options(config)
        path = version_dir / (config.get("default_model_filename") or "model.onnx")
        self._providers = providers(kind, device_id)
        if not path.is_file():
            raise ValueError(f"{path} is missing; run `pikfix export` again")
        self._session = ort.InferenceSession(str(path), self.options, providers=self._providers)
        self.on_gpu = len(self._providers) > 1
        self._arena = f"gpu:{device_id}" if self.on_gpu else "cpu:0"
        self._uses_arena = self.options.enable_cpu_mem_arena or self.on_gpu
        self.inputs = [node.name for node in self._session.get_inputs()]
        self.outputs = [node.name for node in self._session.get_outputs()]
        self.tiling = tiling_of(config)
        if self.tiling is not None and len(self.outputs) > 1:
            # Of a version that set the tone in the same network, which no tile can tell.
            raise ValueError(f"{path} has several outputs in tiles; run `pikfix export` again")

    def run(
        self,
        inputs: dict[str, Array],
        outputs: list[str],
        before_tile: Callable[[], None] = lambda: None,
    ) -> dict[str, Array]:
        """Outputs by name. Raises StepError for a request at fault."""
        large = sum(array.size for array in inputs.values()) > SHRINK_ELEMENTS
        options = ort.RunOptions()
        if large and self._uses_arena:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", self._arena)
        try:
            image = inputs[self.inputs[0]]
            if self.tiling is not None and image.size > self.tiling.pixels * image.shape[1]:
                return self._run_in_tiles(image, options, before_tile)
            return dict(zip(outputs, self._session.run(outputs, inputs, options), strict=True))
        finally:
            if large:
                return_free_memory()

    def _run_in_tiles(
        self,
        image: Array,
        options: ort.RunOptions,
        before_tile: Callable[[], None],
    ) -> dict[str, Array]:
        assert self.tiling is not None

        def run(tile: Array) -> Array:
            given = {self.inputs[0]: tile}
            done: Array = self._session.run([self.outputs[0]], given, options)[0]
            return done

        return {self.outputs[0]: run_tiled(run, image, self.tiling, before_tile)}


class TritonPythonModel(NetworkStep):
    """One instance of one model, as Triton's python backend drives it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model of the instance's version directory."""
        config = json.loads(args["model_config"])
        lower_priority(config)
        network = Network(
            config,
            Path(args["model_repository"]) / args["model_version"],
            args["model_instance_kind"],
            int(args["model_instance_device_id"]),
        )
        self.set_up(args, config, network)
        if args["model_instance_kind"] == "GPU" and not network.on_gpu:
            pb_utils.Logger.log_warn(
                f"{args['model_instance_name']}: this onnxruntime has no GPU support; running on "
                "the CPU (install onnxruntime-gpu for the GPU)"
            )
        pb_utils.Logger.log_info(
            f"{args['model_instance_name']}: onnxruntime {ort.__version__}, "
            f"{network.options.intra_op_num_threads} threads, tiling {network.tiling}"
        )
