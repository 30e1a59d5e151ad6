"""``pikfix export``: from a checkpoint to a model repository."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from pikfix.cli.choices import Device


class Runtime(str, Enum):
    """What runs the exported networks."""

    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    pytorch = "pytorch"
    auto = "auto"


class Precision(str, Enum):
    """In which arithmetic they run."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"


class Target(str, Enum):
    """Which server the repository is for."""

    embedded = "embedded"
    ngc = "ngc"


class Accelerator(str, Enum):
    """What runs ONNX on a GPU of NVIDIA's container."""

    cuda = "cuda"
    tensorrt = "tensorrt"


class Similarity(str, Enum):
    """How the similarity sub-net is served."""

    runtime = "runtime"
    kernel = "kernel"
    plugin = "plugin"


class EngineBuilder(str, Enum):
    """What TensorRT engines are built through."""

    onnx = "onnx"
    torch = "torch"


def command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint, a .safetensors file.", show_default=False)
    ],
    *,
    runtime: Annotated[
        Runtime,
        typer.Option(
            help="What runs the networks; auto measures all that a CPU has and takes the fastest "
            "for each sub-net."
        ),
    ] = Runtime.onnxruntime,
    device: Annotated[Device, typer.Option(help="Where they run.")] = Device.cpu,
    precision: Annotated[
        Precision, typer.Option(help="In which arithmetic they run.")
    ] = Precision.fp32,
    similarity: Annotated[
        Similarity | None,
        typer.Option(
            help="runtime exports it like the others; kernel is a python step on the fused "
            "operators, with memory linear in the pictures, and needs torch in the server's "
            "Python; plugin is a TensorRT engine with the fused kernel inside. Default: kernel "
            "for TensorRT, else runtime.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        Target,
        typer.Option(
            help="Server the configs are for: the embedded one, or NVIDIA's NGC container with "
            "its native backends."
        ),
    ] = Target.embedded,
    accelerator: Annotated[
        Accelerator,
        typer.Option(help="With --target ngc --device cuda: what runs ONNX networks on the GPU."),
    ] = Accelerator.cuda,
    engine_builder: Annotated[
        EngineBuilder,
        typer.Option(help="TensorRT: through its ONNX parser, or through torch-tensorrt."),
    ] = EngineBuilder.onnx,
    version_compatible: Annotated[
        bool, typer.Option(help="TensorRT: newer versions may load the engines.")
    ] = True,
    hardware_compatible: Annotated[
        bool, typer.Option(help="TensorRT: any GPU from Ampere on may load the engines.")
    ] = False,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="TensorRT: measurements to keep from build to build.", dir_okay=False),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of each sub-net on the embedded server's CPU, sharing its cores.",
            show_default="2 with pytorch, else 1",
        ),
    ] = None,
    file_instances: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of the steps that decode and encode photos: cores of the serving machine.",
            show_default="2, or with a GPU this machine's cores",
        ),
    ] = None,
    memory_gib: Annotated[
        float,
        typer.Option(
            min=0.5,
            help="Memory for the activations of one network on a server with native backends; the "
            "largest photos and the most references follow from it.",
        ),
    ] = 8,
    out: Annotated[Path, typer.Option("-o", "--out", help="Model repository to fill.")] = Path(
        "model_repository"
    ),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the manifest as one JSON object.")
    ] = False,
) -> None:
    """Export the networks of a checkpoint into a model repository.

    What is exported is compared with PyTorch first; where it differs, the repository stays as
    it was.

    On a CPU 16 photos are worked on at a time, four times as many on a GPU; change max_in_flight
    in the config.pbtxt of decode_photo.
    """
    import json

    from pikfix.export import export_checkpoint
    from pikfix.export.runtimes import EngineOptions

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    manifest = export_checkpoint(
        checkpoint,
        out,
        runtime=runtime.value,
        device=device.value,
        precision=precision.value,
        similarity=None if similarity is None else similarity.value,
        target=target.value,
        accelerator=accelerator.value,
        engines=EngineOptions(
            builder=engine_builder.value,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            timing_cache=timing_cache,
            workspace_bytes=int(memory_gib * (1 << 30)),
        ),
        instances=instances,
        file_instances=file_instances,
        progress=progress,
    )
    if as_json:
        print(json.dumps(manifest.to_dict()))
    else:
        print(f"{checkpoint} -> {out}")
