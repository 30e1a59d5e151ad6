"""Sub-nets as PyTorch weights for the embedded server's pytorch backend, on a CPU.

They run as inference forms (`pikfix.networks.inference`): bfloat16, channels_last, dense blocks
on one buffer; or, in int8, with bytes inside those blocks (`pikfix.networks.quantized`).

AOTInductor packages would be the other way. Tried once, on `restore` at full width (torch 2.13,
AVX512-BF16, weights frozen): 100 s to compile, and 11 dB from float32 where bfloat16 forms have
53. Its cause was not looked for, and its speed was not measured on an idle machine.
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
from pikfix.export.calibration import RangesByStep
from pikfix.export.configs import ServingSettings, set_network_parameters
from pikfix.export.contract import Model
from pikfix.export.errors import ExportError
from pikfix.export.parity import CASES, Arrays, Limits, Runner, case_inputs
from pikfix.export.subnets import run_subnet
from pikfix.networks import PikFixConfig, to_working
from pikfix.networks.inference import Precision, load_step, save_step
from pikfix.networks.quantized import vnni_supported

MODEL_FILE = "model.safetensors"

INSTANCES = 2
"""Of a sub-net, on the cores that all share: one answered a fifth fewer photos, and a lone request
no sooner; three runs of two lay further apart than that (benchmarks/results/tuning.md)."""

_NETWORKS = {"restore": "restoration", "similarity": "similarity", "colorize": "colorization"}

REDUCED_LIMITS = Limits(max_abs=None, min_psnr=45.0, max_worst_tile=0.02)
"""bfloat16 and int8 keep 8 bits: their rounding is noise, which 45 dB bound (0.6 of 100 in
L, 1.2 of 220 in a and b), and which no tile of 32 x 32 may exceed more than twice. Warped
histograms and confidence are held to the same: float32 correlation keeps them far inside."""


class PyTorch:
    """PyTorch in float32, bfloat16 or, where convolutions take the time, int8.

    Args:
        settings: how the models are scheduled.
        precision: "fp32", "bf16" or "int8".
        report: called with a line where a sub-net stays in float32 all the same.
        ranges: gives the activation ranges that int8 needs, by sub-net.

    Raises:
        ExportError: int8 on a CPU without the instructions for it.
    """

    gate_device = "cpu"

    def __init__(
        self,
        settings: ServingSettings,
        precision: str,
        *,
        report: Callable[[str], None] = lambda line: None,
        ranges: Callable[[], RangesByStep] = dict,
    ) -> None:
        if precision == "int8" and not vnni_supported():
            raise ExportError(
                "int8 needs a CPU with AVX512-VNNI, AVX-VNNI or AMX, which this one lacks: use "
                "--precision bf16 or fp32, or --runtime auto"
            )
        self._settings = settings
        self._report = report
        self._ranges = ranges
        self._precision = cast(Precision, precision)
        self.limits = Limits() if precision == "fp32" else REDUCED_LIMITS

    def export(self, module: nn.Module, model: Model, folder: Path) -> tuple[str, Runner]:
        """Write the sub-net's weights; the runner loads them as the backend does.

        `similarity` is never in bytes, and falls back to float32 where bfloat16 is over its limits.
        """
        network = module.get_submodule(_NETWORKS[model.name])
        config = cast(PikFixConfig, module.config)
        path = folder / MODEL_FILE
        if model.name != "similarity":
            ranges = self._ranges()[model.name] if self._precision == "int8" else None
            save_step(network, config, model.name, self._precision, path, ranges=ranges)
            return MODEL_FILE, step_runner(path)
        precision: Precision = "fp32" if self._precision == "fp32" else "bf16"
        save_step(network, config, model.name, precision, path)
        runner = step_runner(path)
        if precision == "bf16" and (problem := self._mismatch(module, model, runner)):
            self._report(f"similarity stays in float32: in bfloat16, {problem}")
            save_step(network, config, model.name, "fp32", path)
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
        config.instance_group.add(
            count=self._settings.instances or INSTANCES, kind=pb.ModelInstanceGroup.KIND_CPU
        )
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
