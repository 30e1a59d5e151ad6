"""The campaign's first section: where and with what the figures are made."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch
from gpu_rows import Plan, Row, Rows

_VERSIONS = ("torch", "triton", "numpy", "safetensors", "Pillow", "nvidia-pytriton")
NO_GPU = 3


def probe(plan: Plan, rows: Rows) -> None:
    """Note the device and the versions; leave the process with `NO_GPU` where there is none."""
    if plan.on_gpu and not torch.cuda.is_available():
        print("no NVIDIA GPU is visible to PyTorch: nothing was measured", flush=True)
        os._exit(NO_GPU)
    rows.measure("machine", lambda: _machine(plan))


def _machine(plan: Plan) -> Row:
    versions = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    row: Row = {
        "device": _processor(),
        "gpu": None,
        "rehearsal": not plan.on_gpu,
        "cores": len(os.sched_getaffinity(0)),
        "interpreter": sys.executable,
        "versions": versions,
    }
    if plan.on_gpu:
        properties = torch.cuda.get_device_properties(0)
        row |= {
            "device": properties.name,
            "gpu": properties.name,
            "gpus": torch.cuda.device_count(),
            "gpu_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": list(torch.cuda.get_device_capability()),
            "driver": _driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return row


def _driver() -> str | None:
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
