"""One step of a system in its inference form, in memory and as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pikfix.inference.forms import DTYPES, lower
from pikfix.inference.quantized import vnni_supported
from pikfix.systems.base import Precision, Step
from pikfix.systems.registry import system_of

GPU_CHANNELS = 8
"""Half-precision matrix units take channels by this many."""

_FORMAT = "pikfix inference step 2"
_RANGE = "range."
"""Prefix of the names of activation ranges in the file of an int8 step."""


class InferenceStep(nn.Module):
    """A served step in its inference form: float32 tensors in and out, by their names.

    Args:
        step: what it is called, takes and gives.
        module: the step's, trained; copied, not changed.
        precision: of the arithmetic; a step that does not bear it has a higher one.
        ranges: of the inputs of its convolutions; needed for int8.
        device: where it computes.
    """

    def __init__(
        self,
        step: Step,
        module: nn.Module,
        precision: Precision,
        ranges: Mapping[str, Tensor] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        self.step, self.name = step, step.name
        self.precision = step.precision(precision)
        self.dtype = DTYPES[self.precision]
        on_gpu = torch.device(device).type == "cuda"
        self.network = lower(
            module, self.precision, ranges, channel_multiple=GPU_CHANNELS if on_gpu else 1
        )
        self.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on float32 tensors with a batch dimension; the outputs are contiguous float32."""
        outputs = self.network(*(inputs[tensor.name] for tensor in self.step.inputs))
        values = outputs if isinstance(outputs, tuple) else (outputs,)
        return {
            tensor.name: value.float().contiguous()
            for tensor, value in zip(self.step.outputs, values, strict=True)
        }


def kernel_form(
    step: Step, module: nn.Module, precision: str, device: str | torch.device = "cpu"
) -> InferenceStep:
    """The inference form of a step with a correlation, on the fused operators.

    Args:
        step: what it is called, takes and gives.
        module: the step's, trained; copied.
        precision: "fp32", "fp16" or "bf16". "fp16" is for GPUs: hardly a CPU multiplies it
            faster, and most far slower, so that a CPU computes in float32 instead.
        device: where it will run.

    Raises:
        ValueError: another precision.
    """
    known: dict[str, Precision] = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16"}
    if precision not in known:
        raise ValueError(f"{step.name} runs in {', '.join(known)}, not in {precision!r}")
    on_cpu = torch.device(device).type == "cpu"
    chosen = "fp32" if on_cpu and precision == "fp16" else known[precision]
    return InferenceStep(step, module, chosen, device=device)


def save_step(
    module: nn.Module,
    step: Step,
    precision: Precision,
    path: Path,
    *,
    ranges: Mapping[str, Tensor] | None = None,
) -> None:
    """Write one step's weights with what its inference form needs, as safetensors.

    Args:
        module: the step's, trained.
        step: of the whole network's configuration.
        precision: of the arithmetic; a step that does not bear it has a higher one.
        path: the file.
        ranges: of the inputs of its convolutions; needed for int8.
    """
    precision = step.precision(precision)
    # What is quantized when it is loaded is not rounded before.
    dtype = torch.float32 if precision == "int8" else DTYPES[precision]
    state = {
        key: value.detach().to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for key, value in module.state_dict().items()
    }
    state |= {f"{_RANGE}{key}": value.contiguous() for key, value in (ranges or {}).items()}
    header = {
        "format": _FORMAT,
        "system": step.system,
        "step": step.name,
        "precision": precision,
        "config": json.dumps(step.config.to_dict()),
    }
    save_file(state, path, metadata=header)


def load_step(path: Path, device: str | torch.device = "cpu") -> InferenceStep:
    """Load what `save_step` wrote.

    Args:
        path: the file.
        device: where it is to compute; int8 is for a CPU.

    Raises:
        ValueError: the file is no such file, does not fit its configuration, or needs a CPU with
            instructions that this one lacks.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if header.get("format") != _FORMAT:
            raise ValueError("this version of `pikfix export --runtime pytorch` did not write it")
        if header["precision"] not in get_args(Precision):
            raise ValueError(f"its precision {header['precision']} is unknown")
        ranges = {
            key.removeprefix(_RANGE): state.pop(key)
            for key in list(state)
            if key.startswith(_RANGE)
        }
        system = system_of(header["system"])
        config = system.config_type.from_dict(json.loads(header["config"]))
        step = next(step for step in system.steps(config) if step.name == header["step"])
        module = step.module(system.build(config))
        module.load_state_dict(state)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, StopIteration) as error:
        raise ValueError(f"{path} cannot be used ({error}): export again") from error
    precision: Any = header["precision"]
    if precision == "int8" and not vnni_supported():
        raise ValueError(
            f"{path} is int8, which this CPU has no instructions for (VNNI or AMX): export again "
            "with --precision bf16 or fp32"
        )
    if precision == "int8" and torch.device(device).type != "cpu":
        raise ValueError(f"{path} is int8, which is for a CPU: export again with --precision fp16")
    return InferenceStep(step, module, precision, ranges, device)
