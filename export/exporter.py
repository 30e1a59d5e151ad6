"""From a checkpoint to a model repository: export, gate, publish."""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from pikfix.export.calibration import RangesByStep, ranges_of
from pikfix.export.capacity import capacity_of
from pikfix.export.configs import ServingSettings, build_configs
from pikfix.export.errors import ExportError, ParityError
from pikfix.export.measured import Selection, export_fastest
from pikfix.export.parity import CASES, check_parity
from pikfix.export.precision import typed
from pikfix.export.profiles import Capacity
from pikfix.export.repository import Manifest, others_beside, publish, staging_folder
from pikfix.export.runtimes import (
    Choice,
    EngineOptions,
    Request,
    Runtime,
    candidates,
    runtime_of,
)
from pikfix.export.runtimes.kernel_step import KernelStep
from pikfix.export.targets import TARGETS, Accelerator, Placement, TargetName
from pikfix.systems.base import Step
from pikfix.systems.chain import inputs_of
from pikfix.systems.checkpoint import UNTRAINED, Loaded, load

SimilarityForm = Literal["runtime", "kernel", "plugin"]
"""Whether the similarity sub-net is exported like the others, is a python step, or is exported
with the correlation warp's kernel as a plugin inside."""


def export_checkpoint(
    checkpoint: Path,
    repository: Path,
    *,
    runtime: str = "onnxruntime",
    device: str = "cpu",
    precision: str = "fp32",
    similarity: SimilarityForm | None = None,
    target: TargetName = "embedded",
    accelerator: Accelerator = "cuda",
    engines: EngineOptions | None = None,
    instances: int | None = None,
    file_instances: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Export every sub-net of a checkpoint, check it against PyTorch, and publish it.

    Args:
        checkpoint: a pikfix checkpoint.
        repository: the model repository to write into; created if missing.
        runtime: what executes the networks, see `Choice`; "auto" measures what there is for a
            CPU and takes the fastest for each sub-net, of whatever precision.
        device: where they will run, "cpu" or "cuda".
        precision: "fp32", or what the runtime has beside it.
        similarity: of the step with a correlation: "runtime" is exported like the others; "kernel"
            is a python step on the fused operators, in memory linear in the pictures, for servers
            whose Python has torch; "plugin" is a TensorRT engine with the fused kernel inside.
            None: "kernel" for TensorRT, whose own softmax writes the N x M map, else "runtime".
        target: the server the configs are for: "embedded", or "ngc" for NVIDIA's container.
        accelerator: what runs ONNX on a GPU of the target "ngc", see `Placement`.
        engines: how TensorRT engines are built.
        instances: of each sub-net, on the embedded server's CPU; None for the runtime's own.
        file_instances: of the steps that decode and encode; None for 2, or, with a GPU, one for
            each core of this machine.
        progress: called with a line before each piece of work.

    Returns:
        The manifest of the repository.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ExportError: unsupported choice, failed parity (ParityError) or unwritable repository; the
            repository is as it was before.
    """
    if instances and instances > 1 and (device, target) != ("cpu", "embedded"):
        raise ExportError("several instances are for the embedded server on a CPU: leave them out")
    settings = ServingSettings(instances=instances, file_instances=file_instances)
    similarity = similarity or ("kernel" if runtime == "tensorrt" else "runtime")
    if similarity == "plugin" and runtime != "tensorrt":
        raise ExportError("the plugin is for TensorRT: add --runtime tensorrt")
    if runtime == "auto" and (device, target, similarity) != ("cpu", "embedded", "runtime"):
        raise ExportError(
            "runtime auto measures what the embedded server runs on a CPU: leave out --device, "
            "--target and --similarity, or name a runtime"
        )

    @functools.cache
    def ranges() -> RangesByStep:
        found, source = ranges_of(loaded.system, loaded.model, checkpoint)
        progress(source)
        return found

    loaded = load(checkpoint)
    if left := loaded.metadata.get(UNTRAINED):
        raise ExportError(
            f"{checkpoint}: {left} is untrained, and would restore nothing: train it first, with "
            "pikfix train --init"
        )
    steps, modules = loaded.steps, loaded.modules

    def inputs(step: Step, drawn: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return inputs_of(step, steps, modules, drawn)

    chosen = None
    if runtime != "auto":
        chosen = runtime_of(
            Request(
                Choice(runtime, device, precision),
                settings,
                engines or EngineOptions(),
                warp_plugin=similarity == "plugin",
                report=progress,
                native=TARGETS[target].native,
                ranges=ranges,
                capacity=lambda: capacity,
                inputs=inputs,
            )
        )
    capacity = Capacity()
    if TARGETS[target].native or runtime == "tensorrt":
        capacity = capacity_of(
            {name: typed(module, precision) for name, module in modules.items()},
            # The python step answers one photo at a time, without maps.
            [step for step in steps if not (step.correlation and similarity == "kernel")],
            budget=(engines or EngineOptions()).workspace_bytes,
            max_batch=settings.max_batch_size,
            reference_side=settings.reference_side,
            fused_warp=similarity == "plugin",
            report=progress,
        )
    placement = Placement(
        TARGETS[target],
        device,
        accelerator,
        reference_side=settings.reference_side,
        capacity=capacity,
    )
    # Said before minutes of work.
    others_beside(repository, loaded.system.name, target, device)
    with staging_folder(repository) as staged:
        if chosen is None:
            measured = candidates(settings, ranges, inputs)
            selection = export_fastest(measured, loaded, staged, progress)
        else:
            wanted = dict.fromkeys(modules, chosen)
            for step in steps:
                if step.correlation and similarity == "kernel":
                    wanted[step.name] = KernelStep(checkpoint, precision, device)
            selection = _export_all(wanted, modules, steps, staged, progress)
        runtimes, files, runners = selection.runtimes, selection.files, selection.runners
        progress("comparing with PyTorch")
        limits = {name: r.limits for name, r in runtimes.items()}
        try:
            cases = [case.within(capacity.max_references(steps)) for case in CASES]
            figures = check_parity(
                loaded.system, modules, steps, runners, limits=limits, cases=cases
            )
        except ParityError as error:
            raise ParityError(f"{error}{_CLOSER.get(precision, '')}") from None
        progress(f"publishing into {repository}")
        manifest = Manifest(
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            checkpoint=_describe(checkpoint, loaded),
            runtime=runtime,
            device=device,
            precision=precision if chosen is not None else "measured",
            target=target,
            tested_on=_tested_on(runtimes),
            versions=_versions(runtimes),
            measured=selection.to_dict() if chosen is None else None,
            models={
                name: {
                    "file": file,
                    "sha256": _sha256(staged / name / file),
                    "files": {
                        path.name: _sha256(path) for path in sorted((staged / name).iterdir())
                    },
                    "parity": figures[name],
                }
                for name, file in files.items()
            },
        )
        return publish(
            repository,
            staged,
            build_configs(loaded.system, loaded.config, runtimes, settings, placement),
            manifest,
        )


_CLOSER = {
    "int8": ": run `pikfix calibrate` with photos like those it will see, or take --precision bf16",
    "bf16": ": take --precision fp32",
    "fp16": ": take --precision fp32",
}
"""What to do where a precision is too far from float32."""


def _export_all(
    runtimes: dict[str, Runtime],
    modules: Mapping[str, nn.Module],
    steps: Sequence[Step],
    staged: Path,
    progress: Callable[[str], None],
) -> Selection:
    selection = Selection(runtimes=runtimes)
    for spec in steps:
        progress(f"exporting {spec.name}")
        folder = staged / spec.name
        folder.mkdir()
        selection.files[spec.name], selection.runners[spec.name] = runtimes[spec.name].export(
            modules[spec.name], spec, folder
        )
    return selection


def _tested_on(runtimes: dict[str, Runtime]) -> dict[str, str]:
    """What the parity gate ran each network on, so that no manifest claims a GPU it never saw."""
    return {
        name: torch.cuda.get_device_name()
        if runtime.gate_device == "cuda"
        else f"CPU {platform.machine()}"
        for name, runtime in runtimes.items()
    }


def _versions(runtimes: dict[str, Runtime]) -> dict[str, str]:
    versions = {"pikfix": metadata.version("pikfix"), "torch": torch.__version__}
    for runtime in runtimes.values():
        versions.update(runtime.versions())
    return versions


def _describe(checkpoint: Path, loaded: Loaded) -> dict[str, Any]:
    return {
        "file": checkpoint.name,
        "sha256": _sha256(checkpoint),
        "system": loaded.system.name,
        "preset": loaded.config.name,
        "config": json.loads(loaded.metadata["config"]),
        "metadata": {
            key: _maybe_json(value)
            for key, value in loaded.metadata.items()
            if key not in ("format", "format_version", "system", "config")
        },
    }


def _maybe_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
