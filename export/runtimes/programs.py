"""Sub-nets as ATen programs, the form that torch-tensorrt converts."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from pikfix.export.onnx import example_inputs, free_dimensions
from pikfix.export.runtimes.decompositions import DECOMPOSITIONS, WARP
from pikfix.systems.base import Step

ENGINE_WARP_NAME = "pikfix::correlation_warp_engine"


@torch.library.custom_op(ENGINE_WARP_NAME, mutates_args=())
def engine_warp(
    query: Tensor, key: Tensor, values: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The correlation warp with the arguments that a plugin can have: tensors, then numbers."""
    outputs: tuple[Tensor, Tensor, Tensor] = WARP(query, key, values, temperature)
    return outputs


@engine_warp.register_fake
def _engine_warp_fake(
    query: Tensor, key: Tensor, values: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = query.new_empty(query.shape[:2], dtype=torch.float32)
    warped = values.new_empty(query.shape[0], query.shape[1], values.shape[2])
    return warped, statistics, torch.empty_like(statistics)


ENGINE_WARP: Any = torch.ops.pikfix.correlation_warp_engine.default


class ByName(nn.Module):
    """Has the inputs of a contract as its parameters: the engine's inputs get their names.

    A name of its own for each input, where the module takes them as `*args`.
    """

    def __init__(self, module: nn.Module, model: Step) -> None:
        super().__init__()
        self.module = module

        def forward(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
            outputs: Tensor | tuple[Tensor, ...] = self.module(*inputs)
            return outputs

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(tensor.name, kind) for tensor in model.inputs]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward


def trace_by_name(
    module: nn.Module, model: Step, *, keep_warp: bool, device: str
) -> torch.export.ExportedProgram:
    """Trace a sub-net down to operators that torch-tensorrt has converters for.

    Args:
        module: takes the inputs of `model` in order and returns its outputs in order.
        model: names, shapes and order of the tensors.
        keep_warp: leave the correlation warp whole, for the plugin.
        device: where to trace.
    """
    named = ByName(copy.deepcopy(module), model).to(device).eval()
    inputs = tuple(example.to(device) for example in example_inputs(model))
    with torch.no_grad():
        program = torch.export.export(named, inputs, dynamic_shapes=free_dimensions(model))
        table = {op: f for op, f in DECOMPOSITIONS.items() if not (keep_warp and op is WARP)}
        decomposed: torch.export.ExportedProgram = program.run_decompositions(table)
        return decomposed


def use_engine_warp(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Give the warps of a program to the plugin's kernel, which is compiled for one width.

    The width of the references' shares is the number of references, which is free: that warp, a
    small one, is decomposed.
    """
    for node in program.graph.nodes:
        if node.target is WARP and isinstance(node.args[2].meta["val"].shape[2], int):
            node.target = ENGINE_WARP
            node.args = node.args[:4]
    program.graph_module.recompile()
    decomposed: torch.export.ExportedProgram = program.run_decompositions(
        {WARP: DECOMPOSITIONS[WARP]}
    )
    return decomposed
