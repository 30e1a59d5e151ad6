"""Capacity report of a real server under open-loop load of mixed photos.

Starts the server on a repository, raises the rate while p95 meets the objective, then offers
twice the capacity, looks how soon all is normal again, and can soak the server for minutes.

    python benchmarks/load/capacity.py --model-repository model_repository --objective 5
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import (
    RESULTS,
    STEPS,
    counters,
    environment,
    machine_line,
    per_step,
    table,
    write_results,
)
from open_loop import Outcome, run_open_loop

from photos import MIX, Mix
from pikfix.client import AsyncPikFixClient, Retry
from pikfix.serving.processes import tree
from pikfix.serving.server import RunningServer, start_server


class Memory:
    """Samples the resident memory of server and steps, and /dev/shm, in the background."""

    def __init__(self, server: RunningServer, every: float = 1.0) -> None:
        self.samples: list[dict[str, float]] = []
        self._server, self._every = server, every
        self._stop = threading.Event()
        self._start = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every):
            pid = self._server.server_pid
            if pid is None:
                self.samples.append({"t": time.monotonic() - self._start, "down": 1.0})
                continue
            sample = {"t": time.monotonic() - self._start}
            names = {pid: "server", **self._server.stubs()}
            for process in tree(pid):
                with contextlib.suppress(psutil.NoSuchProcess):
                    name = names.get(process.pid) or process.name()
                    sample[name] = _megabytes(process.pid)
            regions = Path("/dev/shm").glob("pikfix-*")
            sample["/dev/shm"] = sum(path.stat().st_blocks for path in regions) / 2048
            self.samples.append(sample)

    def totals(self) -> list[tuple[float, float]]:
        """Seconds and megabytes of server and steps together."""
        skip = ("t", "/dev/shm", "down")
        return [
            (s["t"], sum(value for name, value in s.items() if name not in skip))
            for s in self.samples
            if "down" not in s
        ]


def _megabytes(pid: int) -> float:
    """Memory that is the process's own: what it shares would count once per process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


async def offer(
    url: str,
    rate: float,
    seconds: float,
    *,
    in_flight: int,
    timeout: float,
    seed: int,
    scale: float,
) -> Outcome:
    """One open-loop run with the project's own client, which repeats nothing here."""
    mix = Mix(seed, scale)
    async with AsyncPikFixClient(url, retry=Retry.never()) as client:

        async def send(_: int) -> None:
            sample = mix.draw()
            await client.restore(sample.photo, sample.reference, timeout=timeout)

        return await run_open_loop(send, rate=rate, seconds=seconds, in_flight=in_flight, seed=seed)


