"""What the GPU campaign measures with PyTorch: parity, latency, memory, copies, AOTInductor.

Every function needs an NVIDIA GPU and returns plain values for JSON. What is timed is compared with
float32 on the CPU first, by the step `parity`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pikfix.evaluation.parity import compare
from pikfix.export import contract
from pikfix.export.onnx import trace
from pikfix.export.parity import CASES, Case, case_inputs
from pikfix.export.precision import MixedPrecision
from pikfix.export.runtimes.tensorrt import LIMITS
from pikfix.export.subnets import run_subnet, subnet_module
from pikfix.networks import load_checkpoint

SIZES = (256, 512, 1024)
BATCHES = (1, 2, 4, 8, 16, 32)
PRECISIONS = ("fp32", "fp16", "bf16")
DEVICE = "cuda"
WORKING_SIDE, WORKING_BYTES = 1024, 8 << 30
"""A working size of 1024 x 1024 is to fit into 8 GB."""

_COPIES = ("Memcpy DtoH", "Memcpy HtoD")
Named = dict[str, torch.Tensor]


class Networks:
    """The sub-nets of a checkpoint on the GPU, in one precision."""

    def __init__(self, checkpoint: Path, precision: str) -> None:
        model = load_checkpoint(checkpoint)
        self.specs = contract.subnets(model.config)
        self.modules: dict[str, nn.Module] = {}
        for spec in self.specs:
            module = subnet_module(model, spec.name)
            if precision != "fp32":
                # The kernel keeps its softmax and its sums in float32 itself.
                module = MixedPrecision(module, precision, half_warp=True)
            self.modules[spec.name] = module.to(DEVICE).eval()

    def run(self, spec: contract.Model, known: Named) -> tuple[torch.Tensor, ...]:
        """One sub-net on what is known so far; its outputs become known."""
        inputs = {tensor.name: known[tensor.name] for tensor in spec.inputs}
        outputs = run_subnet(self.modules[spec.name], inputs)
        known.update(zip((tensor.name for tensor in spec.outputs), outputs, strict=True))
        return outputs


def photos(case: Case, device: str | None = None) -> Named:
    """Photo-like inputs of a case, on the GPU unless another device is given."""
    drawn = case_inputs(np.random.default_rng(0), case)
    return {name: value.to(device or DEVICE) for name, value in drawn.items()}


def parity(checkpoint: Path, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """Each sub-net on the GPU against PyTorch's operators in float32 on the CPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = load_checkpoint(checkpoint)
    reference = {s.name: subnet_module(model, s.name) for s in contract.subnets(model.config)}
    rows, passed = [], True
    for precision in PRECISIONS:
        networks = Networks(checkpoint, precision)
        for case in cases:
            known = photos(case, "cpu")
            for spec in networks.specs:
                inputs = {tensor.name: known[tensor.name] for tensor in spec.inputs}
                expected = run_subnet(reference[spec.name], inputs)
                actual = run_subnet(
                    networks.modules[spec.name], {n: x.to(DEVICE) for n, x in inputs.items()}
                )
                for tensor, want, got in zip(spec.outputs, expected, actual, strict=True):
                    known[tensor.name] = want
                    figure = compare(want.numpy(), got.float().cpu().numpy())
                    problems = figure.violations(**asdict(LIMITS[precision]))
                    passed &= not problems
                    rows.append(
                        {"precision": precision, "step": spec.name, "tensor": tensor.name}
                        | {"photo": case.photo, "problems": problems, **figure.to_dict()}
                    )
    return {"passed": passed, "rows": rows}


def _timed(call: Callable[[], object], seconds: float = 0.5) -> dict[str, float]:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    low, middle, high = np.percentile(times, [5, 50, 95])
    return {"p5": float(low), "p50": float(middle), "p95": float(high), "runs": len(times)}


def latency(
    checkpoint: Path, precision: str, size: int, batches: Sequence[int] = BATCHES
) -> dict[str, Any]:
    """Milliseconds of each step, photos per second and memory, by batch, for square photos."""
    networks = Networks(checkpoint, precision)
    rows = []
    for batch in batches:
        row: dict[str, Any] = {"precision": precision, "size": size, "batch": batch}
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            known = photos(Case(batch, 1, (size, size), (256, 256)))
            steps = {}
            for spec in networks.specs:
                networks.run(spec, known)
                call = functools.partial(networks.run, spec, dict(known))
                steps[spec.name] = _timed(call)
            total = sum(step["p50"] for step in steps.values())
            row |= {
                "milliseconds": steps,
                "share": {name: step["p50"] / total for name, step in steps.items()},
                "photos_per_second": 1000 * batch / total,
                "peak_bytes": torch.cuda.max_memory_allocated(),
            }
        except torch.cuda.OutOfMemoryError:
            row["problem"] = "out of memory"
        rows.append(row)
    return {"passed": True, "rows": rows}


def memory(checkpoint: Path) -> dict[str, Any]:
    """Peak memory of similarity and colorize at a working size of 1024 x 1024."""
    networks = Networks(checkpoint, "fp32")
    torch.cuda.reset_peak_memory_stats()
    case = Case(1, 1, (WORKING_SIDE, WORKING_SIDE), (256, 256))
    known = photos(case)
    known["working_l"] = known["photo_l"]
    for spec in networks.specs[1:]:
        networks.run(spec, known)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return {"passed": peak < WORKING_BYTES, "peak_bytes": peak, "limit_bytes": WORKING_BYTES}


def copies(checkpoint: Path) -> dict[str, Any]:
    """Whether anything passes through the host between steps of one process."""
    networks = Networks(checkpoint, "fp16")
    inputs = photos(Case(1, 2, (512, 512), (256, 256)))

    def chain() -> None:
        known = dict(inputs)
        for spec in networks.specs:
            networks.run(spec, known)

    chain()  # compiles kernels and fills caches
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        chain()
        torch.cuda.synchronize()
    names = [event.name for event in profiler.events()]
    found = sorted({name for name in names if name.startswith(_COPIES)})
    kernels = sum(
        event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events()
    )
    return {"passed": not found and kernels > 0, "copies": found, "kernels": kernels}


def aotinductor(checkpoint: Path, name: str, out: Path) -> dict[str, Any]:
    """One sub-net as an AOTInductor package with the kernels inside: compared, then timed."""
    networks = Networks(checkpoint, "fp32")
    (spec,) = (s for s in networks.specs if s.name == name)
    known = photos(Case(2, 1, (256, 256), (256, 256)))
    for before in networks.specs:
        if before is spec:
            break
        networks.run(before, known)
    inputs = [known[tensor.name] for tensor in spec.inputs]
    with torch.no_grad():
        expected = run_subnet(networks.modules[name], dict(enumerate(inputs)))  # type: ignore[arg-type]
        start = time.perf_counter()
        program = trace(networks.modules[name], spec, device="cuda")
        file = torch._inductor.aoti_compile_and_package(
            program, package_path=str(out / f"{name}.pt2")
        )
        seconds = time.perf_counter() - start
        package = torch._inductor.aoti_load_package(file)
        got = package(*inputs)
        actual = got if isinstance(got, tuple | list) else (got,)
        worst = max(
            compare(want.cpu().numpy(), value.cpu().numpy()).max_abs
            for want, value in zip(expected, actual, strict=True)
        )
        return {
            "passed": worst <= 1e-3,
            "max_abs": worst,
            "compile_seconds": seconds,
            "milliseconds": {
                "aotinductor": _timed(lambda: package(*inputs)),
                "eager": _timed(lambda: networks.modules[name](*inputs)),
            },
        }
