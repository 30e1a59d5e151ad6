"""A server for the length of one command, and signals while it starts."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from pikfix.cli.problems import stop_signals


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let other signals unwind the stack as Ctrl-C does, so that a starting server is ended."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    others = [number for number in stop_signals() if number != signal.SIGINT]
    before = {number: signal.signal(number, interrupt) for number in others}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def private_server(model_repository: Path) -> Iterator[str]:
    """Run a server on free loopback ports and give ``host:port`` of its gRPC.

    Raises:
        ServingError: it cannot be started; the line says why and what to do.
    """
    from pikfix.serving.server import start_server

    with start_server(model_repository, grpc_port=0, http_port=0, metrics_port=0) as server:
        yield server.grpc_url
