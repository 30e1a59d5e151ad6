"""The campaign's AOTInductor packages: compiled beside the other sections, run where no pikfix is.

`compile_packages` needs the exporter, and so the protobuf module of Triton's configs, which the
bundle carries; `packages` runs each package in a process that has PyTorch alone.
"""

# The exporter is imported in the process that compiles, where its packages may be missing.
# ruff: noqa: PLC0415

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from gpu_networks import build, chain, photo_like, step_of
from gpu_rows import Plan, Row, Rows
from safetensors.torch import save_file

_CLEAN = """
import json, statistics, sys, time
sys.modules["pikfix"] = None  # also where it is installed: a package has to do without
import torch
from safetensors.torch import load_file

package_file, tensors_file, device, seconds = sys.argv[1:5]
tensors = load_file(tensors_file, device=device)
inputs = [tensors[f"input.{i}"] for i in range(sum(n.startswith("input.") for n in tensors))]
expected = [tensors[f"output.{i}"] for i in range(len(tensors) - len(inputs))]
start = time.perf_counter()
package = torch._inductor.aoti_load_package(package_file)
loaded = time.perf_counter() - start
wait = torch.cuda.synchronize if device == "cuda" else lambda: None
with torch.inference_mode():
    found = package(*inputs)
    found = list(found) if isinstance(found, (tuple, list)) else [found]
    wait()
    worst = max(float((f.float() - e).abs().max()) for f, e in zip(found, expected, strict=True))
    times, end = [], time.perf_counter() + float(seconds)
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        package(*inputs)
        wait()
        times.append((time.perf_counter() - start) * 1000)
print(json.dumps({
    "max_abs": worst, "load_seconds": loaded,
    "operators": hasattr(torch.ops.pikfix, "correlation_warp"),
    "milliseconds": {"median": statistics.median(times), "best": min(times), "runs": len(times)},
}))
"""


def compile_packages(plan: Plan, rows: Rows) -> None:
    """Write a package for each sub-net, and beside it inputs with what PyTorch makes of them."""
    folder = plan.out / "packages"
    folder.mkdir(exist_ok=True)
    name = next(iter(plan.networks))
    model = build(plan, name)
    for step in plan.packages:
        _ended(plan, step).unlink(missing_ok=True)
    for step in plan.packages:
        rows.measure(f"compile {name} {step}", lambda s=step: _compile(plan, model, s))  # type: ignore[misc]
        _ended(plan, step).touch()


def _compile(plan: Plan, model: torch.nn.Module, step: str) -> Row:
    from pikfix.export.precision import MixedPrecision
    from pikfix.export.runtimes.aotinductor import compile_package
    from pikfix.systems.chain import run_step

    precision = "fp16" if plan.on_gpu else "fp32"
    spec = step_of(model, step)  # type: ignore[arg-type]
    module = spec.module(model).eval()
    side = min(plan.sides[0], 256)
    known = chain(model, photo_like(2, side, 2, side, 3))  # type: ignore[arg-type]
    inputs = {t.name: known[t.name].clone() for t in spec.inputs}
    expected = run_step(module, spec, inputs).values()
    typed = module if precision == "fp32" else MixedPrecision(module, precision, half_warp=True)
    path = plan.out / "packages" / f"{step}.pt2"
    start = time.perf_counter()
    compile_package(typed, spec, path, plan.device)
    seconds = time.perf_counter() - start
    tensors = {f"input.{i}": value.contiguous() for i, value in enumerate(inputs.values())}
    tensors |= {f"output.{i}": value.clone() for i, value in enumerate(expected)}
    # Last: a package with its tensors is complete.
    save_file(tensors, path.with_suffix(".safetensors"))
    return {
        "compile_seconds": seconds,
        "bytes": path.stat().st_size,
        "precision": precision,
        "photo": list(inputs[next(iter(inputs))].shape),
    }


def packages(plan: Plan, rows: Rows) -> None:
    """Load and time what has been compiled until now, each in a clean process."""
    for step in plan.packages:
        path = plan.out / "packages" / f"{step}.pt2"
        while not _ended(plan, step).is_file() and rows.left() > 5:
            time.sleep(0.5)
        rows.measure(step, lambda p=path: _run_clean(plan, p, max(5.0, rows.left())))  # type: ignore[misc]


def _ended(plan: Plan, step: str) -> Path:
    """A file that is there once the compilation of this call has made the package or failed."""
    return plan.out / "packages" / f"{step}.ended"


def _run_clean(plan: Plan, path: os.PathLike[str], limit: float) -> Row:
    tensors = os.fspath(path).removesuffix(".pt2") + ".safetensors"
    if not os.path.isfile(tensors):  # noqa: PTH113
        raise FileNotFoundError("the package has not been compiled")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [sys.executable, "-c", _CLEAN, os.fspath(path), tensors, plan.device, str(plan.seconds)]
    done = subprocess.run(
        words,
        env=env,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=max(5.0, limit),
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(lines[-1])
    figures: Row = json.loads(done.stdout.splitlines()[-1])
    return figures