class Bench:
    """Runs of one server, with Triton's statistics beside each."""

    def __init__(self, server: RunningServer, options: argparse.Namespace) -> None:
        self.server, self.options = server, options
        self.runs = 0

    def run(self, rate: float, seconds: float) -> tuple[dict[str, Any], Outcome]:
        """Offer a rate for a while; the report's row and the outcome itself."""
        before = counters(self.server.grpc_url)
        self.runs += 1
        outcome = asyncio.run(
            offer(
                self.server.grpc_url,
                rate,
                seconds,
                in_flight=self.options.in_flight,
                timeout=self.options.timeout,
                seed=self.runs,
                scale=self.options.scale,
            )
        )
        row = outcome.to_dict(self.options.objective)
        row["steps"] = per_step(before, counters(self.server.grpc_url))
        late = row["p95"] is None or row["p95"] > 1000 * self.options.objective
        row["met"] = not late and not row["errors"] and not row["skipped"]
        print(
            f"{rate:6.2f}/s for {seconds:.0f} s: p95 {row['p95'] or 0:.0f} ms, goodput "
            f"{row['goodput']:.2f}/s, errors {row['errors']}, skipped {row['skipped']}",
            flush=True,
        )
        return row, outcome

    def warm_up(self) -> float:
        """Every sample twice, two at a time; the seconds one takes in that closed loop."""
        mix = Mix(0, self.options.scale)

        async def all_of_them() -> float:
            async with AsyncPikFixClient(self.server.grpc_url, retry=Retry.never()) as client:
                gate = asyncio.Semaphore(2)

                async def one(sample: Any) -> None:
                    async with gate:
                        await client.restore(sample.photo, sample.reference)

                await asyncio.gather(*(one(sample) for sample in mix.all()))
                drawn = [mix.draw() for _ in range(self.options.probe)]
                start = time.perf_counter()
                await asyncio.gather(*(one(sample) for sample in drawn))
                return (time.perf_counter() - start) / len(drawn)

        return asyncio.run(all_of_them())


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Sweep, overload and soak, as asked for."""
    result: dict[str, Any] = {
        "environment": environment(options.model_repository),
        "objective_s": options.objective,
        "mix": MIX,
        "scale": options.scale,
        "sweep": [],
    }
    with start_server(options.model_repository, supervise=False) as server, Memory(server) as seen:
        bench = Bench(server, options)
        closed = 1 / bench.warm_up()
        print(f"closed loop of two: {closed:.2f} photos/s", flush=True)
        result["closed_loop_rate"] = closed
        for share in options.shares:
            row, _ = bench.run(share * closed, options.seconds)
            result["sweep"].append(row)
            if not row["met"] and any(r["met"] for r in result["sweep"]):
                break
        met = [row["rate"] for row in result["sweep"] if row["met"]]
        capacity = result["capacity"] = max(met, default=0.0)
        if options.overload and capacity:
            result["overload"] = _overload(bench, capacity, options)
        if options.soak:
            before = len(seen.samples)
            row, _ = bench.run(options.soak_share * (capacity or closed), options.soak)
            result["soak"] = {**row, "from_sample": before}
            _add_growth(result["soak"], seen.samples[before:], options.soak_from)
        minutes, megabytes = memory_by_step(seen.samples)
        result["memory"] = {"minutes": minutes, "megabytes": megabytes}
        result["server_up"] = server.is_running()
        result["dead_instances"] = server.dead_instances()
    return result


def _overload(bench: Bench, capacity: float, options: argparse.Namespace) -> dict[str, Any]:
    row, outcome = bench.run(2 * capacity, options.overload)
    # While the flood lasts: what is answered afterwards is its tail.
    in_time = [
        latency
        for latency, at in zip(outcome.latencies, outcome.finished, strict=True)
        if at <= options.overload and latency <= options.timeout
    ]
    row["goodput_in_flood"] = len(in_time) / options.overload
    row["goodput_share"] = row["goodput_in_flood"] / capacity
    after, _ = bench.run(0.5 * capacity, 10.0)
    row["afterwards"] = after
    row["healthy"] = bench.server.health().healthy
    return row


def _add_growth(
    row: dict[str, Any], samples: Sequence[dict[str, float]], start: float, window: float = 120.0
) -> None:
    """What two minutes at the end hold against two minutes from `start`.

    A step's memory rises with each photo and falls when it is given back, so that a mean says
    when photos came. What is held is the least of each process, and the peak is that of the sum.
    """
    first = samples[0]["t"]
    names = {key for sample in samples for key in sample} - {"t", "/dev/shm", "down"}

    def seen(low: float) -> list[dict[str, float]]:
        return [s for s in samples if low <= s["t"] - first < low + window]

    parts = seen(start), seen(samples[-1]["t"] - first + 1 - window)
    row["held_mb"] = [sum(min(s.get(n, 0.0) for s in part) for n in names) for part in parts]
    row["peak_mb"] = [max(sum(s.get(n, 0.0) for n in names) for s in part) for part in parts]
    row["shm_mb"] = [max(s["/dev/shm"] for s in part) for part in parts]
    row["held_growth"] = row["held_mb"][1] / row["held_mb"][0] - 1


def markdown(result: dict[str, Any]) -> str:
    """The report's text."""
    rows = [(f"{share}", row) for share, row in (("sweep", r) for r in result["sweep"])]
    if "overload" in result:
        rows.append(("2 x capacity", result["overload"]))
        rows.append(("right after", result["overload"]["afterwards"]))
    if "soak" in result:
        rows.append(("soak", result["soak"]))
    header = ["run", "sent/s", "s", "answered", "p50 ms", "p95", "p99", "goodput/s", "refused",
              "skipped", "slowest refusal ms"]  # fmt: skip
    body = [
        [
            name,
            f"{row['rate']:.2f}",
            row["seconds"],
            row["answered"],
            row["p50"],
            row["p95"],
            row["p99"],
            f"{row['goodput']:.2f}",
            ", ".join(f"{count} {kind}" for kind, count in row["errors"].items()) or "0",
            row["skipped"],
            ", ".join(f"{kind} {ms:.0f}" for kind, ms in row["slowest_by_reason"].items()),
        ]
        for name, row in rows
    ]
    steps = [
        [label, name, row["steps"][name]["queue_ms"], row["steps"][name]["compute_ms"],
         f"{row['steps'][name]['batch']:.2f}"]
        for label, row in rows
        for name in STEPS
        if name in row["steps"] and label != "right after"
    ]  # fmt: skip
    text = (
        "# Capacity under open-loop load\n\n"
        f"Highest rate with p95 under {result['objective_s']:g} s and nothing refused: "
        f"**{result['capacity']:.2f} photos/s** (`pikfix_photo`, files in, files out).\n\n"
        f"{table(header, body)}\n"
        f"{machine_line(result['environment'])}. Client on the same cores. Poisson arrivals, "
        "latency from the intended send; photos "
        + ", ".join(f"{w} x {h} ({share:.0%})" for w, h, share in result["mix"])
        + f" times {result['scale']:g}, one reference of 256 x 192.\n\n"
        f"Queue and compute per request, and mean batch, from Triton's statistics:\n\n"
        f"{table(['run', 'step', 'queue ms', 'compute ms', 'batch'], steps)}"
    )
    if "overload" in result:
        row = result["overload"]
        text += (
            f"\nAt twice the capacity: {row['goodput_in_flood']:.2f} photos/s answered within the "
            f"clients' deadline during the flood, {row['goodput_share']:.0%} of capacity; the "
            f"server {'stayed up' if result['server_up'] else 'went down'}.\n"
        )
    if "soak" in result:
        row = result["soak"]
        text += (
            f"\nSoak of {row['seconds']:.0f} s, from two minutes on against its last two minutes: "
            f"server and steps hold {row['held_mb'][0]:.0f} -> {row['held_mb'][1]:.0f} MB "
            f"({row['held_growth']:+.1%}; the least of each process), at their peak "
            f"{row['peak_mb'][0]:.0f} -> {row['peak_mb'][1]:.0f} MB, /dev/shm "
            f"{row['shm_mb'][0]:.1f} -> {row['shm_mb'][1]:.1f} MB.\n"
        )
    return text


