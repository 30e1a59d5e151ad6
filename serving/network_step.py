"""What the python-based backends of the embedded server share: requests, batches, tiles, errors.

A backend makes its network and hands it to `NetworkStep`, which reads requests, merges those of
equal shapes, and answers each. Errors have the form `[model] code: message`, code one of
bad_tensor, deadline_exceeded, out_of_memory, internal.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from pikfix.protocol.deadline import lateness, read_deadline
from pikfix.protocol.errors import ErrorCode, error_text

Array = npt.NDArray[Any]

Values: TypeAlias = Any
"""An array in the host's memory or a tensor on a device: what `HostTensors` or its like makes."""


_CODES: dict[str, ErrorCode] = {
    "InvalidArgument": "bad_tensor",
    "OutOfMemoryError": "out_of_memory",
}
"""Of ONNX Runtime's and PyTorch's errors, neither of which every backend has, by their names."""


class StepError(Exception):
    """A request that cannot be answered; `code` is one of those that clients parse."""

    def __init__(self, code: ErrorCode, message: str):
        super().__init__(message)
        self.code = code


class HostTensors:
    """How a step reads requests, works on what it read, and writes responses: numpy arrays."""

    def read(self, tensor: Any) -> Values:
        """The values of a request's tensor."""
        return tensor.as_numpy()

    def write(self, name: str, values: Values) -> Any:
        """A response's tensor; the values may change once the response is sent, not before."""
        return pb_utils.Tensor(name, values)

    def dtype(self, values: Values) -> np.dtype[Any]:
        """Their type, as numpy names it."""
        return np.dtype(values.dtype)

    def not_finite(self, values: Mapping[str, Values]) -> str | None:
        """The name of the first of some values that holds NaN or infinity; None if none does."""
        for name, array in values.items():
            # Two reductions instead of isfinite: no temporary of the array's size.
            if not (np.isfinite(array.min()) and np.isfinite(array.max())):
                return name
        return None

    def merge(self, parts: Sequence[Values]) -> Values:
        """One batch of several."""
        return np.concatenate(parts)

    def contiguous(self, values: Values) -> Values:
        """The same in one piece of memory."""
        return np.ascontiguousarray(values)

    def empty(self, values: Values, shape: tuple[int, ...]) -> Values:
        """Room of another shape beside these values, of their type."""
        return np.empty(shape, values.dtype)


HOST = HostTensors()


