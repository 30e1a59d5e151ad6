"""Locust on the gRPC client: a closed loop of users who wait for each photo.

    locust -f benchmarks/load/locustfile.py --host localhost:8001                  # with a web page
    locust -f benchmarks/load/locustfile.py --host localhost:8001 --headless -u 4 -t 1m

Closed loops adapt to a slow server and so hide queueing; `open_loop.py` does not.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from grpc.experimental import gevent as grpc_gevent

# Before any channel is made: gRPC's own threads would block all greenlets.
grpc_gevent.init_gevent()

# ruff: noqa: E402
from locust import User, between, task

sys.path.insert(0, str(Path(__file__).parent))
from photos import Mix
from pikfix.client import PikFixClient, PikFixError, Retry


class PhotoUser(User):
    """Sends photos of mixed sizes with a colour reference, with a pause between them."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        """Open one connection per user; nothing is repeated, so every refusal is counted."""
        self.mix = Mix(seed=id(self))
        self.client = PikFixClient(self.host or "localhost:8001", retry=Retry.never())

    def on_stop(self) -> None:
        """Close the connection."""
        self.client.close()

    @task
    def restore(self) -> None:
        """One photo; the report names its size."""
        sample = self.mix.draw()
        start = time.perf_counter()
        failure: Exception | None = None
        length = 0
        try:
            length = len(self.client.restore(sample.photo, sample.reference, timeout=60).data)
        except PikFixError as error:
            failure = error
        self.environment.events.request.fire(
            request_type="gRPC",
            name=f"restore {sample.width}x{sample.height}",
            response_time=1000 * (time.perf_counter() - start),
            response_length=length,
            exception=failure,
        )
