"""Runs the application in uvicorn until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from fastapi import FastAPI

_GRACE_S = 5
_BACKLOG = 512
_CONNECTIONS = 512


class _Server(uvicorn.Server):
    """uvicorn without its own handling of signals, which raises them again afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to :func:`serve`."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End; first of all the streams that would otherwise go on for as long as they may."""
        await self.config.app.state.gateway.restorer.let_go()  # type: ignore[union-attr]
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: an address or name, IPv4 or IPv6.
        port: TCP port; 0 takes a free one.

    Raises:
        OSError: the address is taken or none of this machine's; ``filename`` names it.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{host}:{port}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The address of a listening socket for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def make_server(app: FastAPI) -> uvicorn.Server:
    """Return the server of an application from :func:`~pikfix.gateway.create_app`."""
    config = uvicorn.Config(
        app,
        log_config=None,
        # A line for each request would hold nothing but numbers of restorations.
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE_S,
        ws="none",
    )
    return _Server(config)


def serve(
    app: FastAPI, listener: socket.socket, *, ready: Callable[[], None], signals: Sequence[int]
) -> bool:
    """Answer requests until a signal; uploads and answers under way get a few seconds to end.

    Args:
        app: from :func:`~pikfix.gateway.create_app`.
        listener: from :func:`listen`; closed at the end.
        ready: called once requests are answered.
        signals: what ends it; a second one ends it at once.

    Returns:
        Whether it was a signal that ended it; otherwise it could not start, and the log says why.
    """
    server = make_server(app)
    asked = False

    def stop() -> None:
        nonlocal asked
        server.force_exit = asked
        server.should_exit = asked = True

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, stop)
        work = asyncio.create_task(server.serve(sockets=[listener]))
        while not (server.started or work.done()):
            await asyncio.sleep(0.01)
        if server.started:
            ready()
        await work

    asyncio.run(run())
    return asked
