"""Times of GPU work: replays of CUDA graphs between events, medians; on a CPU, plain calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

_LEAST_MS = 0.5
"""Of what is between two events: shorter calls are repeated inside the graph."""
_RUNS = 500


def timed(call: Callable[[], Any], device: str, seconds: float) -> dict[str, Any]:
    """Milliseconds of one call: median, 10th and 90th percentile, best, runs.

    On a GPU the call is recorded in a CUDA graph, so that launches are not what is measured; where
    it cannot be recorded, the calls themselves are timed, and `graph` says so.
    """
    if device != "cuda":
        call()
        times = []
        end = time.perf_counter() + seconds
        while len(times) < 3 or (time.perf_counter() < end and len(times) < _RUNS):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1000)
        return _summary(times) | {"graph": False}
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    single = statistics.median(_events(call, 3))
    inner = max(1, min(50, round(_LEAST_MS / max(single, 1e-3))))
    replay, recorded = _recorded(call, inner)
    inner = inner if recorded else 1
    replay()
    torch.cuda.synchronize()
    runs = max(5, min(_RUNS, int(seconds * 1000 / max(single * inner, 1e-3))))
    return _summary([t / inner for t in _events(replay, runs)]) | {"graph": recorded}


def _recorded(call: Callable[[], Any], inner: int) -> tuple[Callable[[], Any], bool]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for _ in range(inner):
                call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        torch.cuda.synchronize()
        return call, False
    return graph.replay, True


def _events(call: Callable[[], Any], runs: int) -> list[float]:
    pairs = []
    for _ in range(runs):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        pairs.append((start, stop))
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) for start, stop in pairs]


def _summary(times: list[float]) -> dict[str, Any]:
    tenths = statistics.quantiles(times, n=10) if len(times) > 1 else times * 9
    return {
        "median": statistics.median(times),
        "p10": tenths[0],
        "p90": tenths[-1],
        "best": min(times),
        "runs": len(times),
    }