@dataclass(frozen=True)
class Tiling:
    """Exact tiled execution of a model whose first output has the size of its first input.

    Each output place depends on inputs at most `halo` places away, so a tile that is computed
    with a margin of `halo` and cropped equals the same region of the whole. Tiles start at
    multiples of `align`, so that down- and upsampling inside the model meet the same grid; only
    at the picture's own right and bottom edge may a tile end off the grid, as the picture does.

    pixels: the largest tile, margin included, that is run at once.
    """

    pixels: int
    halo: int
    align: int = 32

    def __post_init__(self) -> None:
        if min(self.pixels, self.align) < 1 or self.halo < 0:
            raise ValueError("tile_pixels and tile_align must be positive, tile_halo not negative")
        smallest = self.align + 2 * self.margin
        if self.pixels < smallest**2:
            raise ValueError(
                f"tile_pixels is {self.pixels}; a halo of {self.halo} needs at least {smallest**2}"
            )

    @property
    def margin(self) -> int:
        """The halo, rounded up so that a tile's margin keeps the grid."""
        return -(-self.halo // self.align) * self.align

    def _core(self, length: int, count: int) -> int:
        return -(-length // (count * self.align)) * self.align

    def cores(self, height: int, width: int) -> tuple[int, int]:
        """Tile size without margin that computes the fewest places within the limit."""
        best: tuple[int, tuple[int, int]] | None = None
        for rows in range(1, -(-height // self.align) + 1):
            core_h = self._core(height, rows)
            tile_h = min(height, core_h + 2 * self.margin)
            # As few columns as fit: more of them only repeat more margin.
            widest = self.pixels // tile_h
            core_w = width
            if width > widest:
                core_w = (widest - 2 * self.margin) // self.align * self.align
                if core_w < self.align:
                    continue
            core_w = self._core(width, -(-width // core_w))
            tile_w = min(width, core_w + 2 * self.margin)
            cost = -(-height // core_h) * tile_h * -(-width // core_w) * tile_w
            if best is None or cost < best[0]:
                best = (cost, (core_h, core_w))
        return (self.align, self.align) if best is None else best[1]

    def plan(self, height: int, width: int) -> Iterator[tuple[slice, slice, slice, slice]]:
        """Yield (rows, columns) to keep and (rows, columns) to compute, for each tile."""
        core_h, core_w = self.cores(height, width)
        for top in range(0, height, core_h):
            for left in range(0, width, core_w):
                bottom, right = min(top + core_h, height), min(left + core_w, width)
                yield (
                    slice(top, bottom),
                    slice(left, right),
                    slice(max(0, top - self.margin), min(height, bottom + self.margin)),
                    slice(max(0, left - self.margin), min(width, right + self.margin)),
                )


def run_tiled(
    run: Callable[[Values], Values],
    image: Values,
    tiling: Tiling,
    before_tile: Callable[[], None] = lambda: None,
    tensors: HostTensors = HOST,
) -> Values:
    """Run `run` ([B, C, H, W] -> [B, D, H, W]) over tiles of `image`, one picture at a time."""
    height, width = image.shape[2:]
    result: Values | None = None
    for b in range(image.shape[0]):
        for rows, columns, tile_rows, tile_columns in tiling.plan(height, width):
            before_tile()
            tile = tensors.contiguous(image[b : b + 1, :, tile_rows, tile_columns])
            done = run(tile)
            if done.shape[2:] != tile.shape[2:]:
                raise StepError(
                    "internal",
                    f"the tiled output is {done.shape[2:]} for a tile of {tile.shape[2:]}; "
                    "only an output of the input's size can be tiled",
                )
            if result is None:
                result = tensors.empty(done, (image.shape[0], done.shape[1], height, width))
            top, left = rows.start - tile_rows.start, columns.start - tile_columns.start
            result[b, :, rows, columns] = done[
                0,
                :,
                top : top + rows.stop - rows.start,
                left : left + columns.stop - columns.start,
            ]
    if result is None:
        raise StepError("bad_tensor", "the batch is empty; send at least one picture")
    return result


def available_cores() -> int:
    """Cores this process may use: its affinity, bounded by the container's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 quota to read: the affinity stands
    return max(1, cores)


def parameter(config: dict[str, Any], name: str, default: int) -> int:
    """An integer of the config's `parameters`; ValueError names the parameter."""
    entry = config.get("parameters", {}).get(name)
    if entry is None:
        return default
    try:
        return int(entry["string_value"])
    except ValueError:
        raise ValueError(
            f"parameter {name} must be an integer, not {entry['string_value']!r}"
        ) from None


def threads_per_instance(config: dict[str, Any]) -> int:
    """Threads for one instance: `intra_op_thread_count`, by default its share of the cores."""
    # A group with GPUs has its count of instances on each of them.
    instances = sum(
        int(group.get("count", 1)) * max(1, len(group.get("gpus", [])))
        for group in config.get("instance_group", [])
    )
    threads = parameter(config, "intra_op_thread_count", 0)
    return threads or max(1, available_cores() // max(1, instances))


def lower_priority(config: dict[str, Any]) -> None:
    """Lower this process's priority by the config's `nice`, before it starts threads.

    Steps that come late in an ensemble go first on a busy CPU: what has been worked on is
    finished before more is begun, and requests wait, and are refused, where nothing is lost.
    """
    niceness = parameter(config, "nice", 0)
    if niceness:
        os.nice(niceness)


def tiling_of(config: dict[str, Any]) -> Tiling | None:
    """The tiling that the config's `tile_pixels`, `tile_halo` and `tile_align` describe."""
    pixels = parameter(config, "tile_pixels", 0)
    if not pixels:
        return None
    return Tiling(pixels, parameter(config, "tile_halo", 0), parameter(config, "tile_align", 32))


def return_free_memory() -> None:
    """Hand malloc's free pages back to the system (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Network(Protocol):
    """What a backend runs; knows arrays, not requests."""

    inputs: list[str]
    outputs: list[str]

    def run(
        self,
        inputs: dict[str, Values],
        outputs: list[str],
        before_tile: Callable[[], None] = lambda: None,
    ) -> dict[str, Values]:
        """Outputs by name. Raises StepError for a request at fault."""


@dataclass
class Item:
    """One request on its way: where its response goes, its arrays, its deadline in Unix ms."""

    index: int
    request: Any
    inputs: dict[str, Values]
    outputs: list[str]
    deadline_ms: int | None

    @property
    def batch(self) -> int:
        """Rows this request adds to a merged batch."""
        return int(next(iter(self.inputs.values())).shape[0])


SHRINK_SECONDS = 30.0
"""Between two returns of free memory: what is needed again has its pages zeroed first."""


class NetworkStep:
    """One instance of one model, as Triton's python backend drives it; backends subclass it."""

    def set_up(
        self,
        args: dict[str, str],
        config: dict[str, Any],
        network: Network,
        tensors: HostTensors = HOST,
    ) -> None:
        """Take the network; ValueError if it lacks an input or output of the config."""
        self._name = args["model_name"]
        self._tensors = tensors
        self._batched = int(config.get("max_batch_size", 0)) > 0
        self._inputs = {entry["name"]: entry for entry in config["input"]}
        self._outputs = [entry["name"] for entry in config["output"]]
        self._side_multiple = parameter(config, "side_multiple", 1)
        self._network = network
        self._shrunk = time.monotonic()
        for names, there, role in (
            (self._inputs, network.inputs, "input"),
            (self._outputs, network.outputs, "output"),
        ):
            unknown = sorted(set(names) - set(there))
            if unknown:
                raise ValueError(
                    f"the config's {role} {unknown} is not in the model; it has {there}"
                )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request, merging those of equal shapes into one run."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[Any, ...], list[Item]] = {}
        for index, request in enumerate(requests):
            try:
                item = self._read(index, request)
            except Exception as error:
                responses[index] = self._error(error)
                continue
            key: tuple[Any, ...] = tuple((n, a.shape[1:]) for n, a in item.inputs.items())
            groups.setdefault(key if self._batched else (index,), []).append(item)
        for group in groups.values():
            self._answer(group, responses)
        self._shrink()
        return responses

    def _shrink(self) -> None:
        """Now and then give back what malloc holds: else batches of many sizes scatter its heap."""
        now = time.monotonic()
        if now - self._shrunk > SHRINK_SECONDS:
            self._shrunk = now
            return_free_memory()

    def _read(self, index: int, request: Any) -> Item:
        try:
            deadline_ms = read_deadline(request.parameters())
        except TypeError as error:
            raise StepError("bad_options", str(error)) from error
        check_deadline(deadline_ms)
        inputs = {}
        for name, entry in self._inputs.items():
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                if entry.get("optional"):
                    continue
                raise StepError("bad_tensor", f"{name} is missing")
            inputs[name] = self._check(name, entry, self._tensors.read(tensor))
        floats = {n: v for n, v in inputs.items() if self._tensors.dtype(v).kind == "f"}
        bad = self._tensors.not_finite(floats)
        if bad is not None:
            raise StepError("bad_tensor", f"{bad} holds NaN or infinity; send finite values")
        wanted = request.requested_output_names()
        outputs = [name for name in self._outputs if name in wanted]
        return Item(index, request, inputs, outputs, deadline_ms)

    def _check(self, name: str, entry: dict[str, Any], array: Values) -> Values:
        """The array, if it is what the config promises the model; StepError otherwise."""
        dtype = np.dtype(pb_utils.triton_string_to_numpy(entry["data_type"]))
        given = self._tensors.dtype(array)
        if given != dtype:
            raise StepError("bad_tensor", f"{name} is {given}, not {dtype}")
        dims = [int(d) for d in entry["dims"]]
        dims = [-1, *dims] if self._batched else dims
        if array.ndim != len(dims) or any(
            d not in (-1, n) for d, n in zip(dims, array.shape, strict=True)
        ):
            raise StepError("bad_tensor", f"{name} has shape {list(array.shape)}, not {dims}")
        if 0 in array.shape:
            raise StepError("bad_tensor", f"{name} is empty (shape {list(array.shape)})")
        multiple = self._side_multiple
        if array.ndim == len(dims) >= 4 and any(n % multiple for n in array.shape[-2:]):
            raise StepError(
                "bad_tensor",
                f"{name} is {array.shape[-2]} x {array.shape[-1]}; "
                f"pad both sides to multiples of {multiple}",
            )
        return array

    def _answer(self, group: list[Item], responses: list[Any]) -> None:
        """Run a group in one go; if that fails, each alone, so that one cannot fail the others."""
        try:
            results = self._run(group)
        except Exception as error:
            if len(group) > 1:
                for item in group:
                    self._answer([item], responses)
                return
            responses[group[0].index] = self._error(error)
            return
        start = 0
        for item in group:
            stop = start + item.batch
            rows = slice(start, stop) if self._batched else slice(None)
            responses[item.index] = pb_utils.InferenceResponse(
                [self._tensors.write(name, results[name][rows]) for name in item.outputs]
            )
            start = stop

    def _run(self, group: list[Item]) -> dict[str, Values]:
        def before_tile() -> None:
            # A merged run goes on while anybody still waits for it.
            if all(item.request.is_cancelled() for item in group):
                raise StepError("deadline_exceeded", "the request was cancelled")
            if all(item.deadline_ms is not None for item in group):
                check_deadline(max(item.deadline_ms or 0 for item in group))

        before_tile()
        first = group[0].inputs
        inputs = {
            name: first[name]
            if len(group) == 1
            else self._tensors.merge([item.inputs[name] for item in group])
            for name in first
        }
        wanted = {name for item in group for name in item.outputs}
        return self._network.run(
            inputs, [name for name in self._outputs if name in wanted], before_tile
        )

    def _error(self, error: Exception) -> Any:
        if isinstance(error, StepError):
            code = error.code
        else:
            code = _CODES.get(type(error).__name__, "internal")
        text = " ".join(str(error).split()) or type(error).__name__
        status = {
            "bad_tensor": pb_utils.TritonError.INVALID_ARG,
            "bad_options": pb_utils.TritonError.INVALID_ARG,
            "deadline_exceeded": pb_utils.TritonError.CANCELLED,
        }.get(code, pb_utils.TritonError.INTERNAL)
        return pb_utils.InferenceResponse(
            error=pb_utils.TritonError(error_text(self._name, code, text), status)
        )


def check_deadline(deadline_ms: int | None) -> None:
    """Stop work that nobody waits for any more.

    Raises:
        StepError: the deadline, in milliseconds of Unix time, has passed.
    """
    if (late := lateness(deadline_ms)) is not None:
        raise StepError("deadline_exceeded", late)
