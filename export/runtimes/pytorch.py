"""Sub-nets as PyTorch weights for the embedded server's pytorch backend, on a CPU or a GPU.

They run as inference forms (`pikfix.inference`): half precision, channels_last, dense
blocks on one buffer; or, in int8, with bytes inside those blocks (`pikfix.inference.quantized`). On
a GPU they run in CUDA graphs, with the fused kernels.

AOTInductor packages would be the other way. Tried once, on `restore` at full width (torch 2.13,
AVX512-BF16, weights frozen): 100 s to compile, and 11 dB from float32 where bfloat16 forms have
53. Its cause was not looked for, and its speed was not measured on an idle machine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.calibration import RangesByStep
from pikfix.export.configs import ServingSettings, set_network_parameters, set_parameter
from pikfix.export.errors import ExportError
from pikfix.export.parity import CASES, Arrays, Limits, Runner, distance
from pikfix.export.profiles import Largest, common_shapes
from pikfix.export.runtimes.base import StepInputs, given_alone
from pikfix.inference import load_step, save_step
from pikfix.inference.quantized import vnni_supported
from pikfix.kernels import cpu
from pikfix.systems.base import Precision, Step
from pikfix.systems.chain import run_step
from pikfix.systems.registry import system_of

MODEL_FILE = "model.safetensors"

INSTANCES = 2
"""Of a sub-net, on the cores that all share: one answered a fifth fewer photos, and a lone request
no sooner; three runs of two lay further apart than that (benchmarks/results/tuning.md)."""

_WARM_SIDES = (256, 512)
"""Of the square photos that a GPU is warmed up with."""

REDUCED_LIMITS = Limits(max_abs=None, min_psnr=45.0, max_worst_tile=0.02)
"""bfloat16 and int8 keep 8 bits: their rounding is noise, which 45 dB bound (0.6 of 100 in
L, 1.2 of 220 in a and b), and which no tile of 32 x 32 may exceed more than twice. Warped
histograms and confidence are held to the same: float32 correlation keeps them far inside."""


GPU_GRAPHS = 16
"""Recorded per sub-net: six buckets and shapes between, alone and in the largest batch."""

GPU_TILE_PIXELS = 1 << 22
"""Of `restore` on a GPU: the form holds about 1.5 kB per pixel in half precision at the paper's
widths, 6 GB for a tile; less memory halves the tiles when it runs out."""


class PyTorch:
    """PyTorch in float32 or half precision or, where convolutions take the time, int8.

    Args:
        settings: how the models are scheduled.
        precision: "fp32", "fp16", "bf16" or "int8"; fp16 is for a GPU, int8 for a CPU.
        device: "cpu" or "cuda"; what is for a GPU is checked on the CPU where there is none.
        report: called with a line where a sub-net stays in float32 all the same, and where this CPU
            emulates the precision.
        ranges: gives the activation ranges that int8 needs, by sub-net.
        inputs: gives what a step gets, of what its system draws.

    Raises:
        ExportError: int8 on a CPU without the instructions for it.
    """

    def __init__(
        self,
        settings: ServingSettings,
        precision: str,
        *,
        device: str = "cpu",
        report: Callable[[str], None] = lambda line: None,
        ranges: Callable[[], RangesByStep] = dict,
        inputs: StepInputs = given_alone,
    ) -> None:
        if precision == "int8" and not vnni_supported():
            raise ExportError(
                "int8 needs a CPU with AVX512-VNNI, AVX-VNNI or AMX, which this one lacks: use "
                "--precision bf16 or fp32, or --runtime auto"
            )
        if device == "cpu" and (warning := cpu.emulation(precision)):
            report(warning)
        self._settings = settings
        self._on_gpu = device == "cuda"
        self.gate_device = "cuda" if self._on_gpu and torch.cuda.is_available() else "cpu"
        if self.gate_device != device:
            report(
                "no NVIDIA GPU is visible: the networks are compared with float32 on the CPU, "
                "which says nothing about a GPU's arithmetic"
            )
        self._report = report
        self._ranges = ranges
        self._inputs = inputs
        self._precision = cast(Precision, precision)
        self.limits = Limits() if precision == "fp32" else REDUCED_LIMITS

    def export(self, module: nn.Module, model: Step, folder: Path) -> tuple[str, Runner]:
        """Write the step's weights; the runner loads them as the backend does.

        A step with a correlation falls back to float32 where half precision is over its limits.
        """
        path = folder / MODEL_FILE
        precision = model.precision(self._precision)
        ranges = self._ranges()[model.name] if precision == "int8" else None
        save_step(module, model, precision, path, ranges=ranges)
        runner = step_runner(path, self.gate_device)
        if model.correlation and precision != "fp32":
            problem = self._mismatch(module, model, runner)
            if problem:
                self._report(f"{model.name} stays in float32: in {precision}, {problem}")
                save_step(module, model, "fp32", path)
                runner = step_runner(path, self.gate_device)
        return MODEL_FILE, runner

    def _mismatch(self, module: nn.Module, model: Step, runner: Runner) -> str | None:
        """What matching in reduced precision does wrong, if anything.

        It depends on the weights: features that tell places well apart bear rounding; where many
        places are almost equally alike, rounding decides among them.
        """
        draw = system_of(model.system).sample_inputs
        for number, case in enumerate(CASES):
            inputs = self._inputs(model, draw(np.random.default_rng(number), case))
            actual = runner({name: value.numpy() for name, value in inputs.items()})
            for name, value in run_step(module, model, inputs).items():
                figure = distance(value.numpy(), actual[name])
                violations = figure.violations(**asdict(self.limits))
                if violations:
                    return f"{name}: {'; '.join(violations)}"
        return None

    def configure(self, model: Step, config: pb.ModelConfig) -> None:
        """Name the backend and the file; large photos are restored in tiles."""
        config.backend = "pytorch"
        config.default_model_filename = MODEL_FILE
        set_network_parameters(model, config, self._settings)
        if self._on_gpu:
            self._configure_gpu(model, config)
            return
        config.instance_group.add(
            count=self._settings.instances or INSTANCES, kind=pb.ModelInstanceGroup.KIND_CPU
        )

    def _configure_gpu(self, model: Step, config: pb.ModelConfig) -> None:
        # No list of GPUs: one instance on each that the server sees.
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
        set_parameter(config, "graphs", GPU_GRAPHS)
        if "tile_pixels" in config.parameters:
            set_parameter(config, "tile_pixels", GPU_TILE_PIXELS)
        # Kernels are compiled and graphs recorded before a client waits: a shape is recorded the
        # second time it comes.
        warmed = [
            common_shapes(
                model, Largest(), reference_side=self._settings.reference_side, sides=(side,)
            )
            for side in _WARM_SIDES
        ]
        for shapes in itertools.chain.from_iterable(warmed):
            for batch in _powers_of_two(self._settings.max_batch_size):
                warmup = config.model_warmup.add(batch_size=batch, count=2)
                for tensor in model.inputs:
                    value = warmup.inputs[tensor.name]
                    value.data_type = pb.TYPE_FP32
                    value.dims.extend(shapes[tensor.name])
                    value.zero_data = True
                side = shapes[model.inputs[0].name][-1]
                warmup.name = f"{batch} of {side} x {side}"

    def versions(self) -> dict[str, str]:
        """Of PyTorch, which the manifest has anyway."""
        return {"torch": torch.__version__}


def _powers_of_two(most: int) -> list[int]:
    """The sizes that a batch is run in on a GPU, see `pikfix.serving.device_network`."""
    return [1 << bit for bit in range(most.bit_length())]


def step_runner(path: Path, device: str = "cpu") -> Runner:
    """Run an exported sub-net on a device, by names."""
    step = load_step(path, device)

    def run(inputs: Arrays) -> Arrays:
        with torch.backends.cudnn.flags(allow_tf32=False):
            outputs = step({n: torch.from_numpy(value).to(device) for n, value in inputs.items()})
        return {name: value.cpu().numpy() for name, value in outputs.items()}

    return run
