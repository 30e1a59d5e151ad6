"""Sub-nets to ONNX, with dynamic batch, references, height and width."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from pikfix.export.contract import MENDED_L, PHOTO_L, REFERENCE_LAB, WHOLE, Model, Tensor
from pikfix.export.profiles import scale_of
from pikfix.export.subnets import RestoreStep, TileStep, WholeStep
from pikfix.kernels.onnx_translation import OPSETS, translation_table
from pikfix.networks import SIDE_MULTIPLE

MODEL_FILE = "model.onnx"
WHOLE_FILE = "whole.onnx"

# The example's sizes only say which dimensions are free; all differ, so that none is taken for
# another, and none is 1, which tracing would take for a constant.
_EXAMPLE_BATCH = 2
_EXAMPLE_SIDES = (192, 160)
_EXAMPLE_REFERENCE_SIDES = (96, 128)
_EXAMPLE_REFERENCES = 3


def export_onnx(module: nn.Module, model: Model, path: Path, *, runtime: str) -> None:
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


def trace(module: nn.Module, model: Model, device: str = "cpu") -> torch.export.ExportedProgram:
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


def example_inputs(model: Model) -> tuple[torch.Tensor, ...]:
    """Random inputs to trace a sub-net with; no two free dimensions have one size."""
    return tuple(_example(tensor) for tensor in model.inputs)


def free_dimensions(model: Model) -> tuple[dict[int, Any], ...]:
    """The free dimensions of each input, as `torch.export.export` takes them."""
    return tuple(_free_dimensions(tensor) for tensor in model.inputs)


def export_subnet(
    module: nn.Module, model: Model, folder: Path, *, runtime: str = "onnxruntime"
) -> Path:
    """Write a sub-net for ONNX Runtime, `restore` so that a server can run it in tiles, too.

    Such a server gives the file's input `whole`, whose default is 1, the value 0 for every tile,
    and finishes the joined tiles with `whole.onnx`. `runtime` is a key of `OPSETS`.

    Returns:
        The sub-net's own file.
    """
    path = folder / MODEL_FILE
    if not isinstance(module, RestoreStep):
        export_onnx(module, model, path, runtime=runtime)
        return path
    if module.restoration.tone is None:
        export_onnx(module, model, path, runtime=runtime)
    else:
        tiles = replace(model, inputs=(*model.inputs, WHOLE))
        export_onnx(TileStep(module).eval(), tiles, path, runtime=runtime)
        _set_default(path, WHOLE.name, np.ones(1, dtype=np.float32))
    rest = Model(WHOLE.name, (PHOTO_L, MENDED_L), model.outputs)
    export_onnx(WholeStep(module).eval(), rest, folder / WHOLE_FILE, runtime=runtime)
    return path


def _set_default(path: Path, name: str, value: npt.NDArray[np.float32]) -> None:
    """Give an input of an ONNX file a default: an initializer that callers may override."""
    model = onnx.load(path)
    if name not in {initializer.name for initializer in model.graph.initializer}:
        model.graph.initializer.append(numpy_helper.from_array(value, name))
        onnx.save(model, path)


def _signature(module: nn.Module) -> inspect.Signature:
    return inspect.signature(module.forward)


def _free_dimensions(tensor: Tensor) -> dict[int, Any]:
    """Name the free dimensions, and how those of one network depend on each other."""
    if tensor.name == WHOLE.name:
        return {}
    dimensions: dict[int, Any] = {0: torch.export.Dim("batch")}
    rows, columns = len(tensor.dims) - 1, len(tensor.dims)
    if tensor.name in (PHOTO_L.name, MENDED_L.name):
        # Any size: the network pads, which named dimensions cannot express.
        dimensions[rows] = dimensions[columns] = torch.export.Dim.DYNAMIC
        return dimensions
    group = "reference" if tensor.name == REFERENCE_LAB.name else "working"
    if group == "reference":
        dimensions[1] = torch.export.Dim("references")
    multiple = SIDE_MULTIPLE // scale_of(tensor)
    dimensions[rows] = multiple * torch.export.Dim(f"{group}_rows")
    dimensions[columns] = multiple * torch.export.Dim(f"{group}_columns")
    return dimensions


def _example(tensor: Tensor) -> torch.Tensor:
    if tensor.name == WHOLE.name:
        return torch.ones(1)
    reference = tensor.name == REFERENCE_LAB.name
    full = _EXAMPLE_REFERENCE_SIDES if reference else _EXAMPLE_SIDES
    sides = [side // scale_of(tensor) for side in full]
    channels = [_EXAMPLE_REFERENCES if size == -1 else size for size in tensor.dims[:-2]]
    return torch.rand(_EXAMPLE_BATCH, *channels, *sides) * 2 - 1


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
