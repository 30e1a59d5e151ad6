"""Networks whose launches are recorded once per shape and replayed: CUDA graphs, bounded.

A network is hundreds of small kernels, and launching them one by one from Python takes longer than
they run. A graph replays them at once, on memory of its own: inputs are copied into it, and outputs
copied out of it, so that no later replay changes what somebody still reads.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

Named = dict[str, Tensor]
Function = Callable[[Named], Named]
Key = tuple[Any, ...]

_REMEMBERED = 1024
"""Shapes whose requests are counted; older ones are forgotten."""


class Recording(Protocol):
    """A function bound to memory: `replay` computes `outputs` from what is in `inputs`."""

    inputs: Named
    outputs: Named

    def replay(self) -> None:
        """Compute, on the current stream."""


Recorder = Callable[[Function, Mapping[str, Tensor]], Recording]


class CudaGraph:
    """A `Recording` as a CUDA graph; graphs of one pool share the memory of what is between."""

    def __init__(self, function: Function, inputs: Mapping[str, Tensor], pool: Any) -> None:
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        # Nothing may be compiled, chosen or allocated for the first time during the recording.
        with torch.cuda.stream(stream), _chosen_convolutions():
            for _ in range(2):
                function(self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self.outputs = function(self.inputs)

    def replay(self) -> None:
        """Launch the graph."""
        self._graph.replay()


@contextmanager
def _chosen_convolutions() -> Iterator[None]:
    """Let cuDNN time its convolutions for shapes that will be seen again."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class Repeated:
    """A `Recording` that calls the function again: the same memory, where there are no graphs."""

    def __init__(self, function: Function, inputs: Mapping[str, Tensor]) -> None:
        self._function = function
        self.inputs = {name: value.clone() for name, value in inputs.items()}
        self.outputs = {name: value.clone() for name, value in function(self.inputs).items()}

    def replay(self) -> None:
        """Compute anew, into the same outputs."""
        for name, value in self._function(self.inputs).items():
            self.outputs[name].copy_(value)


def recorder(device: torch.device) -> Recorder:
    """What records on a device."""
    if device.type != "cuda":
        return Repeated
    pool = SharedPool(torch.cuda.graph_pool_handle)

    def record(function: Function, inputs: Mapping[str, Tensor]) -> CudaGraph:
        graph = CudaGraph(function, inputs, pool.handle())
        pool.add(graph)
        return graph

    return record


class SharedPool:
    """The pool of the graphs that live: one whose last graph has gone cannot be used again.

    Args:
        make: a new pool's handle.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()
        self._handle: Any = None

    def handle(self) -> Any:
        """For the next graph."""
        if not self._graphs:
            self._handle = self._make()
        return self._handle

    def add(self, graph: Any) -> None:
        """Count a graph of this pool for as long as it lives."""
        self._graphs.add(graph)


class GraphCache:
    """Recordings by function and shapes; the least recently used one goes when there are too many.

    Args:
        record: makes a recording.
        limit: recordings that are held; 0 records nothing.
        largest: elements of all inputs together above which nothing is recorded: a graph holds the
            memory of its inputs and outputs for good, and large photos are rare in their shapes.
        report: called with a line where a function cannot be recorded.
    """

    def __init__(
        self,
        record: Recorder,
        limit: int,
        largest: int,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._record, self._limit, self._largest, self._report = record, limit, largest, report
        self._recordings: OrderedDict[Key, Recording] = OrderedDict()
        self._seen: OrderedDict[Key, int] = OrderedDict()
        self._refused: set[str] = set()

    def __len__(self) -> int:
        return len(self._recordings)

    def run(self, name: str, function: Function, inputs: Named) -> Named:
        """What `function` gives for `inputs`; recorded from the second time of its shapes on.

        Args:
            name: of the function.
            function: tensors to tensors, always the same operations for the same shapes.
            inputs: left as they are.

        Returns:
            Tensors of the caller's own.
        """
        key = (name, *((key, tuple(value.shape), value.dtype) for key, value in inputs.items()))
        recording = self._recordings.get(key)
        if recording is None:
            if not self._worth(name, key, inputs):
                return function(inputs)
            try:
                recording = self._record(function, inputs)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                # The next recording would fail as this one did; the function itself may work.
                self._refused.add(name)
                first = (str(error) or type(error).__name__).splitlines()[0]
                self._report(f"{name} runs without a graph: {first}")
                return function(inputs)
            self._recordings[key] = recording
            while len(self._recordings) > self._limit:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(key)
        for key_, value in inputs.items():
            recording.inputs[key_].copy_(value)
        recording.replay()
        return {key_: value.clone() for key_, value in recording.outputs.items()}

    def clear(self) -> None:
        """Give up all recordings with their memory; shapes have to come again to be recorded."""
        self._recordings.clear()
        self._seen.clear()

    def _worth(self, name: str, key: Key, inputs: Named) -> bool:
        elements = sum(value.numel() for value in inputs.values())
        if not self._limit or elements > self._largest or name in self._refused:
            return False
        self._seen[key] = self._seen.pop(key, 0) + 1
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return self._seen[key] > 1
