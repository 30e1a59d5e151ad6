"""The similarity sub-net as a python step on the fused kernels."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import torch
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.configs import set_parameter
from pikfix.export.contract import Model
from pikfix.export.parity import Arrays, Limits, Runner
from pikfix.export.subnets import run_subnet, subnet_module
from pikfix.networks import load_checkpoint

CHECKPOINT_FILE = "checkpoint.safetensors"
_STEP = Path(__file__).parent.parent / "steps" / "similarity" / "model.py"


class KernelStep:
    """PyTorch in the server's Python: the checkpoint is copied, and the step that runs it.

    Args:
        checkpoint: the file that the modules to export were loaded from.
    """

    limits = Limits()
    gate_device = "cpu"

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint

    def export(self, module: nn.Module, model: Model, folder: Path) -> tuple[str, Runner]:
        """Copy the step and its checkpoint; the runner loads the copy."""
        if model.name != "similarity":
            raise ValueError(f"there is a python step for similarity, not for {model.name}")
        shutil.copyfile(_STEP, folder / "model.py")
        shutil.copyfile(self._checkpoint, folder / CHECKPOINT_FILE)
        return CHECKPOINT_FILE, checkpoint_runner(folder / CHECKPOINT_FILE, model)

    def configure(self, model: Model, config: pb.ModelConfig) -> None:
        """Name the python backend, which may leave tensors on the GPU: the step uses DLPack."""
        config.backend = "python"
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_AUTO)
        set_parameter(config, "FORCE_CPU_ONLY_INPUT_TENSORS", "no")

    def versions(self) -> dict[str, str]:
        """Of the kernels' compiler."""
        try:
            return {"triton": metadata.version("triton")}
        except metadata.PackageNotFoundError:  # not on this platform: the CPU twin runs alone
            return {}


def checkpoint_runner(path: Path, model: Model) -> Runner:
    """Run a sub-net from a copied checkpoint as its python step does, by names."""
    module = subnet_module(load_checkpoint(path), model.name)

    def run(inputs: Arrays) -> Arrays:
        outputs = run_subnet(module, {n: torch.from_numpy(v) for n, v in inputs.items()})
        return {t.name: v.numpy() for t, v in zip(model.outputs, outputs, strict=True)}

    return run
