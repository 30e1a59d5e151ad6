"""From a checkpoint to a model repository: export, gate, publish."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import torch

from pikfix.export import contract
from pikfix.export.configs import ServingSettings, build_configs
from pikfix.export.parity import Runner, check_parity
from pikfix.export.repository import Manifest, publish, staging_folder
from pikfix.export.runtimes import Choice, Runtime, runtime_of
from pikfix.export.runtimes.kernel_step import KernelStep
from pikfix.export.subnets import subnet_module
from pikfix.export.targets import TARGETS, Accelerator, Placement, TargetName
from pikfix.networks import PikFix, load_checkpoint, read_metadata

SimilarityForm = Literal["runtime", "kernel"]
"""Whether the similarity sub-net is exported like the others, or is a python step."""


def export_checkpoint(
    checkpoint: Path,
    repository: Path,
    *,
    runtime: str = "onnxruntime",
    device: str = "cpu",
    precision: str = "fp32",
    similarity: SimilarityForm = "runtime",
    target: TargetName = "embedded",
    accelerator: Accelerator = "cuda",
    progress: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Export every sub-net of a checkpoint, check it against PyTorch, and publish it.

    Args:
        checkpoint: a pikfix checkpoint.
        repository: the model repository to write into; created if missing.
        runtime: what executes the networks, see `Choice`.
        device: where they will run, "cpu" or "cuda".
        precision: "fp32", or what the runtime has beside it.
        similarity: "runtime" is exported like the others; "kernel" is a python step on the fused
            operators, in memory linear in the pictures, for servers whose Python has torch.
        target: the server the configs are for: "embedded", or "ngc" for NVIDIA's container.
        accelerator: what runs ONNX on a GPU of the target "ngc", see `Placement`.
        progress: called with a line before each piece of work.

    Returns:
        The manifest of the repository.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ExportError: unsupported choice, failed parity (ParityError) or unwritable repository; the
            repository is as it was before.
    """
    settings = ServingSettings()
    placement = Placement(
        TARGETS[target],
        device,
        accelerator,
        max_batch=settings.max_batch_size,
        reference_side=settings.reference_side,
    )
    chosen = runtime_of(Choice(runtime, device, precision), settings)
    model = load_checkpoint(checkpoint)
    models = contract.subnets(model.config)
    modules = {m.name: subnet_module(model, m.name) for m in models}
    runtimes: dict[str, Runtime] = dict.fromkeys(modules, chosen)
    if similarity == "kernel":
        runtimes["similarity"] = KernelStep(checkpoint)
    files: dict[str, str] = {}
    runners: dict[str, Runner] = {}
    with staging_folder(repository) as staged:
        for spec in models:
            progress(f"exporting {spec.name}")
            folder = staged / spec.name
            folder.mkdir()
            files[spec.name], runners[spec.name] = runtimes[spec.name].export(
                modules[spec.name], spec, folder
            )
        progress("comparing with PyTorch")
        limits = {name: r.limits for name, r in runtimes.items()}
        figures = check_parity(modules, models, runners, limits=limits)
        progress(f"publishing into {repository}")
        manifest = Manifest(
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            checkpoint=_describe(checkpoint, model),
            runtime=runtime,
            device=device,
            precision=precision,
            target=target,
            tested_on=_tested_on(runtimes),
            versions=_versions(runtimes),
            models={
                name: {
                    "file": file,
                    "sha256": _sha256(staged / name / file),
                    "parity": figures[name],
                }
                for name, file in files.items()
            },
        )
        return publish(
            repository,
            staged,
            build_configs(model.config, runtimes, settings, placement),
            manifest,
        )


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


def _describe(checkpoint: Path, model: PikFix) -> dict[str, Any]:
    stored = read_metadata(checkpoint)
    return {
        "file": checkpoint.name,
        "sha256": _sha256(checkpoint),
        "preset": model.config.name,
        "config": json.loads(stored["config"]),
        "metadata": {
            key: _maybe_json(value)
            for key, value in stored.items()
            if key not in ("format", "format_version", "config")
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
