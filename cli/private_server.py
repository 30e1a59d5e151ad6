"""A server for the length of one command, and signals while it starts."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that a starting server is ended."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def private_server(model_repository: Path) -> Iterator[str]:
    """Run a server on free loopback ports and give ``host:port`` of its gRPC.

    Raises:
        ServingError: it cannot be started; the line says why and what to do.
    """
    from pikfix.serving.server import start_server

    with start_server(model_repository, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server.grpc_url
