"""Latency of every step and of the ensembles, one request at a time, behind a real server.

What is timed is verified against PyTorch in float32 first. Beside each figure stands the floor:
the networks' operations over the matrix rate that the same run measured. For the ensembles the
server's own share is the time that is none of the steps' compute, by Triton's statistics.

    python benchmarks/latency.py --model-repository model_repository --checkpoint FILE
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    RESULTS,
    STEPS,
    SYSTEM,
    counters,
    environment,
    machine_line,
    matrix_rates,
    per_step,
    percentiles,
    table,
    write_results,
)
from PIL import Image
from skimage import data
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from tritonclient import grpc

from pikfix.evaluation.parity import compare
from pikfix.layers.sizes import working_size
from pikfix.serving.server import start_server
from pikfix.systems.base import Case
from pikfix.systems.chain import run_step
from pikfix.systems.pikfix.networks import PYRAMID_LEVELS, PikFix, load_checkpoint

MIN_PSNR = 45.0
NETWORKS = (*SYSTEM.step_names, "pikfix")


def networks_flops(model: PikFix, side: int) -> dict[str, float]:
    """GFLOP of each sub-net for one photo, counted without computing."""
    working = working_size(side, side)
    found = {}
    with FakeTensorMode():
        fake = PikFix(model.config).eval()
        known = {
            "photo_l": torch.empty(1, 1, side, side),
            "reference_lab": torch.empty(1, 1, 3, *working),
        }
        for spec in SYSTEM.steps(model.config):
            with FlopCounterMode(display=False) as counter:
                known |= run_step(spec.module(fake), spec, known)
            found[spec.name] = counter.get_total_flops() / 1e9
    if model.config.similarity == "multi":
        # The counter does not know the fused warp: two products with the N x M map.
        for level in range(1, PYRAMID_LEVELS + 1):
            queries = (working[0] >> level + 1) * (working[1] >> level + 1)
            keys = queries
            width = model.config.feature_channels + model.config.warped_channels
            found["similarity"] += 2 * queries * keys * width / 1e9
    found["pikfix"] = sum(found.values())
    return found


def infer_input(name: str, values: np.ndarray) -> grpc.InferInput:
    """A request's tensor."""
    made = grpc.InferInput(name, list(values.shape), "BYTES" if values.dtype == object else "FP32")
    made.set_data_from_numpy(values)
    return made


def jpeg(side: int, *, grey: bool) -> bytes:
    """A sample photo at a size, as a JPEG file."""
    picture = Image.fromarray(data.astronaut() if grey else data.coffee())
    buffer = io.BytesIO()
    picture.resize((side, side)).convert("L" if grey else "RGB").save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def requests_of(
    model: PikFix, client: grpc.InferenceServerClient, side: int
) -> dict[str, dict[str, np.ndarray]]:
    """Inputs of batch 1 for every model at one size; each step's come from the steps before it."""
    reference = working_size(side, side)
    known = {
        name: value.numpy()
        for name, value in SYSTEM.sample_inputs(
            np.random.default_rng(0), Case(1, 1, (side, side), reference)
        ).items()
    }
    known["photo"] = np.array([[jpeg(side, grey=True)]], dtype=object)
    known["reference"] = np.array([[jpeg(reference[0], grey=False)]], dtype=object)
    found = {}
    decode, encode = SYSTEM.python_steps
    for spec in (decode, *SYSTEM.steps(model.config), encode):
        names = [t.name for t in spec.inputs if not t.optional or t.name == "reference"]
        found[spec.name] = {name: known[name] for name in names}
        answer = client.infer(spec.name, [infer_input(n, known[n]) for n in names])
        for tensor in spec.outputs:
            # The photo's own tensors stay those that the networks are verified with.
            if spec is not decode or tensor.name == "photo_info":
                known[tensor.name] = answer.as_numpy(tensor.name)
    # By itself it would run out of places for photos, which encode_photo gives back.
    del found[decode.name]
    for ensemble in SYSTEM.ensembles:
        names = [t.name for t in ensemble.inputs if t.name != "options"]
        found[ensemble.name] = {name: known[name] for name in names}
    return found


def verify(model: PikFix, client: grpc.InferenceServerClient) -> dict[str, float]:
    """PSNR in dB of what the server answers against PyTorch in float32; ValueError if too low."""
    drawn = SYSTEM.sample_inputs(np.random.default_rng(1), Case(1, 1, (256, 192), (160, 96)))
    inputs = {name: drawn[name] for name in ("photo_l", "reference_lab")}
    with torch.no_grad():
        expected = model(inputs["photo_l"], inputs["reference_lab"])
    answer = client.infer("pikfix", [infer_input(n, v.numpy()) for n, v in inputs.items()])
    found = {}
    for name in ("restored_l", "ab"):
        psnr = compare(getattr(expected, name).numpy(), answer.as_numpy(name)).psnr
        if psnr < MIN_PSNR:
            raise ValueError(f"{name} is {psnr:.1f} dB from PyTorch's: not timing wrong results")
        found[name] = psnr
    return found


