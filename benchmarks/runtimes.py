"""Throughput of `pikfix` on several exports of one checkpoint, beside plain eager PyTorch.

All servers run at once and are asked in turns, so that a slow minute of the machine meets all of
them; each answer was verified first. With --perf-analyzer NVIDIA's own load tool is asked too.

    python benchmarks/runtimes.py CHECKPOINT --repository ort=DIR --repository bf16=DIR
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, SYSTEM, environment, machine_line, matrix_rates, table, write_results
from latency import infer_input, networks_flops, verify
from tritonclient import grpc

from pikfix.serving.server import start_server
from pikfix.systems.base import Case
from pikfix.systems.pikfix.networks import PikFix, load_checkpoint

MIN_ANSWERS = 5
"""Fewer say little of a rate."""


def closed_loop(url: str, arrays: dict[str, np.ndarray], users: int, seconds: float) -> float:
    """Requests per second of users who send the next one when the last is answered.

    Counted from the first answer to the last one within `seconds`, all users being at it
    throughout: a few requests take that long, so that starting and ending would count.
    """
    answered: list[float] = []
    over = threading.Event()

    def user() -> None:
        with grpc.InferenceServerClient(url) as client:
            inputs = [infer_input(name, value) for name, value in arrays.items()]
            while not over.is_set():
                client.infer("pikfix", inputs)
                answered.append(time.perf_counter())

    threads = [threading.Thread(target=user) for _ in range(users)]
    for thread in threads:
        thread.start()
    over.wait(seconds)
    times = sorted(answered)
    over.set()
    for thread in threads:
        thread.join()
    if len(times) < MIN_ANSWERS:
        raise SystemExit(f"{len(times)} answers in {seconds:g} s: raise --seconds")
    return (len(times) - 1) / (times[-1] - times[0])


def eager(model: PikFix, arrays: dict[str, np.ndarray], seconds: float) -> float:
    """Photos per second of the checkpoint called in a Python process, float32."""
    tensors = [torch.from_numpy(value) for value in arrays.values()]
    count, start = 0, time.perf_counter()
    with torch.inference_mode():
        while time.perf_counter() - start < seconds:
            model(*tensors)
            count += 1
    return count / (time.perf_counter() - start)


def perf_analyzer(
    binary: Path, url: str, arrays: dict[str, np.ndarray], users: int, milliseconds: int
) -> float:
    """Requests per second by NVIDIA's perf_analyzer, on the same tensors.

    Its own random floats hold NaN, which the server refuses, and zeros are quicker than photos.
    """
    with tempfile.TemporaryDirectory() as folder:
        found, data = Path(folder) / "report.csv", Path(folder) / "inputs"
        data.mkdir()
        shapes = []
        for name, array in arrays.items():
            (data / name).write_bytes(array.tobytes())
            shapes += ["--shape", f"{name}:{','.join(map(str, array.shape[1:]))}"]
        done = subprocess.run(
            [
                str(binary), "-m", "pikfix", "-u", url, "-i", "grpc", "-b", "1",
                *shapes, "--input-data", str(data), "--concurrency-range", str(users),
                "--measurement-interval", str(milliseconds),
                "--stability-percentage", "50", "--max-trials", "3",
                "-f", str(found),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=600,
        )  # fmt: skip
        if not found.is_file():
            raise RuntimeError(f"perf_analyzer gave no report: {done.stdout} {done.stderr}")
        with found.open(encoding="utf-8") as file:
            return float(next(csv.DictReader(file))["Inferences/Second"])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Verify every server, then measure in turns."""
    repositories = {
        name: Path(folder) for name, folder in (text.split("=", 1) for text in options.repository)
    }
    model = load_checkpoint(options.checkpoint)
    sides = (options.side, options.side)
    arrays = {
        name: value.numpy()
        for name, value in SYSTEM.sample_inputs(
            np.random.default_rng(0), Case(1, 1, sides, sides)
        ).items()
        if name in ("photo_l", "reference_lab")
    }
    result: dict[str, Any] = {
        "side": options.side,
        "users": options.users,
        "gflop": networks_flops(model, options.side)["pikfix"],
        "matrix_gflops": matrix_rates(),
        "environment": environment(next(iter(repositories.values()))),
        "repositories": {n: environment(p)["repository"] for n, p in repositories.items()},
        "verified_psnr": {},
        "perf_analyzer": {},
    }
    torch.set_flush_denormal(True)
    with ExitStack() as stack:
        runs: dict[str, Callable[[], float]] = {}
        urls = {}
        for name, folder in repositories.items():
            server = stack.enter_context(start_server(folder, supervise=False))
            urls[name] = server.grpc_url
            with grpc.InferenceServerClient(server.grpc_url) as client:
                result["verified_psnr"][name] = verify(model, client)
            runs[name] = lambda url=server.grpc_url: closed_loop(
                url, arrays, options.users, options.seconds
            )
        runs["eager fp32"] = lambda: eager(model, arrays, options.seconds)
        eager(model, arrays, 0.1)  # once; the servers are warm from being verified
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(options.rounds):
            for name, run in runs.items():
                rates[name].append(run())
                print(f"{name:12} {rates[name][-1]:.3f} photos/s", flush=True)
        if options.perf_analyzer:
            for name, url in urls.items():
                try:
                    rate = perf_analyzer(
                        options.perf_analyzer, url, arrays, options.users, options.interval
                    )
                except RuntimeError as error:
                    print(error, flush=True)
                    continue
                result["perf_analyzer"][name] = rate
                print(f"perf_analyzer {name}: {rate:.3f} photos/s", flush=True)
                # A comparison is fair only at one time.
                rates[f"{name} again"] = [runs[name]()]
    result["photos_per_second"] = {n: statistics.median(values) for n, values in rates.items()}
    result["rounds"] = rates
    return result


