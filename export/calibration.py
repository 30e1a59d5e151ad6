"""Activation ranges for int8: measured on photos once, kept beside the checkpoint.

The file `NAME.ranges.safetensors` belongs to `NAME.safetensors`: for each convolution of the steps
that can compute in bytes the lowest and highest value of each input channel. It holds
no pictures and nothing that could be recognised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pikfix.export.errors import ExportError
from pikfix.inference.quantized import input_ranges
from pikfix.systems.base import Case, System
from pikfix.systems.chain import run_chain
from pikfix.systems.checkpoint import write_tensors

RangesByStep = dict[str, dict[str, Tensor]]
"""By step, then by convolution of its module: `[2, C]`."""

_FORMAT = "pikfix activation ranges 2"
_SAMPLES = 8
_SAMPLE = Case(1, 2, (256, 256), (256, 256))


def samples(system: System) -> Iterable[dict[str, Tensor]]:
    """Drawn inputs, of the kind the parity gate measures on."""
    for number in range(_SAMPLES):
        yield system.sample_inputs(np.random.default_rng([1, number]), _SAMPLE)


def measure_ranges(
    system: System, model: nn.Module, pictures: Iterable[dict[str, Tensor]]
) -> RangesByStep:
    """Run the networks in float32 and note how far the inputs of their convolutions go.

    Args:
        system: the model's.
        model: in evaluation mode.
        pictures: inputs of the first steps, by name.
    """
    steps = system.steps(model.config)
    modules = system.modules(model, steps)

    def run() -> None:
        for inputs in pictures:
            for _ in run_chain(steps, modules, inputs):
                pass

    seen = input_ranges(nn.ModuleDict(modules), run)
    found: RangesByStep = {s.name: {} for s in steps if s.lowest_precision == "int8"}
    for name, value in seen.items():
        step, _, layer = name.partition(".")
        if step in found:
            found[step][layer] = value
    return found


def ranges_path(checkpoint: Path) -> Path:
    """Where the ranges of a checkpoint lie."""
    return checkpoint.with_suffix(".ranges.safetensors")


def save_ranges(ranges: RangesByStep, checkpoint: Path, pictures: int) -> Path:
    """Write the ranges beside the checkpoint; the file appears whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    path = ranges_path(checkpoint)
    tensors = {
        f"{step}.{name}": value.contiguous()
        for step, values in ranges.items()
        for name, value in values.items()
    }
    header = {"format": _FORMAT, "checkpoint": _digest(checkpoint), "pictures": str(pictures)}
    write_tensors(tensors, path, header)
    return path


def load_ranges(checkpoint: Path) -> RangesByStep | None:
    """Read the ranges of a checkpoint; None if none were measured.

    Raises:
        ExportError: the file is damaged or belongs to another checkpoint.
    """
    path = ranges_path(checkpoint)
    if not path.exists():
        return None
    again = f"run `pikfix calibrate {checkpoint} --photos FOLDER` again, or delete it"
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{path} cannot be read ({error}): {again}") from error
    if header.get("format") != _FORMAT:
        raise ExportError(f"{path} holds no activation ranges: {again}")
    if header.get("checkpoint") != _digest(checkpoint):
        raise ExportError(f"{path} was measured on another checkpoint: {again}")
    ranges: RangesByStep = {}
    for name, value in tensors.items():
        step, _, layer = name.partition(".")
        ranges.setdefault(step, {})[layer] = value
    return ranges


def ranges_of(system: System, model: nn.Module, checkpoint: Path) -> tuple[RangesByStep, str]:
    """The ranges measured on photos, or else on samples, and a line that says which."""
    found = load_ranges(checkpoint)
    if found is not None:
        return found, f"activation ranges from {ranges_path(checkpoint)}"
    with torch.inference_mode():
        ranges = measure_ranges(system, model, samples(system))
    return ranges, (
        "activation ranges from drawn samples; `pikfix calibrate` measures them on photos"
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