def memory_by_step(
    samples: Sequence[dict[str, float]], window: float = 30.0
) -> tuple[list[float], dict[str, list[float]]]:
    """Minutes, and megabytes of all instances of each step, as means over `window` seconds."""
    groups: dict[int, list[dict[str, float]]] = {}
    for sample in samples:
        if "down" not in sample:
            groups.setdefault(int(sample["t"] // window), []).append(sample)
    names = sorted({_step_of(key) for sample in samples for key in sample} - {"t", "down"})
    megabytes = {
        name: [
            sum(v for s in group for k, v in s.items() if _step_of(k) == name) / len(group)
            for group in groups.values()
        ]
        for name in names
    }
    return [(number + 0.5) * window / 60 for number in groups], megabytes


def _step_of(instance: str) -> str:
    """`restore` of `restore_0_1`."""
    return re.sub(r"_\d+_\d+$", "", instance)


def plot(result: dict[str, Any], path: Path) -> None:
    """Latency over the offered rate, and memory over time."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rows = sorted(result["sweep"], key=lambda row: row["rate"])
    for percentile in ("p50", "p95", "p99"):
        left.plot([r["rate"] for r in rows], [r[percentile] for r in rows], "o-", label=percentile)
    left.axhline(1000 * result["objective_s"], color="k", ls="--", label="objective")
    left.set(xlabel="offered photos/s", ylabel="ms from the intended send", yscale="log")
    left.legend()
    megabytes = result["memory"]["megabytes"]
    right.stackplot(result["memory"]["minutes"], list(megabytes.values()), labels=list(megabytes))
    right.set(xlabel="minutes", ylabel="MB, mean of 30 s")
    right.legend(*(reversed(part) for part in right.get_legend_handles_labels()), fontsize=7,
                 loc="center left", bbox_to_anchor=(1.0, 0.5))  # fmt: skip
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--objective", type=float, default=5.0, help="p95 in seconds")
    parser.add_argument("--timeout", type=float, default=20.0, help="of a client, in seconds")
    parser.add_argument("--seconds", type=float, default=20.0, help="per rate of the sweep")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9, 1.0, 1.1])
    parser.add_argument("--probe", type=int, default=16, help="photos of the closed loop")
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--scale", type=float, default=1.0, help="of the photos' sides")
    parser.add_argument("--overload", type=float, default=60.0, help="seconds; 0 leaves it out")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds; 0 leaves it out")
    parser.add_argument("--soak-from", type=float, default=120.0, help="growth counts from here")
    parser.add_argument("--soak-share", type=float, default=0.7, help="of capacity")
    parser.add_argument("--name", default="capacity", help="of the result files")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = report(options)
    write_results(options.out / options.name, result, markdown(result))
    plot(result, options.out / f"{options.name}.png")


if __name__ == "__main__":
    main()
