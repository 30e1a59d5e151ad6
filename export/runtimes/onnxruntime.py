"""Sub-nets as ONNX files, for Triton's onnxruntime backend and for the embedded server's."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
from torch import nn
from tritonclient.grpc import model_config_pb2 as pb

from pikfix.export.configs import ServingSettings, set_network_parameters
from pikfix.export.onnx import MODEL_FILE, export_onnx
from pikfix.export.parity import Arrays, Limits, Runner
from pikfix.systems.base import Step

INSTANCES = 1
"""Of a sub-net: two answer about a sixth more (benchmarks/results/runtimes.md), but their threads
are fixed, and a lone request would have half the cores."""


class OnnxRuntime:
    """ONNX in float32.

    Args:
        settings: how the models are scheduled.
        device: "cpu" or "cuda", which the correlation is spelt for.
    """

    limits = Limits()
    gate_device = "cpu"

    def __init__(self, settings: ServingSettings, device: str = "cpu") -> None:
        self._settings = settings
        self._spelling = "onnxruntime" if device == "cpu" else "onnxruntime-cuda"

    def export(self, module: nn.Module, model: Step, folder: Path) -> tuple[str, Runner]:
        """Write model.onnx."""
        path = folder / MODEL_FILE
        export_onnx(module, model, path, runtime=self._spelling)
        return path.name, onnx_runner(path)

    def configure(self, model: Step, config: pb.ModelConfig) -> None:
        """Name the backend and the file; large photos are restored in tiles."""
        config.backend = "onnxruntime"
        config.default_model_filename = MODEL_FILE
        config.instance_group.add(
            count=self._settings.instances or INSTANCES, kind=pb.ModelInstanceGroup.KIND_AUTO
        )
        set_network_parameters(model, config, self._settings)

    def versions(self) -> dict[str, str]:
        """Of the exporter and of the runtime that the parity gate ran."""
        return {"onnx": onnx.__version__, "onnxruntime": ort.__version__}


def onnx_runner(path: Path) -> Runner:
    """Run an ONNX file on the CPU, by names."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run
