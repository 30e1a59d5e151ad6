"""What a runtime has to offer to export: a file per sub-net, a way to run it, a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.parity import Limits, Runner
from pikfix.systems.base import Step


@dataclass(frozen=True)
class Choice:
    """What `pikfix export` was asked for.

    runtime: "onnxruntime", or another name of `RUNTIMES`.
    device: "cpu" or "cuda".
    precision: "fp32", "fp16", "bf16" or "int8".
    """

    runtime: str = "onnxruntime"
    device: str = "cpu"
    precision: str = "fp32"

    def __str__(self) -> str:
        return f"runtime {self.runtime}, device {self.device}, precision {self.precision}"


StepInputs = Callable[[Step, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""A step and what its system draws to what the step gets."""


def given_alone(step: Step, drawn: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The inputs of a step whose system draws all of them."""
    return {tensor.name: drawn[tensor.name] for tensor in step.inputs}


class Runtime(Protocol):
    """Writes sub-nets for one kind of backend. Sub-nets of one repository may differ in it."""

    limits: Limits
    """How far its results may be from PyTorch's in float32."""

    gate_device: str
    """What the functions that `export` returns run on, "cpu" or "cuda"."""

    def export(self, module: nn.Module, model: Step, folder: Path) -> tuple[str, Runner]:
        """Write a sub-net into an empty version folder.

        Args:
            module: takes the inputs of `model` in order and returns its outputs in order.
            model: names, shapes and order of the tensors.
            folder: where the server's backend will look for the files.

        Returns:
            The name of the main file, and a function that runs it as the backend will.

        Raises:
            ExportError: it cannot be written; the message says what to do.
        """

    def configure(self, model: Step, config: pb.ModelConfig) -> None:
        """Enter backend, file name, instances and the backend's parameters into a config."""

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that made the files, by package name."""
