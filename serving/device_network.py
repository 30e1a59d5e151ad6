"""A sub-net on a device of its own memory: what the pytorch backend runs on a GPU.

The same code runs with the device "cpu", where recordings are repeated calls: all but the graph
itself is tested there. Errors of memory have the code out_of_memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pikfix.inference import load_step
from pikfix.serving.graphs import GraphCache, Named, recorder
from pikfix.serving.network_step import (
    HostTensors,
    StepError,
    Tiling,
    parameter,
    run_tiled,
    tiling_of,
)

DEFAULT_GRAPHS = 16
DEFAULT_GRAPH_ELEMENTS = 8 << 20
"""Of all inputs: eight photos of 512 x 512 with their maps are 7 million."""

_NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.float16: np.float16}


def device_of(args: dict[str, str]) -> torch.device:
    """The device of a model instance: the GPU that the server gave it, else the CPU.

    Raises:
        ValueError: PyTorch cannot use that GPU; the message says why and what to do.
    """
    if args["model_instance_kind"] != "GPU":
        return torch.device("cpu")
    number = int(args["model_instance_device_id"])
    other = "or export again with --device cpu"
    if torch.version.cuda is None:
        raise ValueError(
            f"PyTorch {torch.__version__} is built without CUDA: install PyPI's torch, {other}"
        )
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
    except (RuntimeError, AssertionError) as error:
        first = str(error).split(". ")[0].splitlines()[0]
        raise ValueError(
            f"PyTorch sees no NVIDIA GPU ({first}): mend or renew its driver, {other}"
        ) from None
    if number >= count:
        raise ValueError(
            f"the server gave out GPU {number}, and PyTorch sees {count}: unset "
            f"CUDA_VISIBLE_DEVICES, {other}"
        )
    return torch.device("cuda", number)


class DeviceTensors(HostTensors):
    """Tensors on a device, which come from the host and go there through pinned memory.

    From step to step, too: the python backend hands tensors on a GPU on through the server's pool
    of CUDA memory, and where that is full, its copy fails, is logged, and the answer is what lay in
    the buffer before (python_backend, src/pb_memory.cc, CopyBuffer: pinned memory is no case of
    it).

    Args:
        device: where the network computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned = device.type == "cuda"

    def read(self, tensor: Any) -> Tensor:
        """The values on the device."""
        values = torch.from_numpy(tensor.as_numpy())
        if not self._pinned:
            return values
        # PyTorch keeps freed pinned memory, and until copies out of it have ended.
        staged = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return staged.copy_(values).to(self.device, non_blocking=True)

    def dtype(self, values: Tensor) -> np.dtype[Any]:
        return np.dtype(_NUMPY.get(values.dtype, np.void))

    def not_finite(self, values: Mapping[str, Tensor]) -> str | None:
        # One wait for the device, however many tensors there are.
        if not values:
            return None
        good = [torch.stack(value.aminmax()).isfinite().all() for value in values.values()]
        flags = torch.stack(good).tolist()
        return next((name for name, flag in zip(values, flags, strict=True) if not flag), None)

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts))

    def contiguous(self, values: Tensor) -> Tensor:
        return values.contiguous()

    def empty(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        return values.new_empty(shape)

    def deliver(self, results: Named) -> dict[str, Any]:
        """Outputs as `write` takes them, all of them computed when this returns."""
        found: dict[str, Any] = {}
        for name, value in results.items():
            if self._pinned:
                host = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
                found[name] = host.copy_(value, non_blocking=True).numpy()
            else:
                found[name] = value.numpy()
        if self._pinned:
            torch.cuda.current_stream(self.device).synchronize()
        return found


class DeviceNetwork:
    """One sub-net on a device, in graphs, with tiles for what is large.

    Args:
        config: of the model; its parameters `graphs` and `graph_elements` bound the graphs, see
            `GraphCache`.
        path: the weights, as `save_step` wrote them.
        tensors: of the device.
        report: called with a line about what could not be done as it should.

    Raises:
        ValueError: the file cannot be used.
    """

    def __init__(
        self,
        config: dict[str, Any],
        path: Path,
        tensors: DeviceTensors,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.step = load_step(path, tensors.device)
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        self.tensors = tensors
        self.tiling = tiling_of(config)
        self.graphs = GraphCache(
            recorder(tensors.device),
            parameter(config, "graphs", DEFAULT_GRAPHS),
            parameter(config, "graph_elements", DEFAULT_GRAPH_ELEMENTS),
            report,
        )
        self._report = report

    @torch.inference_mode()
    def run(
        self,
        inputs: Named,
        outputs: list[str],
        before_tile: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Outputs by name. Raises StepError for a request at fault."""
        tiling = self.tiling
        image = inputs[self.inputs[0]]
        while True:
            tiled = tiling is not None and image.numel() > tiling.pixels * image.shape[1]
            try:
                if tiled and tiling is not None:
                    answers = self._tiled(image, tiling, before_tile)
                else:
                    answers = self._in_parts(inputs)
                return self.tensors.deliver({name: answers[name] for name in outputs})
            except torch.OutOfMemoryError as error:
                problem = str(error).split(". ")[0]
            # Outside of the handler, whose traceback holds the tensors of the failed attempt.
            had_graphs = len(self.graphs) > 0
            self.graphs.clear()
            if self.tensors.device.type == "cuda":
                torch.cuda.empty_cache()
            if had_graphs:
                continue
            if image.shape[0] > 1:
                raise StepError("out_of_memory", problem)  # each of the batch is then run alone
            tiling = _smaller(tiling, image)
            if tiling is None:
                height, width = image.shape[2:]
                raise StepError(
                    "out_of_memory",
                    f"the GPU's memory does not suffice for {height} x {width}: send a smaller "
                    "picture or fewer references, or export with --precision fp16",
                )
            self._report(f"out of GPU memory: {tuple(image.shape)} in tiles of {tiling.pixels}")

    def _in_parts(self, inputs: Named) -> Named:
        """A batch as parts of 8, 4, 2 and 1: few sizes are recorded soon, and waste nothing."""
        parts = []
        start, batch = 0, len(inputs[self.inputs[0]])
        while start < batch:
            stop = start + (1 << ((batch - start).bit_length() - 1))
            given = {name: value[start:stop] for name, value in inputs.items()}
            parts.append(self.graphs.run(self.step.name, self.step, given))
            start = stop
        if len(parts) == 1:
            return parts[0]
        return {name: self.tensors.merge([part[name] for part in parts]) for name in parts[0]}

    def _tiled(self, image: Tensor, tiling: Tiling, before_tile: Callable[[], None]) -> Named:
        name, output = self.inputs[0], self.outputs[0]

        def run(tile: Tensor) -> Tensor:
            return self.graphs.run(self.step.name, self.step, {name: tile})[output]

        return {output: run_tiled(run, image, tiling, before_tile, self.tensors)}


def _smaller(tiling: Tiling | None, image: Tensor) -> Tiling | None:
    """Tiles of half the pixels; None where there are none."""
    if tiling is None:
        return None
    try:
        return dataclasses.replace(tiling, pixels=min(tiling.pixels, image[0, 0].numel()) // 2)
    except ValueError:  # not larger than its own margins
        return None
