"""Sub-nets as AOTInductor packages with the fused kernels inside, for Triton's pytorch backend.

The container's backend takes them from 26.03 on (triton-inference-server/server#8414). A package
runs on GPUs of the architecture that compiled it.
"""

from __future__ import annotations

import copy
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.errors import ExportError
from pikfix.export.onnx import trace
from pikfix.export.parity import Arrays, Limits, Runner
from pikfix.export.precision import MixedPrecision
from pikfix.export.runtimes.decompositions import DECOMPOSITIONS
from pikfix.export.runtimes.programs import ByName
from pikfix.export.runtimes.tensorrt import LIMITS
from pikfix.systems.base import Step

PACKAGE_FILE = "model.pt2"


class AOTInductor:
    """Packages in float32, or in half precision with islands of float32.

    Args:
        precision: "fp32", "fp16" or "bf16".
        native: whether the server has the native backend; the embedded one has not.

    Raises:
        ExportError: no GPU is visible, or the server cannot load packages.
    """

    gate_device = "cuda"

    def __init__(self, precision: str, *, native: bool) -> None:
        if not native:
            raise ExportError(
                "AOTInductor packages are for the container's pytorch backend: add --target ngc"
            )
        if not torch.cuda.is_available():
            raise ExportError(
                "no NVIDIA GPU is visible: AOTInductor compiles on the kind of GPU that will serve"
            )
        self._precision = precision
        self.limits: Limits = LIMITS[precision]

    def export(self, module: nn.Module, model: Step, folder: Path) -> tuple[str, Runner]:
        """Write model.pt2; the runner loads it again."""
        typed: nn.Module = module
        if self._precision != "fp32":
            typed = MixedPrecision(module, self._precision, half_warp=True)
        return PACKAGE_FILE, compile_package(typed, model, folder / PACKAGE_FILE, "cuda")

    def configure(self, model: Step, config: pb.ModelConfig) -> None:
        """Name backend, platform and file, and the tensors as this platform knows them.

        It counts them; names of ours are unknown to it. And it merges nothing: where requests
        come as one batch, it would read every answer as long as all of them
        (triton-inference-server/pytorch_backend, src/pt2/model_instance_state.cc). So each
        request is run by itself, and its batch is the first of its dimensions.
        """
        config.backend = "pytorch"
        config.platform = "torch_aoti"
        config.default_model_filename = PACKAGE_FILE
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)
        config.max_batch_size = 0
        for word, tensors in (("INPUT", config.input), ("OUTPUT", config.output)):
            for position, tensor in enumerate(tensors):
                tensor.name = f"{word}__{position}"
                tensor.dims.insert(0, -1)

    def versions(self) -> dict[str, str]:
        """Of the kernels' compiler; PyTorch's is in every manifest."""
        return {"triton": metadata.version("triton")}


def compile_package(module: nn.Module, model: Step, path: Path, device: str) -> Runner:
    """Compile a sub-net for a device and return a function that runs the package.

    Args:
        module: takes the inputs of `model` in order and returns its outputs in order; copied.
        model: names, shapes and order of the tensors.
        path: of the package to write.
        device: "cuda", or "cpu".

    Raises:
        ExportError: the compiler refuses the network.
    """
    named = ByName(copy.deepcopy(module), model).to(device).eval()
    try:
        program = self_contained(trace(named, model, device=device), device)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        package: Any = torch._inductor.aoti_load_package(str(path))
    except (RuntimeError, AssertionError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise ExportError(f"{model.name}: AOTInductor made no package ({first})") from error

    def run(inputs: Arrays) -> Arrays:
        given = [torch.from_numpy(inputs[tensor.name]).to(device) for tensor in model.inputs]
        with torch.inference_mode():
            out = package(*given)
        values = out if isinstance(out, tuple | list) else (out,)
        return {t.name: v.cpu().numpy() for t, v in zip(model.outputs, values, strict=True)}

    return run


def self_contained(
    program: torch.export.ExportedProgram, device: str
) -> torch.export.ExportedProgram:
    """Spell this project's operators in what a package holds, so that it runs without pikfix.

    On a GPU those are their kernels, on a CPU operators of PyTorch's own.
    """
    if device == "cpu":
        decomposed: torch.export.ExportedProgram = program.run_decompositions(DECOMPOSITIONS)
        return decomposed
    # Imports Triton, which a CPU does without.
    from pikfix.kernels.traceable import TRACEABLE  # noqa: PLC0415

    for node in program.graph.nodes:
        node.target = TRACEABLE.get(node.target, node.target)
    program.graph_module.recompile()
    return program
