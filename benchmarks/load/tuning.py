"""What the settings in the configs do to throughput and latency, one changed at a time.

Each variant is a copy of the repository with one setting changed, served by itself and given the
same photos by the same number of clients, who send the next photo when one is answered; before
that by one client alone. The repository as it is runs first, in the middle and last: what lies
between those three is noise.

    python benchmarks/load/tuning.py --model-repository model_repository
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import (
    RESULTS,
    counters,
    environment,
    machine_line,
    per_step,
    percentiles,
    table,
    write_results,
)
from tritonclient.grpc import model_config_pb2 as pb

from photos import MIX, Mix, Sample
from pikfix.client import AsyncPikFixClient, Retry
from pikfix.export.configs import render, set_parameter
from pikfix.export.repository import parse_config
from pikfix.serving.server import start_server
from pikfix.systems.registry import system_of

Configs = dict[str, pb.ModelConfig]
NETWORKS = system_of("pikfix").step_names

Change = Callable[[Configs], None]


def unchanged(configs: Configs) -> None:
    """The repository as it is."""


def batching(delay_us: int, preferred: int | None = None) -> Change:
    """How long the sub-nets' batchers wait, and for how many."""

    def change(configs: Configs) -> None:
        for name in NETWORKS:
            batcher = configs[name].dynamic_batching
            batcher.max_queue_delay_microseconds = delay_us
            if preferred:
                batcher.preferred_batch_size.append(preferred)

    return change


def instances(models: tuple[str, ...], count: int, threads: int | None = None) -> Change:
    """Instances of some models, each with as many threads as it finds cores, or with so many."""

    def change(configs: Configs) -> None:
        for name in models:
            configs[name].instance_group[0].count = count
            if threads is not None:
                set_parameter(configs[name], "intra_op_thread_count", threads)

    return change


def buckets(sides: str) -> Change:
    """Which sides photos are padded to."""
    return lambda configs: set_parameter(configs["decode_photo"], "bucket_sides", sides)


def equal_priority(configs: Configs) -> None:
    """No sub-net gives way to a later one."""
    for name in NETWORKS:
        configs[name].parameters.pop("nice", None)


CORES = len(os.sched_getaffinity(0))
PYTHON_STEPS = ("decode_photo", "encode_photo")
VARIANTS: tuple[tuple[str, str, Change], ...] = (
    ("", "as exported", unchanged),
    ("batching", "no delay", batching(0)),
    ("batching", "delay of 5 ms", batching(5_000)),
    ("batching", "delay of 50 ms", batching(50_000)),
    ("batching", "one photo at a time", batching(0, preferred=1)),
    ("instances", "one of each sub-net", instances(NETWORKS, 1)),
    ("instances", "three of each sub-net", instances(NETWORKS, 3)),
    ("threads", "one for each instance", instances(NETWORKS, 2, threads=1)),
    ("threads", "all cores for each instance", instances(NETWORKS, 2, threads=CORES)),
    ("", "as exported, in the middle", unchanged),
    ("instances", "one of decode_photo and encode_photo", instances(PYTHON_STEPS, 1)),
    ("priority", "equal for all sub-nets", equal_priority),
    ("buckets", "multiples of 32", buckets("32")),
    ("buckets", "powers of two", buckets("128,256,512,1024,2048,4096")),
    ("", "as exported, at the end", unchanged),
)


def changed_copy(repository: Path, change: Change, folder: Path) -> Path:
    """Copy a repository and change its configs."""
    copy = shutil.copytree(repository, folder / "models")
    files = {path.parent.name: path for path in copy.glob("*/config.pbtxt")}
    configs = {name: parse_config(path.read_text()) for name, path in files.items()}
    change(configs)
    for name, path in files.items():
        path.write_text(render(configs[name]))
    return Path(copy)


async def closed_loop(url: str, photos: list[Sample], clients: int) -> tuple[float, list[float]]:
    """Seconds for all photos, and of each, when so many are on their way at a time."""
    left = iter(photos)
    latencies: list[float] = []
    async with AsyncPikFixClient(url, retry=Retry.never()) as client:

        async def one_client() -> None:
            for sample in left:
                start = time.perf_counter()
                await client.restore(sample.photo, sample.reference)
                latencies.append(time.perf_counter() - start)

        start = time.perf_counter()
        await asyncio.gather(*(one_client() for _ in range(clients)))
        return time.perf_counter() - start, latencies


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Serve every variant in turn."""
    mix = Mix(seed=1)
    photos = [mix.draw() for _ in range(options.photos)]
    rows = []
    for setting, name, change in VARIANTS:
        if setting and options.settings and setting not in options.settings:
            continue
        with tempfile.TemporaryDirectory(prefix="pikfix-tuning-") as folder:
            copy = changed_copy(options.model_repository, change, Path(folder))
            with start_server(copy, supervise=False) as server:
                asyncio.run(closed_loop(server.grpc_url, list(mix.all()), options.clients))
                _, alone = asyncio.run(closed_loop(server.grpc_url, photos[: options.alone], 1))
                before = counters(server.grpc_url)
                seconds, latencies = asyncio.run(
                    closed_loop(server.grpc_url, photos, options.clients)
                )
                steps = per_step(before, counters(server.grpc_url))
        rows.append(
            {
                "setting": setting,
                "variant": name,
                "photos_per_second": len(photos) / seconds,
                "alone": percentiles(alone),
                **percentiles(latencies),
                "steps": steps,
            }
        )
        print(
            f"{name:40} {rows[-1]['photos_per_second']:.3f} photos/s, "
            f"{rows[-1]['alone']['p50']:.0f} ms alone",
            flush=True,
        )
    return {
        "environment": environment(options.model_repository),
        "photos": options.photos,
        "clients": options.clients,
        "alone": options.alone,
        "mix": MIX,
        "rows": rows,
    }


def markdown(result: dict[str, Any]) -> str:
    """The report's text."""
    rows = result["rows"]
    usual = [row["photos_per_second"] for row in rows if not row["setting"]]
    mean = sum(usual) / len(usual)
    body = [
        [
            row["setting"],
            row["variant"],
            f"{row['photos_per_second']:.3f}",
            f"{100 * (row['photos_per_second'] / mean - 1):+.1f}",
            row["p50"],
            row["p95"],
            row["alone"]["p50"],
            f"{row['steps']['restore']['batch']:.2f}",
        ]
        for row in rows
    ]
    header = ["setting", "variant", "photos/s", "against as exported %", "p50 ms", "p95 ms",
              "p50 ms alone", "mean batch of restore"]  # fmt: skip
    noise = 100 * (max(usual) - min(usual)) / mean
    return (
        f"# Settings, one changed at a time\n\n{table(header, body)}\n"
        f"{result['photos']} photos of mixed sizes, {result['clients']} on their way at a time, "
        f"and {result['alone']} of them one after the other (alone); "
        f"the three runs as exported lie {noise:.1f} % apart, and smaller differences mean "
        f"nothing. {machine_line(result['environment'])}.\n"
    )


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--photos", type=int, default=48)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--alone", type=int, default=12, help="photos of one client alone")
    parser.add_argument("--settings", nargs="+", help="only these, beside the three as exported")
    parser.add_argument("--name", default="tuning", help="of the result files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = measure(options)
    write_results(options.out / options.name, result, markdown(result))


if __name__ == "__main__":
    main()
