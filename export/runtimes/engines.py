"""What TensorRT engines are built from: options, and where to get TensorRT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pikfix.export.precision import DTYPES

Builder = Literal["onnx", "torch"]

INSTALL = (
    "TensorRT is not installed here: on the machine with the NVIDIA GPU that will serve, run "
    "`pip install 'pikfix[tensorrt]'`, or export inside the container nvcr.io/nvidia/pytorch"
)

PRECISIONS = ("fp32", *DTYPES)


@dataclass(frozen=True)
class EngineOptions:
    """How engines are built.

    builder: "onnx" goes through TensorRT's ONNX parser, "torch" through torch-tensorrt, which
        takes one profile: a sub-net with several goes through the parser either way.
    version_compatible: newer versions of TensorRT may load the engine too, with a server started
        with `--backend-config=tensorrt,version-compatible=true`; otherwise only the version that
        built it. Not with the plugin, whose kernel is compiled for one architecture.
    hardware_compatible: any GPU from Ampere on may load it, at some cost in speed; otherwise only
        GPUs of the kind that built it.
    optimization_level: 0 to 5; more levels try more kernels.
    workspace_bytes: that the activations of one network may take; the largest shapes follow from
        it, and whatever runs them, see `pikfix.export.capacity`.
    timing_cache: measurements of earlier builds, read and written; None keeps none.
    """

    builder: Builder = "onnx"
    version_compatible: bool = True
    hardware_compatible: bool = False
    optimization_level: int = 3
    workspace_bytes: int = 8 << 30
    timing_cache: Path | None = None
