"""Sub-nets as ATen programs, the form that torch-tensorrt converts."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, nn

from pikfix.export.contract import Model
from pikfix.export.onnx import example_inputs, free_dimensions
from pikfix.export.runtimes.decompositions import DECOMPOSITIONS, WARP


class ByName(nn.Module):
    """Has the inputs of a contract as its parameters: the engine's inputs get their names.

    A name of its own for each input, where the module takes them as `*args`.
    """

    def __init__(self, module: nn.Module, model: Model) -> None:
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
    module: nn.Module, model: Model, *, keep_warp: bool, device: str
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
        return program.run_decompositions(table)
