"""Activation ranges for int8: measured on photos once, kept beside the checkpoint.

The file `NAME.ranges.safetensors` belongs to `NAME.safetensors`: for each convolution of the
restoration and colorization networks the lowest and highest value of each input channel. It holds
no pictures and nothing that could be recognised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pikfix.export.errors import ExportError
from pikfix.export.parity import Case, case_inputs
from pikfix.networks import PikFix, to_working
from pikfix.networks.checkpoint import write_tensors
from pikfix.networks.quantized import input_ranges

RangesByStep = dict[str, dict[str, Tensor]]
"""By sub-net ("restore", "colorize"), then by convolution: `[2, C]`."""

_FORMAT = "pikfix activation ranges"
_NETWORKS = {"restore": "restoration", "colorize": "colorization"}
_SAMPLES = 8
_SAMPLE = Case(1, 2, (256, 256), (256, 256))


def samples() -> Iterable[tuple[Tensor, Tensor]]:
    """Drawn pictures, of the kind the parity gate measures on: photo_l and reference_lab."""
    for number in range(_SAMPLES):
        drawn = case_inputs(np.random.default_rng([1, number]), _SAMPLE)
        yield drawn["photo_l"], drawn["reference_lab"]


def measure_ranges(model: PikFix, pictures: Iterable[tuple[Tensor, Tensor]]) -> RangesByStep:
    """Run the networks in float32 and note how far the inputs of their convolutions go.

    Args:
        model: in evaluation mode.
        pictures: photo_l `[B, 1, H, W]` and reference_lab `[B, R, 3, H_r, W_r]`.
    """

    def run() -> None:
        for photo_l, reference_lab in pictures:
            working_l = to_working(model.restoration(photo_l))
            model.colorization(working_l, *model.similarity(working_l, reference_lab))

    seen = input_ranges(model, run)
    return {
        step: {
            name.removeprefix(f"{network}."): value
            for name, value in seen.items()
            if name.startswith(f"{network}.")
        }
        for step, network in _NETWORKS.items()
    }


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
    ranges: RangesByStep = {step: {} for step in _NETWORKS}
    for name, value in tensors.items():
        step, _, layer = name.partition(".")
        ranges[step][layer] = value
    return ranges


def ranges_of(model: PikFix, checkpoint: Path) -> tuple[RangesByStep, str]:
    """The ranges measured on photos, or else on samples, and a line that says which."""
    found = load_ranges(checkpoint)
    if found is not None:
        return found, f"activation ranges from {ranges_path(checkpoint)}"
    with torch.inference_mode():
        ranges = measure_ranges(model, samples())
    return ranges, (
        "activation ranges from drawn samples; `pikfix calibrate` measures them on photos"
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
