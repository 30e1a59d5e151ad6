"""From a checkpoint to a model repository: export, gate, publish."""

from __future__ import annotations

import datetime
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch

from pikfix.export import contract
from pikfix.export.configs import SimilarityForm, build_configs
from pikfix.export.errors import ExportError
from pikfix.export.onnx import export_onnx, export_working
from pikfix.export.parity import Arrays, Runner, check_parity
from pikfix.export.repository import Manifest, publish, staging_folder
from pikfix.export.subnets import run_subnet, subnet_module
from pikfix.networks import PikFix, load_checkpoint, read_metadata

MODEL_FILE = "model.onnx"
WORKING_FILE = "working.onnx"
CHECKPOINT_FILE = "checkpoint.safetensors"
_SIMILARITY_STEP = Path(__file__).parent / "steps" / "similarity" / "model.py"

_SUPPORTED = {("onnxruntime", "cpu", "fp32"), ("onnxruntime", "cuda", "fp32")}


def export_checkpoint(
    checkpoint: Path,
    repository: Path,
    *,
    runtime: str = "onnxruntime",
    device: str = "cpu",
    precision: str = "fp32",
    similarity: SimilarityForm = "onnx",
    progress: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Export every sub-net of a checkpoint, check it against PyTorch, and publish it.

    Args:
        checkpoint: a pikfix checkpoint.
        repository: the model repository to write into; created if missing.
        runtime: what executes the networks; "onnxruntime".
        device: where they will run, "cpu" or "cuda".
        precision: "fp32".
        similarity: "onnx", which every server runs; or "kernel", a python step on the fused
            operators, in memory linear in the pictures, for servers whose Python has torch.
        progress: called with a line before each piece of work.

    Returns:
        The manifest of the repository.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ExportError: unsupported choice, failed parity (ParityError) or unwritable repository; the
            repository is as it was before.
    """
    if (runtime, device, precision) not in _SUPPORTED:
        choices = "; ".join(" ".join(choice) for choice in sorted(_SUPPORTED))
        raise ExportError(
            f"no export for runtime {runtime}, device {device}, precision {precision}; "
            f"this version has: {choices}"
        )
    model = load_checkpoint(checkpoint)
    models = contract.subnets(model.config)
    modules = {m.name: subnet_module(model, m.name) for m in models}
    runners: dict[str, Runner] = {}
    with staging_folder(repository) as staged:
        for spec in models:
            progress(f"exporting {spec.name}")
            folder = staged / spec.name
            folder.mkdir()
            if spec.name == "similarity" and similarity == "kernel":
                shutil.copyfile(_SIMILARITY_STEP, folder / "model.py")
                shutil.copyfile(checkpoint, folder / CHECKPOINT_FILE)
                runners[spec.name] = checkpoint_runner(folder / CHECKPOINT_FILE, spec)
            else:
                export_onnx(modules[spec.name], spec, folder / MODEL_FILE, runtime=runtime)
                runners[spec.name] = onnx_runner(folder / MODEL_FILE)
        export_working(staged / "restore" / WORKING_FILE)
        progress("comparing with PyTorch")
        figures = check_parity(modules, models, runners)
        progress(f"publishing into {repository}")
        manifest = Manifest(
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            checkpoint=_describe(checkpoint, model),
            runtime=runtime,
            device=device,
            precision=precision,
            versions={
                "pikfix": metadata.version("pikfix"),
                "torch": torch.__version__,
                "onnx": onnx.__version__,
                "onnxruntime": ort.__version__,
            },
            models={m.name: _entry(staged / m.name, figures[m.name]) for m in models},
        )
        configs = build_configs(model.config, similarity=similarity)
        return publish(repository, staged, configs, manifest)


def onnx_runner(path: Path) -> Runner:
    """Run an ONNX file on the CPU, by names."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


def checkpoint_runner(path: Path, spec: contract.Model) -> Runner:
    """Run a sub-net from a copied checkpoint as its python step does, by names."""
    module = subnet_module(load_checkpoint(path), spec.name)

    def run(inputs: Arrays) -> Arrays:
        outputs = run_subnet(module, {n: torch.from_numpy(v) for n, v in inputs.items()})
        return {t.name: v.numpy() for t, v in zip(spec.outputs, outputs, strict=True)}

    return run


def _entry(folder: Path, parity: dict[str, Any]) -> dict[str, Any]:
    file = MODEL_FILE if (folder / MODEL_FILE).exists() else CHECKPOINT_FILE
    return {"file": file, "sha256": _sha256(folder / file), "parity": parity}


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
