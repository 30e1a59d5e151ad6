"""Sub-nets to ONNX, with dynamic batch, references, height and width."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pikfix.export.profiles import sizes
from pikfix.kernels.onnx_translation import OPSETS, translation_table
from pikfix.systems.base import REFERENCES, Step, TensorSpec

MODEL_FILE = "model.onnx"

# The example's sizes only say which dimensions are free; all differ, so that none is taken for
# another, and none is 1, which tracing would take for a constant.
_EXAMPLE_BATCH = 2
_EXAMPLE_SIDES = (192, 160)
_EXAMPLE_REFERENCE_SIDES = (96, 128)
_EXAMPLE_REFERENCES = 3


def export_onnx(module: nn.Module, model: Step, path: Path, *, runtime: str) -> None:
    """Write `module` to `path` as one ONNX file with the names of `model`.

    Args:
        module: takes the inputs of `model` in order and returns its outputs in order.
        model: names, shapes and order of the tensors.
        path: the file to write.
        runtime: chooses how the custom operators are spelt, a key of `OPSETS`.
    """
    with torch.no_grad(), _quiet():
        exported = trace(module, model)
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSETS[runtime],
            custom_translation_table=translation_table(runtime),
            input_names=[tensor.name for tensor in model.inputs],
            output_names=[tensor.name for tensor in model.outputs],
        )
    if program is None:  # only with an output file, which is not given
        raise RuntimeError("torch.onnx.export returned no program")
    program.save(path, external_data=False)


def trace(module: nn.Module, model: Step, device: str = "cpu") -> torch.export.ExportedProgram:
    """Trace a sub-net with every dimension free that its contract leaves free.

    Args:
        module: takes the inputs of `model` in order and returns its outputs in order.
        model: names, shapes and order of the tensors.
        device: where the module is.
    """
    inputs = tuple(example.to(device) for example in example_inputs(model))
    free = free_dimensions(model)
    # Inputs that `forward` takes as *args are one tuple to the exporter.
    kinds = [parameter.kind for parameter in _signature(module).parameters.values()]
    variadic = inspect.Parameter.VAR_POSITIONAL
    named = kinds.index(variadic) if variadic in kinds else len(free)
    shapes = (*free[:named], free[named:]) if variadic in kinds else free
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=shapes)


def example_inputs(model: Step) -> tuple[torch.Tensor, ...]:
    """Random inputs to trace a sub-net with; no two free dimensions have one size."""
    free = sizes(_EXAMPLE_SIDES, _EXAMPLE_REFERENCES, _EXAMPLE_REFERENCE_SIDES)
    return tuple(torch.rand(_EXAMPLE_BATCH, *t.sized(free)) * 2 - 1 for t in model.inputs)


def free_dimensions(model: Step) -> tuple[dict[int, Any], ...]:
    """The free dimensions of each input, as `torch.export.export` takes them."""
    return tuple(_free_dimensions(model, tensor) for tensor in model.inputs)


def _signature(module: nn.Module) -> inspect.Signature:
    return inspect.signature(module.forward)


def _free_dimensions(step: Step, tensor: TensorSpec) -> dict[int, Any]:
    """Name the free dimensions, and how those of one network depend on each other."""
    dimensions: dict[int, Any] = {0: torch.export.Dim("batch")}
    for position, symbol in enumerate(tensor.symbols, 1):
        if symbol is None:
            continue
        name, divisor = symbol
        if name == REFERENCES:
            dimensions[position] = torch.export.Dim("references")
        elif step.side_multiple == 1:
            # Any size: the network pads, which named dimensions cannot express.
            dimensions[position] = torch.export.Dim.DYNAMIC
        else:
            dimensions[position] = step.side_multiple // divisor * torch.export.Dim(name)
    return dimensions


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress lines off the terminal; its exceptions still come through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