def time_requests(run: Callable[[], Any], seconds: float, least: int = 5) -> list[float]:
    """Seconds of each of at least `least` calls, one after the other."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Verify, then time every model at every size and batch."""
    model = load_checkpoint(options.checkpoint)
    manifest = json.loads((options.model_repository / "manifest.json").read_text())
    rates = matrix_rates()
    precision = manifest["precision"] if manifest["precision"] in rates else "fp32"
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    with (
        start_server(options.model_repository, supervise=False) as server,
        grpc.InferenceServerClient(server.grpc_url) as client,
    ):
        verified = verify(model, client)
        for side in options.sides:
            flops = networks_flops(model, side)
            requests = requests_of(model, client, side)
            for name, arrays in requests.items():
                one = 0.0
                for batch in options.batches:
                    if one * batch > options.longest:
                        skipped.append(f"{name} {side} px, batch {batch}: {one * batch:.1f} s each")
                        continue
                    inputs = [
                        infer_input(n, np.repeat(a, batch, axis=0)) for n, a in arrays.items()
                    ]
                    try:
                        client.infer(name, inputs)  # warm-up, outside times and statistics
                        before = counters(server.grpc_url)
                        times = time_requests(
                            lambda m=name, i=inputs: client.infer(m, i),
                            options.seconds,
                            5 if one * batch < 1 else 2,
                        )
                    except grpc.InferenceServerException as error:
                        skipped.append(f"{name} {side} px, batch {batch}: {error}")
                        continue
                    steps = per_step(before, counters(server.grpc_url))
                    row = {"model": name, "side": side, "batch": batch, **percentiles(times)}
                    one = one or row["p50"] / 1000
                    if name in NETWORKS:
                        row["gflop"] = flops[name] * batch
                        row["floor_ms"] = 1000 * row["gflop"] / rates[precision]
                    if name not in STEPS:
                        compute = sum(step["compute_ms"] for step in steps.values())
                        mean = 1000 * float(np.mean(times))
                        row["steps_ms"] = {n: s["compute_ms"] for n, s in steps.items()}
                        row["overhead_ms"] = mean - compute
                        row["overhead_share"] = (mean - compute) / compute
                    rows.append(row)
                    print(f"{name:13} {side:5} x{batch} {row['p50']:9.1f} ms", flush=True)
    return {
        "environment": environment(options.model_repository),
        "matrix_gflops": rates,
        "floor_precision": precision,
        "verified_psnr": verified,
        "rows": rows,
        "skipped": skipped,
    }


def markdown(result: dict[str, Any]) -> str:
    """The report's text."""
    header = ["model", "px", "batch", "p50 ms", "p95", "p99", "n", "floor ms", "server ms", "%"]
    body = [
        [
            row["model"],
            row["side"],
            row["batch"],
            row["p50"],
            row["p95"],
            row["p99"],
            row["count"],
            row.get("floor_ms"),
            row.get("overhead_ms"),
            100 * row["overhead_share"] if "overhead_share" in row else None,
        ]
        for row in result["rows"]
    ]
    files = [step.name for step in SYSTEM.python_steps]
    within = [
        [row["side"], row["batch"], *(row["steps_ms"].get(name) for name in files)]
        for row in result["rows"]
        if files[0] in row.get("steps_ms", {})
    ]
    psnr = ", ".join(f"{name} {value:.1f} dB" for name, value in result["verified_psnr"].items())
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in result["matrix_gflops"].items())
    skipped = "".join(f"- {line}\n" for line in result["skipped"]) or "- none\n"
    return (
        "# Latency, one request at a time\n\n"
        f"{table(header, body)}\n"
        f"{machine_line(result['environment'])}. Square photos, one reference at "
        "the scale where they are matched; gRPC on loopback. Verified against PyTorch in "
        f"float32: {psnr}. Floor: operations over the matrix rate of the same run (GFLOP/s: "
        f"{rates}; {result['floor_precision']} taken). Server: mean time less the steps' compute "
        "by Triton's statistics, and its share of that compute.\n\n"
        f"Left out, with the seconds that one takes or the server's answer:\n\n{skipped}\n"
        "Reading and writing within `pikfix_photo`, mean compute by Triton's statistics:\n\n"
        f"{table(['px', 'batch', *files], within)}"
    )


def plot(result: dict[str, Any], path: Path) -> None:
    """Time at batch 1 over the side, with the networks' floor."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    rows = [row for row in result["rows"] if row["batch"] == 1]
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        axes.plot([r["side"] for r in mine], [r["p50"] for r in mine], marker="o", label=name)
    floor = [row for row in rows if row["model"] == "pikfix"]
    axes.plot(
        [r["side"] for r in floor], [r["floor_ms"] for r in floor], "k--", label="floor of pikfix"
    )
    axes.set(xscale="log", yscale="log", xlabel="side of the photo, pixels", ylabel="p50, ms")
    axes.set_xticks(sorted({row["side"] for row in rows}))
    axes.get_xaxis().set_major_formatter(mpl.ticker.ScalarFormatter())
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/compact.safetensors"))
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=0.7, help="per combination, at least")
    parser.add_argument("--longest", type=float, default=4.0, help="leave out longer requests, s")
    parser.add_argument("--name", default="latency", help="of the result files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = measure(options)
    write_results(options.out / options.name, result, markdown(result))
    plot(result, options.out / f"{options.name}.png")


if __name__ == "__main__":
    main()
