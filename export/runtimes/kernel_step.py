"""A sub-net with a correlation as a python step on the fused kernels."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import torch
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.configs import set_parameter
from pikfix.export.parity import Arrays, Limits, Runner
from pikfix.export.runtimes.tensorrt import LIMITS
from pikfix.inference import kernel_form
from pikfix.systems.base import Step
from pikfix.systems.checkpoint import load

CHECKPOINT_FILE = "checkpoint.safetensors"
_STEP = Path(__file__).parent.parent / "steps" / "kernels" / "model.py"


class KernelStep:
    """PyTorch in the server's Python: the checkpoint is copied, and the step that runs it.

    Args:
        checkpoint: the file that the modules to export were loaded from.
        precision: of the exported networks; int8 is none for a softmax, which runs in bf16 then.
        device: where the step will run, "cpu" or "cuda"; the gate runs there if it can.
    """

    def __init__(self, checkpoint: Path, precision: str = "fp32", device: str = "cpu") -> None:
        self._checkpoint = checkpoint
        self._precision = "bf16" if precision == "int8" else precision
        self.limits: Limits = LIMITS[self._precision]
        self.gate_device = "cuda" if device == "cuda" and torch.cuda.is_available() else "cpu"

    def export(self, module: nn.Module, model: Step, folder: Path) -> tuple[str, Runner]:
        """Copy the step and its checkpoint; the runner loads the copy."""
        if not model.correlation:
            raise ValueError(f"the python step on the kernels has no warp for {model.name}")
        shutil.copyfile(_STEP, folder / "model.py")
        shutil.copyfile(self._checkpoint, folder / CHECKPOINT_FILE)
        runner = checkpoint_runner(
            folder / CHECKPOINT_FILE, model, self._precision, self.gate_device
        )
        return CHECKPOINT_FILE, runner

    def configure(self, model: Step, config: pb.ModelConfig) -> None:
        """Name the python backend."""
        config.backend = "python"
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_AUTO)
        set_parameter(config, "precision", self._precision)

    def versions(self) -> dict[str, str]:
        """Of the kernels' compiler."""
        try:
            return {"triton": metadata.version("triton")}
        except metadata.PackageNotFoundError:  # not on this platform: the CPU twin runs alone
            return {}


def checkpoint_runner(
    path: Path, model: Step, precision: str = "fp32", device: str = "cpu"
) -> Runner:
    """Run a step from a copied checkpoint as its python step does, by names."""
    network = kernel_form(model, load(path).modules[model.name], precision, device)

    def run(inputs: Arrays) -> Arrays:
        outputs = network({n: torch.from_numpy(value).to(device) for n, value in inputs.items()})
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    return run
