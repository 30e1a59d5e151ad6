"""Sub-nets as PyTorch weights for the embedded server's pytorch backend, on a CPU.

They run as inference forms (`pikfix.networks.inference`): bfloat16, channels_last, dense blocks
on one buffer. AOTInductor packages would be the other way. Tried once, on `restore` at full width
(torch 2.13, AVX512-BF16, weights frozen): 100 s to compile, and 11 dB from float32 where these
forms have 53. Its cause was not looked for, and its speed was not measured on an idle machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.evaluation.parity import compare
from pikfix.export.configs import ServingSettings, set_network_parameters
from pikfix.export.contract import Model
from pikfix.export.parity import CASES, Arrays, Limits, Runner, case_inputs
from pikfix.export.subnets import run_subnet
from pikfix.networks import PikFixConfig, to_working
from pikfix.networks.inference import load_step, save_step

MODEL_FILE = "model.safetensors"
_NETWORKS = {"restore": "restoration", "similarity": "similarity", "colorize": "colorization"}

BFLOAT16_LIMITS = Limits(max_abs=None, min_psnr=45.0, max_worst_tile=0.02)
"""bfloat16 keeps 8 bits: its rounding is noise without structure, which 45 dB bound (0.6 of 100 in
L, 1.2 of 220 in a and b), and which no tile of 32 x 32 may exceed more than twice. Warped
histograms and confidence are held to the same: float32 correlation keeps them far inside."""


class PyTorch:
    """PyTorch in float32 or bfloat16.

    Args:
        settings: how the models are scheduled.
        precision: "fp32" or "bf16".
        report: called with a line where a sub-net stays in float32 all the same.
    """

    gate_device = "cpu"

    def __init__(
        self,
        settings: ServingSettings,
        precision: str,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._settings = settings
        self._report = report
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.limits = BFLOAT16_LIMITS if precision == "bf16" else Limits()

    def export(self, module: nn.Module, model: Model, folder: Path) -> tuple[str, Runner]:
        """Write the sub-net's weights; the runner loads them as the backend does.

        `similarity` falls back to float32 where bfloat16 is over its limits.
        """
        network = module.get_submodule(_NETWORKS[model.name])
        config = cast(PikFixConfig, module.config)
        path = folder / MODEL_FILE
        save_step(network, config, model.name, self._dtype, path)
        runner = step_runner(path)
        if model.name == "similarity" and self._dtype != torch.float32:
            problem = self._mismatch(module, model, runner)
            if problem:
                self._report(f"similarity stays in float32: in {self._dtype}, {problem}")
                save_step(network, config, model.name, torch.float32, path)
                runner = step_runner(path)
        return MODEL_FILE, runner

    def _mismatch(self, module: nn.Module, model: Model, runner: Runner) -> str | None:
        """What matching in reduced precision does wrong, if anything.

        It depends on the weights: features that tell places well apart bear rounding; where many
        places are almost equally alike, rounding decides among them.
        """
        for number, case in enumerate(CASES):
            known = case_inputs(np.random.default_rng(number), case)
            inputs = {
                "working_l": to_working(known["photo_l"]),
                "reference_lab": known["reference_lab"],
            }
            actual = runner({name: value.numpy() for name, value in inputs.items()})
            for tensor, value in zip(model.outputs, run_subnet(module, inputs), strict=True):
                figure = compare(value.numpy(), actual[tensor.name])
                violations = figure.violations(**asdict(self.limits))
                if violations:
                    return f"{tensor.name}: {'; '.join(violations)}"
        return None

    def configure(self, model: Model, config: pb.ModelConfig) -> None:
        """Name the backend and the file; large photos are restored in tiles."""
        config.backend = "pytorch"
        config.default_model_filename = MODEL_FILE
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
        set_network_parameters(model, config, self._settings)

    def versions(self) -> dict[str, str]:
        """Of PyTorch, which the manifest has anyway."""
        return {"torch": torch.__version__}


def step_runner(path: Path) -> Runner:
    """Run an exported sub-net on the CPU, by names."""
    step = load_step(path)

    def run(inputs: Arrays) -> Arrays:
        outputs = step({name: torch.from_numpy(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return run
