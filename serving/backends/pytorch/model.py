"""PyTorch as a python-based Triton backend: `backend: "pytorch"` in a config.pbtxt.

For the server embedded in nvidia-pytriton, which carries the python backend alone. The version
directory holds one sub-net's weights in safetensors, as `pikfix export --runtime pytorch` writes
them; the arithmetic is the inference form of `pikfix.inference`, in the dtype of the
weights. The server's Python needs torch and pikfix.

An instance of KIND_GPU computes on the GPU that the server gives it, in CUDA graphs. One of
KIND_CPU computes on the host, and in the same code as on a GPU where the config has `graphs`.

Parameters in config.pbtxt, all optional: `intra_op_thread_count` (default: what
`pikfix.serving.cores` gives at the moment), `tile_pixels`, `tile_halo` and `tile_align` (see
`pikfix.serving.network_step.Tiling`), `side_multiple` (height and width of every image tensor must
be a multiple of it), and `nice` (see `pikfix.serving.network_step.lower_priority`); on a GPU
`graphs` and `graph_elements` (see `pikfix.serving.graphs.GraphCache`).

Errors have the form `[model] code: message`, code one of bad_tensor, deadline_exceeded,
out_of_memory, internal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from pikfix.inference import keep_free_memory, load_step
from pikfix.serving.cores import SharedCores
from pikfix.serving.device_network import DeviceNetwork, DeviceTensors, device_of
from pikfix.serving.network_step import (
    HOST,
    Array,
    NetworkStep,
    available_cores,
    lower_priority,
    parameter,
    return_free_memory,
    run_tiled,
    tiling_of,
)

# Inputs of more elements than this end with malloc's free memory handed back: one large photo
# must not decide what the process holds for the rest of its life.
SHRINK_ELEMENTS = 1_000_000

Threads = Callable[[], AbstractContextManager[int]]
"""Asked before each run for the number of threads, and told when it ends."""


def threads_of(config: dict[str, Any], instance: str) -> Threads:
    """As many as the config says, else this instance's part of the cores."""
    fixed = parameter(config, "intra_op_thread_count", 0)
    if fixed:
        return lambda: nullcontext(fixed)
    # The server's own copy of this folder: other servers' instances are in theirs.
    return SharedCores(Path(__file__).parent / "computing", instance, available_cores()).part


def weights_file(config: dict[str, Any], version_dir: Path) -> Path:
    """The file of an instance's weights; ValueError if it is missing."""
    path = version_dir / (config.get("default_model_filename") or "model.safetensors")
    if not path.is_file():
        raise ValueError(f"{path} is missing; run `pikfix export` again")
    return path


class Network:
    """One sub-net with its tiling; knows arrays, not requests."""

    def __init__(self, config: dict[str, Any], path: Path, threads: Threads):
        self.step = load_step(path)
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        self.tiling = tiling_of(config)
        self.threads = threads

    def run(
        self,
        inputs: dict[str, Array],
        outputs: list[str],
        before_tile: Callable[[], None] = lambda: None,
    ) -> dict[str, Array]:
        """Outputs by name. Raises StepError for a request at fault."""
        try:
            image = inputs[self.inputs[0]]
            if self.tiling is not None and image.size > self.tiling.pixels * image.shape[1]:
                return {self.outputs[0]: run_tiled(self._tile, image, self.tiling, before_tile)}
            tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
            answers = self._compute(self.step, tensors)
            return {name: answers[name].numpy() for name in outputs}
        finally:
            if sum(array.size for array in inputs.values()) > SHRINK_ELEMENTS:
                return_free_memory()

    def _tile(self, tile: Array) -> Array:
        answers = self._compute(self.step, {self.inputs[0]: torch.from_numpy(tile)})
        done: Array = answers[self.outputs[0]].numpy()
        return done

    def _compute(self, function: Callable[..., Any], *given: Any) -> Any:
        with self.threads() as threads:
            torch.set_num_threads(threads)
            return function(*given)


class TritonPythonModel(NetworkStep):
    """One instance of one model, as Triton's python backend drives it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the weights of the instance's version directory."""
        config = json.loads(args["model_config"])
        lower_priority(config)
        # A softmax at a low temperature is full of subnormal weights, ten times slower to multiply.
        torch.set_flush_denormal(True)
        keep_free_memory()
        version_dir = Path(args["model_repository"]) / args["model_version"]
        path = weights_file(config, version_dir)
        device, tensors = device_of(args), HOST
        network: Network | DeviceNetwork
        if device.type == "cuda" or "graphs" in config.get("parameters", {}):
            tensors = DeviceTensors(device)
            if device.type == "cuda":
                torch.cuda.set_device(device)
                # The host only copies: threads for that would keep the cores of all other steps
                # busy with waiting for each other.
                torch.set_num_threads(1)
                # An error of 1e-3 is that of half precision, and float32 was asked for.
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            network = DeviceNetwork(config, path, tensors, pb_utils.Logger.log_warn)
        else:
            network = Network(config, path, threads_of(config, args["model_instance_name"]))
        name = network.step.name
        if name != args["model_name"]:
            raise ValueError(
                f"{path} holds {name}, not {args['model_name']}; run `pikfix export` again"
            )
        self.set_up(args, config, network, tensors)
        pb_utils.Logger.log_info(
            f"{args['model_instance_name']}: torch {torch.__version__}, {device}, "
            f"{network.step.precision}, tiling {network.tiling}"
        )