def markdown(result: dict[str, Any]) -> str:
    """The report's text."""
    speeds = result["photos_per_second"]
    first = next(iter(result["repositories"]))
    body = [
        [
            name,
            f"{speed:.3f}",
            f"{speed / speeds[first]:.2f}",
            f"{speed / speeds['eager fp32']:.2f}",
            f"{result['gflop'] * speed:.0f}",
        ]
        for name, speed in speeds.items()
        if not name.endswith(" again")
    ]
    outside = [
        [
            name,
            f"{rate:.3f}",
            f"{speeds[name]:.3f}",
            f"{100 * (rate / speeds[name] - 1):+.0f}",
            f"{speeds[name + ' again']:.3f}",
            f"{100 * (rate / speeds[name + ' again'] - 1):+.0f}",
        ]
        for name, rate in result["perf_analyzer"].items()
    ]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in result["matrix_gflops"].items())
    psnr = "; ".join(
        f"{name}: " + ", ".join(f"{t} {value:.1f} dB" for t, value in found.items())
        for name, found in result["verified_psnr"].items()
    )
    header = ["", "photos/s", f"x {first}", "x eager fp32", "GFLOP/s"]
    text = (
        f"# Throughput of `pikfix` by runtime\n\n{table(header, body)}\n"
        f"{result['side']} x {result['side']} photo and reference, {result['gflop']:.0f} GFLOP, "
        f"{result['users']} concurrent requests, median of "
        f"{len(result['rounds'][first])} rounds in turns; the client is on the same cores. "
        f"{machine_line(result['environment'])}. Matrix products in the same run, GFLOP/s: "
        f"{rates}. Verified against PyTorch in float32: {psnr}.\n"
    )
    if outside:
        text += (
            "\nNVIDIA's perf_analyzer on the same servers and tensors, against the rounds above, "
            "and against one more round right after it:\n\n"
        )
        header = [
            "",
            "perf_analyzer/s",
            "rounds/s",
            "difference %",
            "right after/s",
            "difference %",
        ]
        text += table(header, outside)
    return text


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--repository", action="append", required=True, help="NAME=DIR")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--users", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20.0, help="per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--perf-analyzer", type=Path, help="its binary")
    parser.add_argument("--interval", type=int, default=15000, help="of perf_analyzer, in ms")
    parser.add_argument("--name", default="runtimes", help="of the result files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = measure(options)
    write_results(options.out / options.name, result, markdown(result))


if __name__ == "__main__":
    main()
