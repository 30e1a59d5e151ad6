"""What every request passes before any of it is read further: name, origin, token, size."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pikfix.gateway.metrics import Metrics
from pikfix.gateway.problems import Problem
from pikfix.gateway.settings import MEBIBYTE, Settings
from pikfix.gateway.tokens import Tokens

PROTECTED = "/v1/"
"""Paths that need a token, where there are any."""

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_DRAINED_BYTES = 16 * MEBIBYTE
_DRAINED_SECONDS = 5.0
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}


def too_large(limit: int) -> Problem:
    """An upload with more bytes than are taken."""
    return Problem(
        413,
        "upload_too_large",
        "The upload is too large",
        f"an upload may have {limit / MEBIBYTE:g} MiB: send a smaller file or fewer references",
    )


class Door:
    """Answers what may not come in, and watches over the bodies of what may.

    Args:
        app: what is behind it.
        settings: names, origins and limits.
        tokens: who may come in; None for everybody.
        metrics: told of the bytes that come in and of every answer.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, tokens: Tokens | None, metrics: Metrics
    ) -> None:
        self._app = app
        self._settings = settings
        self._tokens = tokens
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        body = _Body(receive, headers, self._settings, self._metrics)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                await body.drain()
                self._enter(message, scope)
            await send(message)

        try:
            self._check(scope, headers)
        except Problem as problem:
            await problem.response()(scope, receive, answer)
            return
        await self._app(scope, body, answer)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        names = self._settings.hosts
        if names and _host_name(host) not in names:
            raise Problem(
                421,
                "wrong_host",
                "This name is not answered",
                f"open it as one of {', '.join(names)}, or name it with --host-name",
            )
        origin = headers.get("origin")
        known = (
            origin is None or urlsplit(origin).netloc == host or origin in self._settings.origins
        )
        if scope["method"] not in _SAFE_METHODS and not known:
            raise Problem(
                403,
                "foreign_origin",
                "Pages of other sites may not do this",
                "call it from its own page or a program, or allow the site with --origin",
            )
        scope["pikfix.owner"] = ""
        if self._tokens is not None and scope["path"].startswith(PROTECTED):
            name = self._tokens.name_of(headers.get("authorization"))
            if name is None:
                raise Problem(
                    401,
                    "wrong_token",
                    "A token is needed",
                    "send the header Authorization: Bearer TOKEN with a token that you were given",
                    headers={"WWW-Authenticate": "Bearer"},
                )
            scope["pikfix.owner"] = name
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.upload_bytes:
            raise too_large(self._settings.upload_bytes)

    def _enter(self, message: Message, scope: Scope) -> None:
        answered = MutableHeaders(scope=message)
        for name, value in _SECURITY_HEADERS.items():
            answered.setdefault(name, value)
        # The pattern, not the path: each restoration has a path of its own.
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(scope["method"], route, str(message["status"])).inc()


def _host_name(host: str) -> str:
    with contextlib.suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def loopback_names(names: Iterable[str] = ()) -> tuple[str, ...]:
    """The names that a gateway on loopback answers to, and further ones."""
    return tuple(dict.fromkeys(("localhost", "127.0.0.1", "::1", *names)))


class _Body:
    """``receive`` with a limit of bytes, of pauses, and of time.

    Raises (when called):
        Problem: 413 or 408.
    """

    def __init__(
        self, receive: Receive, headers: Headers, settings: Settings, metrics: Metrics
    ) -> None:
        self._receive = receive
        self._settings = settings
        self._metrics = metrics
        self._bytes = 0
        self._began = time.monotonic()
        # Who waits for "100 Continue" has not sent a body that is in the way.
        self._asked = "100-continue" not in headers.get("expect", "").lower()
        sent = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._more = sent

    async def __call__(self) -> Message:
        if not self._more:
            return await self._receive()
        self._asked = True
        left = self._settings.upload_seconds - (time.monotonic() - self._began)
        try:
            message = await asyncio.wait_for(
                self._receive(), max(min(left, self._settings.idle_seconds), 0.001)
            )
        except asyncio.TimeoutError as error:
            self._more = False  # nor is it waited for any longer before the answer
            raise Problem(
                408,
                "upload_too_slow",
                "The upload stopped",
                "nothing came for too long: send it again over a faster connection",
                headers={"Connection": "close"},
            ) from error
        self._note(message)
        if self._bytes > self._settings.upload_bytes:
            raise too_large(self._settings.upload_bytes)
        return message

    def _note(self, message: Message) -> None:
        received = len(message.get("body", b""))
        self._bytes += received
        self._metrics.received.inc(received)
        self._more = message["type"] == "http.request" and message.get("more_body", False)

    async def drain(self) -> None:
        """Read what is left, up to a limit: who is still sending would not hear the answer."""
        if not self._asked:
            return
        end = time.monotonic() + _DRAINED_SECONDS
        most = self._bytes + _DRAINED_BYTES
        while self._more and self._bytes < most and time.monotonic() < end:
            try:
                message = await asyncio.wait_for(self._receive(), end - time.monotonic())
            except asyncio.TimeoutError:
                return
            self._note(message)
