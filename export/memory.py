"""How much memory a network's activations take, found without allocating any."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pikfix.export.runtimes.decompositions import DECOMPOSITIONS, WARP
from pikfix.systems.base import Model


class _Counted(TorchDispatchMode):
    """Adds up the storages that are alive; this project's operators are counted by their parts."""

    def __init__(self, whole: Sequence[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._whole = whole
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        run: Callable[..., Any] = func
        if func in DECOMPOSITIONS and func not in self._whole:
            with self:  # a mode is off while it works
                return DECOMPOSITIONS[func](*args, **(kwargs or {}))
        outputs = run(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def activation_bytes(
    module: nn.Module,
    model: Model,
    shapes: Mapping[str, Sequence[int]],
    *,
    fused_warp: bool = False,
) -> int:
    """The most that one run holds at a time, weights aside.

    An upper bound for a compiler that fuses layers: every intermediate result is written.

    Args:
        module: takes the inputs of `model` in order, on the CPU.
        model: names of the inputs.
        shapes: of the inputs, batch dimension included.
        fused_warp: whether the correlation warp is a kernel that writes its results alone.
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty(tuple(shapes[tensor.name])) for tensor in model.inputs]
        with _Counted([WARP] if fused_warp else []) as counted:
            module(*inputs)
    peak: int = counted.peak
    return peak
