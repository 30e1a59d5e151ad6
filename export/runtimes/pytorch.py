"""Sub-nets as PyTorch weights for the embedded server's pytorch backend, on a CPU.

They run as inference forms (`pikfix.networks.inference`): bfloat16, channels_last, dense blocks
on one buffer. AOTInductor packages would be the other way. On the processors at hand (torch 2.13,
AVX512-BF16) they needed minutes to compile, were not faster than the operators' own oneDNN
kernels, and were wrong when the weights were frozen into them.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.configs import ServingSettings, set_parameter
from pikfix.export.contract import Model
from pikfix.export.parity import Arrays, Limits, Runner
from pikfix.networks import SIDE_MULTIPLE, PikFixConfig
from pikfix.networks.inference import load_step, save_step
from pikfix.networks.restoration import Restoration

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
    """

    gate_device = "cpu"

    def __init__(self, settings: ServingSettings, precision: str) -> None:
        self._settings = settings
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.limits = BFLOAT16_LIMITS if precision == "bf16" else Limits()

    def export(self, module: nn.Module, model: Model, folder: Path) -> tuple[str, Runner]:
        """Write the sub-net's weights; the runner loads them as the backend does."""
        network = module.get_submodule(_NETWORKS[model.name])
        config = cast(PikFixConfig, module.config)
        save_step(network, config, model.name, self._dtype, folder / MODEL_FILE)
        return MODEL_FILE, step_runner(folder / MODEL_FILE)

    def configure(self, model: Model, config: pb.ModelConfig) -> None:
        """Name the backend and the file; large photos are restored in tiles."""
        config.backend = "pytorch"
        config.default_model_filename = MODEL_FILE
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
        if model.name == "restore":
            set_parameter(config, "tile_pixels", self._settings.tile_pixels)
            set_parameter(config, "tile_halo", Restoration.RECEPTIVE_FIELD_RADIUS)
            set_parameter(config, "tile_align", SIDE_MULTIPLE)
        elif model.name == "similarity":
            set_parameter(config, "side_multiple", SIDE_MULTIPLE)

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
