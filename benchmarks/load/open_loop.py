"""Open-loop load: Poisson arrivals, latency from the intended send, a cap on what is in flight.

Arrivals do not wait for answers, as users do not wait for each other. A request counts from the
moment it was meant to be sent, also where the sender itself was late (no coordinated omission).
Above the cap a request is skipped and counted, never delayed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Send = Callable[[int], Awaitable[None]]
"""Sends request number n; raises what the server refused or failed it with."""


@dataclass
class Outcome:
    """What became of one run.

    latencies: seconds from the intended send, of what was answered.
    refused: seconds until the error, of what was not; errors: how often, by reason; slowest: the
        longest wait for each.
    finished: when each answer came, in seconds since the start.
    """

    rate: float
    seconds: float
    sent: int = 0
    skipped: int = 0
    elapsed: float = 0.0
    latencies: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    most_late: float = 0.0

    def goodput(self, objective: float) -> float:
        """Answers within `objective` seconds, per second of the run."""
        return sum(latency <= objective for latency in self.latencies) / self.elapsed

    def to_dict(self, objective: float) -> dict[str, Any]:
        """Figures for a report; times in milliseconds."""

        def at(values: list[float], percent: float) -> float | None:
            return 1000 * float(np.percentile(values, percent)) if values else None

        return {
            "rate": self.rate,
            "seconds": self.elapsed,
            "sent": self.sent,
            "skipped": self.skipped,
            "answered": len(self.latencies),
            "p50": at(self.latencies, 50),
            "p95": at(self.latencies, 95),
            "p99": at(self.latencies, 99),
            "goodput": self.goodput(objective),
            "throughput": len(self.latencies) / self.elapsed,
            "errors": dict(self.errors),
            "slowest_refusal": at(self.refused, 100),
            "slowest_by_reason": {kind: 1000 * s for kind, s in self.slowest.items()},
            "latest_send": 1000 * self.most_late,
        }


def reason(error: BaseException) -> str:
    """What an error is counted under."""
    code = getattr(error, "code", None)
    return type(error).__name__ + (f" {code}" if isinstance(code, str) else "")


async def run_open_loop(
    send: Send, *, rate: float, seconds: float, in_flight: int, seed: int = 0
) -> Outcome:
    """Send at Poisson arrivals for a while and wait for every answer.

    Args:
        send: sends one request.
        rate: mean arrivals per second.
        seconds: for how long requests arrive.
        in_flight: above so many unanswered requests, arrivals are skipped.
        seed: of the arrivals.
    """
    outcome = Outcome(rate, seconds)
    arrivals = random.Random(seed)
    start = time.perf_counter()
    pending: set[asyncio.Task[None]] = set()

    async def one(number: int, intended: float) -> None:
        try:
            await send(number)
        except Exception as error:  # every failure is a figure of the report
            kind, waited = reason(error), time.perf_counter() - intended
            outcome.errors[kind] += 1
            outcome.refused.append(waited)
            outcome.slowest[kind] = max(waited, outcome.slowest.get(kind, 0.0))
        else:
            now = time.perf_counter()
            outcome.latencies.append(now - intended)
            outcome.finished.append(now - start)

    intended = start
    number = 0
    while True:
        intended += arrivals.expovariate(rate)
        if intended - start > seconds:
            break
        await asyncio.sleep(max(0.0, intended - time.perf_counter()))
        outcome.most_late = max(outcome.most_late, time.perf_counter() - intended)
        if len(pending) >= in_flight:
            outcome.skipped += 1
            continue
        outcome.sent += 1
        task = asyncio.create_task(one(number, intended))
        pending.add(task)
        task.add_done_callback(pending.discard)
        number += 1
    if pending:
        await asyncio.wait(pending)
    outcome.elapsed = max(seconds, time.perf_counter() - start)
    return outcome
