"""What the serving benchmarks share: where they ran, percentiles, Triton's statistics, files."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tritonclient import grpc

from pikfix.inference.quantized import Int8Conv2d, vnni_supported
from pikfix.photos import write_atomically
from pikfix.systems.registry import system_of

RESULTS = Path(__file__).resolve().parent / "results"
SYSTEM = system_of("pikfix")
(ENSEMBLE,) = (ensemble for ensemble in SYSTEM.ensembles if "decode_photo" in ensemble.steps)
STEPS = ENSEMBLE.steps


def environment(repository: Path) -> dict[str, Any]:
    """Processor, versions, date, and what the model repository says of itself."""
    flags = _cpuinfo("flags").split()
    manifest = json.loads((repository / "manifest.json").read_text(encoding="utf-8"))
    packages = ("torch", "onnxruntime", "nvidia-pytriton", "tritonclient", "numpy")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "features": [f for f in ("avx512_bf16", "avx512_vnni", "amx_bf16") if f in flags],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "repository": {
            "runtime": manifest["runtime"],
            "precision": manifest["precision"],
            "checkpoint": manifest["checkpoint"]["file"],
            "preset": manifest["checkpoint"]["preset"],
        },
    }


def processor() -> str:
    """The processor's name, as the system gives it."""
    return _cpuinfo("model name") or platform.machine()


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


def machine_line(found: dict[str, Any]) -> str:
    """One line for under a table."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    repository = found["repository"]
    return (
        f"{found['cores']} cores of {found['processor']} ({', '.join(found['features'])}), "
        f"{versions}, {found['date']}; preset `{repository['preset']}`, runtime "
        f"{repository['runtime']} {repository['precision']}"
    )


def matrix_rates(seconds: float = 1.0, size: int = 2048) -> dict[str, float]:
    """GFLOP/s of a square matrix product (int8: a convolution): what this processor could do."""
    products: dict[str, tuple[Callable[[], object], int]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
        products[name] = partial(torch.matmul, left, right), 2 * size**3
    if vnni_supported():
        # A convolution as the networks have them: oneDNN's products in bytes reach a quarter of
        # its rate from 512 output channels on.
        channels, side = 256, 64
        plain = torch.nn.Conv2d(channels, channels, 3, padding=1)
        conv = Int8Conv2d(plain, torch.ones(channels), zero=0)
        pixels = torch.randint(0, 256, (1, side, side, channels), dtype=torch.uint8)
        work = 2 * plain.weight.numel() * side**2
        products["int8"] = partial(conv, pixels.permute(0, 3, 1, 2)), work
    rates = {}
    for name, (product, work) in products.items():
        best, end = float("inf"), time.perf_counter() + seconds
        while time.perf_counter() < end:
            start = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - start)
        rates[name] = work / best / 1e9
    return rates


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds at p50, p95 and p99, and how many there were."""
    if not seconds:
        return {"count": 0}
    p50, p95, p99 = (1000 * float(p) for p in np.percentile(seconds, (50, 95, 99)))
    return {"p50": p50, "p95": p95, "p99": p99, "count": len(seconds)}


Counters = dict[str, dict[str, float]]


def counters(url: str) -> Counters:
    """Triton's own totals by model: requests, executions, and seconds in queue and compute."""
    with grpc.InferenceServerClient(url) as client:
        answer = client.get_inference_statistics()
    found: Counters = {}
    for model in answer.model_stats:
        stats = model.inference_stats
        mine = found.setdefault(model.name, {})
        for key, value in (
            ("success", stats.success.count),
            ("failed", stats.fail.count),
            ("executions", model.execution_count),
            ("inferences", model.inference_count),
            ("queue_s", stats.queue.ns / 1e9),
            (
                "compute_s",
                (stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns) / 1e9,
            ),
            ("queued", stats.queue.count),
        ):
            mine[key] = mine.get(key, 0) + value
    return found


def per_step(before: Counters, after: Counters) -> dict[str, dict[str, float]]:
    """Queue and compute milliseconds per request, and the mean batch, between two readings."""
    rows = {}
    for name in STEPS:
        if name not in after:
            continue
        delta = {key: after[name][key] - before.get(name, {}).get(key, 0) for key in after[name]}
        requests, executions = delta["success"], delta["executions"]
        if not requests:
            continue
        rows[name] = {
            "requests": requests,
            "failed": delta["failed"],
            "queue_ms": 1000 * delta["queue_s"] / requests,
            "compute_ms": 1000 * delta["compute_s"] / requests,
            "batch": delta["inferences"] / executions if executions else 0.0,
        }
    return rows


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def write_results(stem: Path, result: dict[str, Any], text: str) -> None:
    """Write `stem`.json and `stem`.md, each whole or not at all."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".json", json.dumps(result, indent=1) + "\n"), (".md", text)):
        write_atomically(stem.with_suffix(suffix), content.encode())
