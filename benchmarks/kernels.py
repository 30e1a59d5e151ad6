"""Benchmark the correlation warp against every peer the machine can run.

Every implementation is verified against float64 before it is timed; what fails is listed with
its error and no time. Figures: time, FLOPs per pair (asked for, and executed with padding),
share of the matrix-product and copy ceilings measured in the same run, peak memory. Results go
to ``kernels-DEVICE.json``, ``.md`` and ``.png``.

    python benchmarks/kernels.py --device cpu --threads 2
"""

# A library is imported where it is used: not every machine has every one.
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import importlib.util
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from kernels_peers import SIGMA, TEMPERATURE, Peer, Problem, peers
from torch.nn import functional as F

from pikfix.kernels import center_normalize, correlation_warp, cpu, naive, sphist

RESULTS = Path(__file__).parent / "results"
_WIDTHS = ((64, 64), (256, 64), (64, 512), (256, 512))
_CHECKED_ROWS = 256


def photo_features(channels: int, positions: int, shift: int, device: str) -> torch.Tensor:
    """Features of a real photo: random projections of its patches at three scales, [1, N, C]."""
    from skimage import data

    side = round(positions**0.5)
    grey = torch.tensor(data.astronaut().mean(-1) / 255).float()[None, None]
    grey = F.interpolate(grey.roll(shift, dims=2), (side * 8, side * 8), mode="bilinear")
    generator = torch.Generator().manual_seed(7)
    parts = []
    for size in (16, 32, 64):
        weight = torch.randn(channels, 1, size, size, generator=generator) / size
        weight -= weight.mean(dim=(2, 3), keepdim=True)
        part = F.conv2d(grey, weight, stride=8, padding=size // 2)[:, :, :side, :side]
        parts.append(part.relu().flatten(2))
    mixed = torch.cat(parts, dim=1)
    weight = torch.randn(channels, mixed.shape[1], generator=generator)
    return naive.center_normalize((weight @ mixed).transpose(1, 2)).to(device)


def make_problem(channels: int, width: int, positions: int, features: str, device: str) -> Problem:
    """Query and key of one kind, and values that are histograms of a photo-like chroma."""
    torch.manual_seed(0)
    if features == "photo":
        query, key = (photo_features(channels, positions, s, device) for s in (0, 13))
    else:
        query, key = (
            naive.center_normalize(torch.randn(1, positions, channels, device=device))
            for _ in range(2)
        )
    side = round(positions**0.5)
    chroma = F.interpolate(torch.randn(1, 2, 16, 16) * 0.3, (side, side), mode="bicubic")
    centres = torch.linspace(-1, 1, width // 2, device=device)
    values = sphist(chroma.clamp(-1, 1).to(device), centres, SIGMA).flatten(2).transpose(1, 2)
    tensors = [tensor.contiguous() for tensor in (query, key, values)]
    return Problem(features, *tensors, centres)


def time_call(run: Callable[[], Any], device: str, seconds: float) -> dict[str, float]:
    """Milliseconds of one call: median, 10th and 90th percentile, best."""
    run()
    if device == "cuda":
        from triton.testing import do_bench

        quantiles = do_bench(run, rep=int(seconds * 1000), quantiles=[0.5, 0.1, 0.9, 0.0])
        return dict(zip(("median", "p10", "p90", "best"), quantiles, strict=True))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1000)
    tenths = statistics.quantiles(times, n=10)
    return {
        "median": statistics.median(times),
        "p10": tenths[0],
        "p90": tenths[-1],
        "best": min(times),
    }


def peak_megabytes(run: Callable[[], Any], device: str) -> float:
    """Memory that one call takes beyond what was there before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(field)))

    run()
    # Freed memory goes back to the system, so that the call has to ask for it again.
    ctypes.CDLL(None).malloc_trim(0)
    # Writing 5 resets the peak resident size (Linux, proc(5)).
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1024


def ceilings(device: str, seconds: float, side: int | None = None) -> dict[str, float]:
    """TFLOP/s of a square matrix product per dtype, and GB/s of a copy.

    Args:
        device: "cuda" or "cpu".
        seconds: for each.
        side: of the matrices; None for what fills the device.
    """
    size = side or (8192 if device == "cuda" else 2048)
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if device == "cpu" and name == "fp16":
            continue  # emulated on most processors, and no peer uses it
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        best = time_call(lambda a=left, b=right: a @ b, device, seconds)["best"]
        found[name] = 2 * size**3 / best / 1e9
    source = torch.empty(2**28 if device == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    best = time_call(lambda: target.copy_(source), device, seconds)["best"]
    found["copy"] = 2 * source.numel() * 4 / best / 1e6
    return found


class Reference:
    """What a problem's warp is in float64, on evenly spaced rows; computed once for all peers."""

    def __init__(self, problem: Problem, rows: int = _CHECKED_ROWS) -> None:
        last = problem.query.shape[1] - 1
        self._rows = torch.linspace(0, last, min(rows, last + 1), device=problem.query.device)
        self._rows = self._rows.long()
        inputs = [t.double() for t in (problem.query, problem.key, problem.values)]
        inputs[0] = inputs[0][:, self._rows]
        self._expected, self._highest = naive.correlation_warp(*inputs, TEMPERATURE)

    def error(self, peer: Peer) -> float:
        """Relative Frobenius error of a peer; ArithmeticError for a wrong row maximum."""
        warped, maximum = peer.run()
        rows = self._rows.to(warped.device)
        got = warped[:, rows].to(self._expected)
        if maximum is not None:
            error = (maximum[:, rows].to(self._highest) - self._highest).abs().max()
            if not error <= 1e-2:
                raise ArithmeticError(f"the row maximum is off by {float(error):.2g}")
        return float((got - self._expected).norm() / self._expected.norm())


def measure(
    peer: Peer,
    problem: Problem,
    reference: Reference,
    *,
    device: str,
    limits: dict[str, float],
    seconds: float,
) -> dict[str, Any]:
    """Verify one peer, then time it; a row of the result."""
    _, positions, channels = problem.query.shape
    keys, width = problem.values.shape[1:]
    size = 4 if peer.dtype == "fp32" else 2
    asked = 2 * (channels + width)
    row: dict[str, Any] = {
        "problem": problem.label,
        "positions": positions,
        "peer": peer.name,
        "dtype": peer.dtype,
        "maximum": peer.maximum,
        "flops_per_pair": asked,
        "executed_flops_per_pair": peer.executed,
        "bytes": size * (positions + keys) * (channels + width) + 4 * positions,
        "error": reference.error(peer),
    }
    if not row["error"] <= peer.tolerance:
        row["failed"] = f"error {row['error']:.2g} above {peer.tolerance:.2g}"
        return row
    row["milliseconds"] = time_call(peer.run, device, seconds)
    best = row["milliseconds"]["best"]
    row["tflops"] = asked * positions * keys / best / 1e9
    row["matmul_share"] = row["tflops"] / limits[peer.dtype]
    row["copy_share"] = row["bytes"] / best / 1e6 / limits["copy"]
    row["peak_megabytes"] = peak_megabytes(peer.run, device)
    return row


def operations(positions: int, device: str, seconds: float) -> list[dict[str, Any]]:
    """Times of the prologue, SPHist and the backward passes, which have no peers."""
    dtype = torch.float16 if device == "cuda" else torch.bfloat16
    problem = make_problem(256, 64, positions, "photo", device)
    side = round(positions**0.5)
    ab = (torch.rand(1, 2, side * 4, side * 4, device=device) * 2 - 1).requires_grad_()
    tensors = [t.to(dtype).requires_grad_() for t in (problem.query, problem.key, problem.values)]
    warped, confidence = correlation_warp(*tensors, TEMPERATURE)
    grads = (torch.randn_like(warped), torch.randn_like(confidence))
    bins = sphist(ab, problem.centres, SIGMA, 4)
    runs: dict[str, Callable[[], Any]] = {
        "center_normalize of query and key, C 256": lambda: [
            center_normalize(t.detach()) for t in tensors[:2]
        ],
        "sphist of 4 x 4 pixels a position, K 32": lambda: sphist(
            ab.detach(), problem.centres, SIGMA, 4
        ),
        "sphist backward": lambda: torch.autograd.grad(
            bins, ab, torch.ones_like(bins), retain_graph=True
        ),
        "correlation_warp (256, 64) forward": lambda: correlation_warp(
            *(t.detach() for t in tensors), TEMPERATURE
        ),
        "correlation_warp (256, 64) backward": lambda: torch.autograd.grad(
            (warped, confidence), tensors, grads, retain_graph=True
        ),
    }
    return [
        {
            "operation": name,
            "positions": positions,
            "milliseconds": time_call(run, device, seconds),
            "peak_megabytes": peak_megabytes(run, device),
        }
        for name, run in runs.items()
    ]


def environment(device: str, threads: int) -> dict[str, Any]:
    """Where and with what the figures were made."""
    import triton

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["triton"] = triton.__version__
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        import onnxruntime

        versions["onnxruntime"] = onnxruntime.__version__
    features = [f for f in ("avx512_bf16", "avx512_vnni", "amx_tile") if f in cpu.instructions()]
    return {
        "device": name,
        "processor_features": features,
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "temperature": TEMPERATURE,
        "sigma": SIGMA,
    }


def available(problem: Problem, threads: int, missing: list[str]) -> Iterator[Peer]:
    """Peers that can be built here; the reason why is kept for those that cannot."""
    for family in peers(problem, threads):
        try:
            yield from list(family())
        except (RuntimeError, ImportError, ValueError) as error:
            missing.append(f"{problem.label}: {str(error).splitlines()[0]}")


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--positions", type=int, nargs="+", default=[4096])
    parser.add_argument("--features", nargs="+", default=["photo", "random"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="per implementation")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    # Subnormal weights slow float32 products of some processors tenfold: flushed for all.
    torch.set_flush_denormal(True)
    torch.set_grad_enabled(False)
    device = options.device
    limits = ceilings(device, options.seconds)
    widths = (*_WIDTHS, (128, 128)) if device == "cuda" else _WIDTHS
    rows: list[dict[str, Any]] = []
    missing: list[str] = []
    if "photo" in options.features and importlib.util.find_spec("skimage") is None:
        options.features.remove("photo")
        missing.append("photo features: scikit-image is not installed")
    for positions in options.positions:
        for channels, width in widths:
            for features in options.features:
                problem = make_problem(channels, width, positions, features, device)
                reference = Reference(problem)
                for peer in available(problem, options.threads, missing):
                    try:
                        row = measure(
                            peer,
                            problem,
                            reference,
                            device=device,
                            limits=limits,
                            seconds=options.seconds,
                        )
                    except (RuntimeError, ArithmeticError) as error:
                        first = str(error).splitlines()[0]
                        missing.append(f"{peer.name} {peer.dtype}, {problem.label}: {first}")
                        continue
                    rows.append(row)
                    best = row.get("milliseconds", {}).get("best", float("nan"))
                    print(f"{problem.label:20} {peer.name:40} {peer.dtype} {best:9.2f} ms")
    with torch.enable_grad():
        others = [row for n in options.positions for row in operations(n, device, options.seconds)]
    result = {
        "environment": environment(device, options.threads),
        "ceilings": limits,
        "warp": rows,
        "operations": others,
        "could_not_run": sorted(set(missing)),
    }
    from kernels_report import write_report

    write_report(result, options.out, device)


if __name__ == "__main__":
    main()
