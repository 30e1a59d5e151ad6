"""PyTorch as a python-based Triton backend: `backend: "pytorch"` in a config.pbtxt.

For the server embedded in nvidia-pytriton, which carries the python backend alone. The version
directory holds one sub-net's weights in safetensors, as `pikfix export --runtime pytorch` writes
them; the arithmetic is the inference form of `pikfix.networks.inference`, in the dtype of the
weights. The server's Python needs torch and pikfix.

Parameters in config.pbtxt, all optional: `intra_op_thread_count` (default: cores / instances),
`tile_pixels`, `tile_halo` and `tile_align` (see `pikfix.serving.network_step.Tiling`), and
`side_multiple` (height and width of every image tensor must be a multiple of it), and `nice` (see
`pikfix.serving.network_step.give_way`).

Errors have the form `[model] code: message`, code one of bad_tensor, deadline_exceeded, internal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before libgomp is loaded: the steps of one server share the cores, and threads that spin while
# they wait take them from the step that has work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import triton_python_backend_utils as pb_utils

from pikfix.networks.inference import keep_free_memory, load_step
from pikfix.serving.network_step import (
    Array,
    NetworkStep,
    give_way,
    return_free_memory,
    run_tiled,
    threads_per_instance,
    tiling_of,
)

# Inputs of more elements than this end with malloc's free memory handed back: one large photo
# must not decide what the process holds for the rest of its life.
SHRINK_ELEMENTS = 1_000_000


class Network:
    """One sub-net with its tiling; knows arrays, not requests."""

    def __init__(self, config: dict[str, Any], version_dir: Path, name: str):
        path = version_dir / (config.get("default_model_filename") or "model.safetensors")
        if not path.is_file():
            raise ValueError(f"{path} is missing; run `pikfix export` again")
        self.step = load_step(path)
        if self.step.name != name:
            raise ValueError(
                f"{path} holds {self.step.name}, not {name}; run `pikfix export` again"
            )
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        self.tiling = tiling_of(config)

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
                whole = run_tiled(self._restore_tile, image, self.tiling, before_tile)
                # working_l depends on the whole picture, not on one tile.
                working = self.step.working(torch.from_numpy(whole)).numpy()
                results = {"restored_l": whole, "working_l": working}
            else:
                tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
                results = {name: value.numpy() for name, value in self.step(tensors).items()}
            return {name: results[name] for name in outputs}
        finally:
            if sum(array.size for array in inputs.values()) > SHRINK_ELEMENTS:
                return_free_memory()

    def _restore_tile(self, tile: Array) -> Array:
        restored: Array = self.step.restored(torch.from_numpy(tile)).numpy()
        return restored


class TritonPythonModel(NetworkStep):
    """One instance of one model, as Triton's python backend drives it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the weights of the instance's version directory."""
        config = json.loads(args["model_config"])
        give_way(config)
        torch.set_num_threads(threads_per_instance(config))
        # A softmax at a low temperature is full of subnormal weights, ten times slower to multiply.
        torch.set_flush_denormal(True)
        keep_free_memory()
        version_dir = Path(args["model_repository"]) / args["model_version"]
        network = Network(config, version_dir, args["model_name"])
        self.set_up(args, config, network)
        pb_utils.Logger.log_info(
            f"{args['model_instance_name']}: torch {torch.__version__}, {network.step.precision}, "
            f"{torch.get_num_threads()} threads, tiling {network.tiling}"
        )
