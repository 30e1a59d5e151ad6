"""All GPU work, in calls of under nine minutes, resumable: see gpu_campaign.sh.

Steps that are done are not repeated; a call ends when its time is used up and the next one goes on.
Exit codes: 0 everything ran and passed; 1 something failed; 3 there is no GPU, and all that needs
one was skipped; 75 there is more to do, call again.
"""

# Packages are imported where a step needs them: a CPU lacks some.
# ruff: noqa: PLC0415

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
SIZES, PRECISIONS, SUBNETS = (
    (256, 512, 1024),
    ("fp32", "fp16", "bf16"),
    ("restore", "similarity", "colorize"),
)
CALL_SECONDS = 520
NO_GPU, MORE = 3, 75
_TRIES = 2
Result = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A piece of the campaign.

    seconds: that it usually needs; it is not begun with less time left, unless the call is new.
    """

    name: str
    run: Callable[[float], Result]
    seconds: float = 60
    gpu: bool = True


def gpu_name() -> str | None:
    """The GPU that PyTorch sees; None where there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def environment() -> Result:
    """Machine and versions."""
    versions = {}
    names = ("torch", "triton", "onnxruntime", "onnxruntime-gpu", "tensorrt", "torch-tensorrt")
    for name in (*names, "nvidia-pytriton", "tritonclient", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "passed": True,
        "gpu": gpu_name(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def logged(out: Path, name: str, words: list[str], limit: float) -> Result:
    """A command with its output in a log."""
    start, log = time.perf_counter(), out / f"{name}.log"
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                words, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, timeout=limit, check=False
            )
            code: int | str = done.returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {limit:.0f} s"
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {
        "passed": code == 0,
        "exit": code,
        "seconds": round(time.perf_counter() - start, 1),
        "last_line": lines[-1][:300] if lines else "",
    }


def export(out: Path, checkpoint: Path, name: str, words: list[str], limit: float) -> Result:
    """`pikfix export` into a repository of its own."""
    command = "import sys; from pikfix.cli.main import main; sys.exit(main(sys.argv[1:]))"
    words = ["export", str(checkpoint), "-o", str(out / name), *words]
    return logged(out, f"export-{name}", [sys.executable, "-c", command, *words], limit)


def tensorrt(out: Path, checkpoint: Path, precision: str, similarity: str, limit: float) -> Result:
    """Engines behind the parity gate, or the reason why there are none."""
    try:
        metadata.version("tensorrt")
    except metadata.PackageNotFoundError:
        return {"passed": True, "skipped": "TensorRT is not installed"}
    words = ["--runtime", "tensorrt", "--device", "cuda", "--precision", precision]
    words += ["--similarity", similarity, "--target", "ngc", "--timing-cache", str(out / "timing")]
    return export(out, checkpoint, f"tensorrt-{precision}-{similarity}", words, limit)


def serve(out: Path, checkpoint: Path, size: int, limit: float) -> Result:
    """Photos through the embedded tritonserver with the networks on the GPU."""
    import io

    import numpy as np
    import onnxruntime as ort
    from PIL import Image

    from pikfix.client import PikFixClient
    from pikfix.export.samples import photo_like_lab
    from pikfix.networks import lab_to_rgb
    from pikfix.serving.server import start_server

    repository = out / "served"
    if not (repository / "manifest.json").is_file():
        words = ["--device", "cuda", "--similarity", "kernel"]
        exported = export(out, checkpoint, "served", words, limit)
        if not exported["passed"]:
            return exported

    def file(seed: int) -> bytes:
        rgb = lab_to_rgb(photo_like_lab(np.random.default_rng(seed), size, size))
        written = io.BytesIO()
        pixels = (rgb * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(written, "png")
        return written.getvalue()

    seconds = []
    with start_server(repository) as server, PikFixClient(server.grpc_url) as client:
        photo, reference = file(0), file(1)
        end = time.perf_counter() + min(30.0, limit / 3)
        client.restore(photo, reference=reference)
        while len(seconds) < 5 or time.perf_counter() < end:
            start = time.perf_counter()
            client.restore(photo, reference=reference)
            seconds.append(time.perf_counter() - start)
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    row = {"size": size, "requests": len(seconds), "p50_ms": float(p50), "p95_ms": float(p95)}
    # Without onnxruntime-gpu, restore and colorize have run on the CPU; similarity has not.
    row["onnx_on_gpu"] = "CUDAExecutionProvider" in ort.get_available_providers()
    return {"passed": True, "row": row}


def steps(out: Path, checkpoint: Path) -> list[Step]:
    """The campaign, in the order in which it is worth most."""
    import gpu_measurements as gpu

    python = sys.executable
    kernels = [python, "benchmarks/gpu_kernels.py", "--out", str(out / "kernels"), "--steps"]
    pytest = [python, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    part = functools.partial
    found = [
        Step("environment", lambda limit: environment(), 5, gpu=False),
        Step("parity", lambda limit: gpu.parity(checkpoint), 120),
        Step("copies", lambda limit: gpu.copies(checkpoint), 60),
        Step("memory", lambda limit: gpu.memory(checkpoint), 60),
        Step("tests", part(logged, out, "tests", pytest), 240),
    ]
    for precision in PRECISIONS:
        for size in SIZES:
            found.append(
                Step(
                    f"latency-{precision}-{size}",
                    lambda limit, p=precision, s=size: gpu.latency(checkpoint, p, s),  # type: ignore[misc]
                    60,
                )
            )
    found += [Step(f"serve-{size}", part(serve, out, checkpoint, size), 150) for size in SIZES]
    found += [
        Step(f"kernels-{name}", part(logged, out, f"kernels-{name}", [*kernels, name]), seconds)
        for name, seconds in (("benchmark", 200), ("profile", 60), ("tiles", 400))
    ]
    found += [
        Step(f"aotinductor-{n}", lambda limit, n=n: gpu.aotinductor(checkpoint, n, out), 300)  # type: ignore[misc]
        for n in SUBNETS
    ]
    found += [
        Step(f"tensorrt-{p}-{form}", part(tensorrt, out, checkpoint, p, form), 400)
        for p, form in (
            ("fp16", "kernel"),
            ("fp16", "plugin"),
            ("bf16", "kernel"),
            ("fp32", "kernel"),
        )
    ]
    return found


def apart(out: Path, checkpoint: Path, name: str, limit: float) -> Result:
    """A step in a process of its own, which is ended in time and takes nobody with it."""
    file = out / "steps" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    words = [sys.executable, __file__, str(out), "--checkpoint", str(checkpoint)]
    done = logged(out, f"step-{name}", [*words, "--seconds", str(limit), "--step", name], limit)
    if file.is_file():
        result: Result = json.loads(file.read_text())
        return result | {"seconds": done["seconds"]}
    return done


def run_here(out: Path, checkpoint: Path, name: str, limit: float) -> None:
    """Run one step and leave its result for `apart`."""
    (step,) = (step for step in steps(out, checkpoint) if step.name == name)
    try:
        result = step.run(limit)
    except Exception as error:
        result = {"passed": False, "error": f"{type(error).__name__}: {error}"[:500]}
    (out / "steps" / f"{name}.json").write_text(json.dumps(result))


def run(out: Path, checkpoint: Path, seconds: float) -> int:
    """Go on with the campaign for so long; the exit code."""
    from gpu_report import write_report

    end = time.monotonic() + seconds
    state_file = out / "campaign.json"
    state: dict[str, Result] = json.loads(state_file.read_text()) if state_file.is_file() else {}
    if gpu_name() is not None:  # what a machine without a GPU has skipped is open again
        state = {n: r for n, r in state.items() if r.get("skipped") != "no NVIDIA GPU"}
    begun = False
    everything = steps(out, checkpoint)
    for step in everything:
        earlier = state.get(step.name, {})
        if earlier.get("passed") or earlier.get("skipped") or earlier.get("tries", 0) >= _TRIES:
            continue
        left = end - time.monotonic()
        if begun and left < step.seconds:
            continue
        if step.gpu and gpu_name() is None:
            result: Result = {"passed": False, "skipped": "no NVIDIA GPU"}
        else:
            begun = begun or step.gpu
            result = apart(out, checkpoint, step.name, max(30.0, left))
        state[step.name] = result | {"tries": earlier.get("tries", 0) + 1}
        temporary = state_file.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=1))
        temporary.replace(state_file)
        word = "passed" if result["passed"] else result.get("skipped", "failed")
        print(
            f"{step.name}: {word} {result.get('error') or result.get('last_line') or ''}",
            flush=True,
        )
    write_report(out, state)
    open_steps = [
        s.name
        for s in everything
        if s.name not in state
        or not (
            state[s.name]["passed"]
            or state[s.name].get("skipped")
            or state[s.name]["tries"] >= _TRIES
        )
    ]
    if open_steps:
        print(f"{len(open_steps)} steps are left: call again")
        return MORE
    if any(result.get("skipped") == "no NVIDIA GPU" for result in state.values()):
        print("no NVIDIA GPU: every step that needs one was skipped, and nothing was measured")
        return NO_GPU
    return 0 if all(r["passed"] for r in state.values()) else 1


def main() -> None:
    """Run one call."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path, help="folder for results; the next call goes on there")
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints/compact.safetensors")
    parser.add_argument("--seconds", type=float, default=CALL_SECONDS, help="of this call")
    parser.add_argument("--step", help="run this one alone, for the campaign itself")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.step:
        run_here(out, options.checkpoint, options.step, options.seconds)
        return
    raise SystemExit(run(out, options.checkpoint.resolve(), options.seconds))


if __name__ == "__main__":
    main()
