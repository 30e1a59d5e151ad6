"""What went wrong, as problem+json (RFC 9457) with the client's codes of errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from starlette.responses import Response

from pikfix.client import (
    AccessDeniedError,
    ClientClosedError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    InvalidOptionsError,
    InvalidPhotoError,
    InvalidReferenceError,
    MessageTooLargeError,
    ModelNotFoundError,
    PhotoTooLargeError,
    PikFixError,
    ProxyError,
    RequestCancelledError,
    ServerBusyError,
    ServerError,
    ServerNotReadyError,
    StepCrashedError,
    TlsError,
    UnsupportedPhotoError,
    WrongServerError,
)

MEDIA_TYPE = "application/problem+json"

# For errors that no step gave a code. The nearest ancestor of an error's type counts.
KINDS: Mapping[type[PikFixError], tuple[int, str, str]] = MappingProxyType(
    {
        InvalidInputError: (422, "bad_request", "The request cannot be used"),
        InvalidPhotoError: (422, "bad_photo", "The photo cannot be read"),
        PhotoTooLargeError: (413, "photo_too_large", "The photo has too many pixels"),
        UnsupportedPhotoError: (415, "unsupported_photo", "This kind of file is not read"),
        InvalidReferenceError: (422, "bad_reference", "A reference cannot be read"),
        InvalidOptionsError: (400, "bad_options", "An option cannot be used"),
        MessageTooLargeError: (413, "upload_too_large", "The upload is too large"),
        ConnectionFailedError: (503, "server_unreachable", "The server does not answer"),
        ProxyError: (502, "proxy_failed", "A proxy does not connect to the server"),
        WrongServerError: (502, "wrong_server", "The server is none of pikfix"),
        TlsError: (502, "tls_failed", "The server cannot be reached by TLS"),
        ServerError: (502, "server_failed", "The server failed"),
        ServerNotReadyError: (503, "server_not_ready", "The server is not ready"),
        ModelNotFoundError: (502, "model_not_found", "The server has no networks to restore with"),
        ServerBusyError: (503, "busy", "The server is busy"),
        AccessDeniedError: (502, "access_denied", "The server does not let the gateway in"),
        StepCrashedError: (502, "step_crashed", "The photo's step died on the server"),
        DeadlineExceededError: (504, "deadline_exceeded", "It took too long"),
        RequestCancelledError: (503, "request_cancelled", "The server cancelled the request"),
        ClientClosedError: (503, "shutting_down", "The gateway is being shut down"),
        PikFixError: (500, "internal", "Something failed"),
    }
)
BUSY_PAUSE_S = 5
"""Retry-After of troubles that pass, in seconds, where nothing better is known."""


class Problem(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        code: one word for programs.
        title: the kind of problem, the same for every one with this code.
        detail: one line for people: what is wrong and what to do.
        step: the server's step that failed, if known.
        retry_after: seconds after which the same request may succeed; None where it will not.
        headers: further headers.
    """

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        *,
        step: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.step = step
        self.retry_after = retry_after
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def to_dict(self) -> dict[str, Any]:
        """The members of the JSON object."""
        members: dict[str, Any] = {
            "type": f"urn:pikfix:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.step is not None:
            members["step"] = self.step
        if self.retry_after is not None:
            members["retry_after"] = self.retry_after
        return members

    @classmethod
    def from_dict(cls, members: Mapping[str, Any]) -> Problem:
        """Read what :meth:`to_dict` gave."""
        return cls(
            members["status"],
            members["code"],
            members["title"],
            members["detail"],
            step=members.get("step"),
            retry_after=members.get("retry_after"),
        )

    def response(self) -> Response:
        """The answer of HTTP."""
        headers = {"Cache-Control": "no-store", **self.headers}
        body = json.dumps(self.to_dict(), ensure_ascii=False).encode()
        return Response(body, self.status, headers=headers, media_type=MEDIA_TYPE)


def problem_of(error: PikFixError) -> Problem:
    """Return the problem that an error of the client is; where the server listens stays unsaid."""
    kind = next(one for one in type(error).__mro__ if one in KINDS)
    status, code, title = KINDS[kind]
    # Model, step and address are for whoever runs the server.
    sentence = str(type(error)(error.detail, code=error.code))
    return Problem(
        status,
        error.code or code,
        title,
        sentence,
        step=error.step,
        retry_after=BUSY_PAUSE_S if error.passing else None,
    )
