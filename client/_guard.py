"""Where a client may be used, what it may be given, and errors that nobody mapped.

gRPC and asyncio raise exceptions of their own where a client is used in another process or event
loop than its own, after it was closed, or while Python shuts down. A caller catches one tree.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from pikfix.client._address import Address
from pikfix.client._errors import (
    ClientClosedError,
    ForkedClientError,
    PikFixError,
    RequestCancelledError,
    WrongLoopError,
)
from pikfix.client._options import Limits, Retry, Timeout, Tls

_HEADER_NAME = re.compile(r"[0-9a-z_.-]+")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")

# Longer ones overflow what protobuf and gRPC hold; nobody waits for ten years.
_LONGEST_S = 3.2e8


def check_options(**options: Any) -> None:
    """Raise ValueError where a value of another type than its own was given."""
    for name, value in options.items():
        if name == "proxy":
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"proxy must be True, False or None, got {value!r}")
            continue
        kind = {"timeout": Timeout, "limits": Limits, "retry": Retry, "tls": Tls}[name]
        if value is not None and not isinstance(value, kind):
            raise ValueError(
                f"{name} must be a pikfix.client.{kind.__name__} or None, got {value!r}"
            )


def check_names(address: Address, tls: Tls | None) -> None:
    """Raise ValueError where no server's certificate could be compared with any name."""
    if address.listed and tls is not None and tls.server_name is None:
        raise ValueError(
            "a list of addresses has no name that certificates could carry: give the one that "
            "those of all servers do, as Tls.server_name (--tls-server-name)"
        )


def check_headers(headers: Mapping[str, str] | None, token: str | None = None) -> dict[str, str]:
    """Return headers in gRPC's form, names in lower case; ValueError says what gRPC cannot send."""
    checked = _checked(headers)
    if token is None:
        return checked
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ValueError("a token is printable ASCII text without blanks, and not empty")
    if "authorization" in checked:
        raise ValueError("give a token or the header authorization, not both")
    return {**checked, "authorization": f"Bearer {token}"}


def _checked(headers: Mapping[str, str] | None) -> dict[str, str]:
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise ValueError(  # noqa: TRY004 - wrong options have one error, whatever is wrong
            f"headers must map names to values, got {headers!r}"
        )
    checked = {}
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name.lower()):
            raise ValueError(f"{name!r} is no name of a header: use letters, digits, - _ and .")
        if name.lower().endswith("-bin") or name.lower().startswith("grpc-"):
            raise ValueError(f"the header {name!r} is reserved by gRPC; give it another name")
        if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
            # Its value may be a secret, which errors do not repeat.
            raise ValueError(f"the value of the header {name!r} must be printable ASCII text")
        checked[name.lower()] = value
    return checked


def check_seconds(name: str, value: Any) -> float:
    """Return a positive number of seconds; ValueError otherwise."""
    try:
        fits = math.isfinite(value) and value > 0
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")
    return min(float(value), _LONGEST_S)


class Guard:
    """Knows the process, and for asyncio the event loop, in which a client lives."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closed = False

    @property
    def at_home(self) -> bool:
        """Whether the connection may be touched here: same process, and same loop if one."""
        if os.getpid() != self._process:
            return False
        return self._loop is None or self._loop is _running_loop()

    def enter(self, model: str | None, *, loop: bool = False) -> None:
        """Raise what forbids a call here; with `loop`, tie the client to the running loop.

        Raises:
            ClientClosedError: closed, or another process or event loop.
        """
        if self.closed:
            raise ClientClosedError("the client is closed", model=model, url=self._url)
        if os.getpid() != self._process:
            raise ForkedClientError(
                "the client was made before this process was forked", model=model, url=self._url
            )
        if not loop:
            return
        here = _running_loop()
        if here is None:  # called without one, or in that of another library
            raise WrongLoopError(
                "no event loop of asyncio is running here", model=model, url=self._url
            )
        if self._loop is None:
            self._loop = here
        elif self._loop is not here:
            state = "has ended" if self._loop.is_closed() else "is another"
            raise WrongLoopError(
                f"the event loop that the client was first used in {state}",
                model=model,
                url=self._url,
            )

    def unless_closed(self, error: PikFixError) -> PikFixError:
        """Return the error of a call, which is the closing where that has cancelled it."""
        if self.closed and isinstance(error, RequestCancelledError):
            return ClientClosedError(
                "the client was closed before the answer came", model=error.model, url=self._url
            )
        return error

    def translate(self, error: Exception, model: str | None) -> PikFixError:
        """Return the error of the tree for one that gRPC or asyncio raised beside its statuses."""
        text = " ".join(str(error).split())
        detail = f"{type(error).__name__}: {text}" if text else type(error).__name__
        kind: type[PikFixError] = PikFixError
        if self.closed or "closed channel" in text or "Channel is closed" in text:
            kind, detail = ClientClosedError, "the client is closed"
        elif "shutdown" in text:
            detail = "Python is shutting down; send photos before the program ends"
        elif re.search(r"different (?:event )?loop|loop is closed", text):
            kind = WrongLoopError
        return kind(detail, model=model, url=self._url)

    def refuse_pickling(self) -> NoReturn:
        """Raise: a connection cannot be sent to another process."""
        raise ForkedClientError("a client cannot be sent to another process", url=self._url)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
