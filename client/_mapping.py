"""From Triton's status and text to the error tree.

Triton tells a full queue from a lost connection, or an unready model from a refused
connection, by the text of one and the same status; so both are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from pikfix.client._errors import (
    AccessDeniedError,
    ConnectionFailedError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidInputError,
    InvalidOptionsError,
    InvalidPhotoError,
    InvalidReferenceError,
    InvalidTensorError,
    MessageTooLargeError,
    MissingPackageError,
    ModelNotFoundError,
    PhotoTooLargeError,
    PikFixError,
    ProxyError,
    RequestCancelledError,
    ServerBusyError,
    ServerError,
    ServerNotReadyError,
    ServerUnreachableError,
    StepCrashedError,
    StepFailedError,
    TlsError,
    UnsupportedPhotoError,
    WrongServerError,
)
from pikfix.protocol.names import PHOTO_MODELS, TENSOR_MODEL

# What a status means when the text says nothing more. Every gRPC status but OK is here.
STATUS_ERRORS: Mapping[str, type[PikFixError]] = MappingProxyType(
    {
        "CANCELLED": RequestCancelledError,
        "UNKNOWN": StepFailedError,
        "INVALID_ARGUMENT": InvalidInputError,
        "DEADLINE_EXCEEDED": DeadlineExceededError,
        "NOT_FOUND": ModelNotFoundError,
        "ALREADY_EXISTS": StepFailedError,
        "PERMISSION_DENIED": AccessDeniedError,
        "RESOURCE_EXHAUSTED": ServerBusyError,
        "FAILED_PRECONDITION": StepFailedError,
        "ABORTED": RequestCancelledError,
        "OUT_OF_RANGE": InvalidInputError,
        "UNIMPLEMENTED": StepFailedError,
        "INTERNAL": StepFailedError,
        "UNAVAILABLE": ServerNotReadyError,
        "DATA_LOSS": StepFailedError,
        "UNAUTHENTICATED": AccessDeniedError,
    }
)

# The codes of our own steps, in messages of the form "[step] code: text".
CODE_ERRORS: Mapping[str, type[PikFixError]] = MappingProxyType(
    {
        "bad_photo": InvalidPhotoError,
        "unsupported_photo": UnsupportedPhotoError,
        "missing_package": MissingPackageError,
        "bad_reference": InvalidReferenceError,
        "bad_options": InvalidOptionsError,
        "photo_too_large": PhotoTooLargeError,
        "bad_tensor": InvalidTensorError,
        "busy": ServerBusyError,
        "deadline_exceeded": DeadlineExceededError,
        "out_of_memory": StepFailedError,
        "internal": StepFailedError,
    }
)

_STEP = re.compile(r"\[(?P<step>[a-z]\w*)\] (?P<code>[a-z][a-z_]*): (?P<text>.+)", re.DOTALL)
# Where Triton itself names an instance: "Stub process 'decode_photo_0_0' is not healthy."
_INSTANCE = re.compile(r"(?:instance|process(?: for)?) '(?P<step>\w+?)(?:_\d+)+'")

# Looked for in this order; a refused TLS handshake also says "failed to connect".
_TEXTS: tuple[tuple[frozenset[str], re.Pattern[str], type[PikFixError]], ...] = tuple(
    (frozenset(statuses.split()), re.compile(pattern, re.IGNORECASE), error)
    for statuses, pattern, error in (
        ("UNAVAILABLE", r"exceeds maximum queue size|request timeout expired", ServerBusyError),
        # The environment's proxy, on the way to the connection: 5xx where nobody listens there.
        ("UNAVAILABLE", r"http proxy returned response code 5\d\d", ServerUnreachableError),
        ("UNAVAILABLE", r"http proxy returned", ProxyError),
        # A gateway that wants credentials and does not speak gRPC.
        (
            "UNAUTHENTICATED PERMISSION_DENIED",
            r"http.*\bstatus\b[a-z ]*:? ?40[13]\b",
            AccessDeniedError,
        ),
        # A proxy whose server is being restarted or is overloaded; the second line is Envoy's.
        (
            "UNAVAILABLE UNKNOWN INTERNAL",
            r"http.*\bstatus\b[a-z ]*:? ?(?:429|5\d\d)\b"
            r"|upstream connect error|no healthy upstream|upstream request timeout",
            ServerNotReadyError,
        ),
        # nginx takes 1 MiB unless told otherwise.
        ("UNAVAILABLE UNKNOWN INTERNAL", r"http.*\bstatus\b[a-z ]*:? ?413\b", MessageTooLargeError),
        (
            "UNAVAILABLE",
            r"\bssl|\btsi_|certificate|hostname verification|peer name|\btls\b",
            TlsError,
        ),
        (
            # gRPC turns an HTTP answer's own status into any of these.
            "UNAVAILABLE UNIMPLEMENTED UNKNOWN INTERNAL UNAUTHENTICATED PERMISSION_DENIED",
            r"http1|settings frame|unparseable http|http status|http2? header|content-type"
            r"|trying to connect an http|unknown service|preface",
            WrongServerError,
        ),
        ("UNIMPLEMENTED", r"^$|method not found", WrongServerError),
        (
            "UNAVAILABLE",
            r"connection refused|failed to connect|all backends failing|resolution|resolving"
            r"|no route|network is unreachable|host is unreachable|timed out|timeout occurred"
            r"|empty address list",
            ServerUnreachableError,
        ),
        (
            "UNAVAILABLE UNKNOWN INTERNAL CANCELLED",
            r"socket closed|connection reset|broken pipe|goaway|stream removed|recvmsg|sendmsg"
            r"|endpoint closing|ping timeout|keepalive|too_many_pings|transport closed"
            r"|connection aborted|rst_stream",
            ConnectionLostError,
        ),
        # The process of a python step, found dead before or after it got the request.
        ("INTERNAL UNKNOWN UNAVAILABLE", r"\bstub\b", StepCrashedError),
        (
            "RESOURCE_EXHAUSTED",
            r"message larger than max|message too large|exceeds maximum protobuf",
            MessageTooLargeError,
        ),
        (
            "INTERNAL INVALID_ARGUMENT NOT_FOUND UNAVAILABLE UNKNOWN",
            r"no available versions|not at ready state|server not ready",
            ServerNotReadyError,
        ),
        ("INTERNAL INVALID_ARGUMENT UNAVAILABLE UNKNOWN", r"unknown model", ModelNotFoundError),
    )
)

# What gRPC says before the point: "failed to connect to all addresses; last error: UNKNOWN:
# ipv4:1.2.3.4:8001: ...", and of several servers "connections to all backends failing; ...".
_PREAMBLE = re.compile(r"(?:.*last error: )?(?:[A-Z_]+: )?(?:ipv[46]:\S+: )?")

# Triton's HTTP port does this, a server that wants TLS, and Docker's proxy while its container
# starts; nothing tells them apart.
_ACCEPTED_AND_CLOSED = re.compile(
    r"(?:failed to connect|all backends failing)"
    r".*(?:socket closed|connection reset|endpoint closing)",
    re.IGNORECASE,
)
_REQUEST_ID = re.compile(r"\[request id: [^\]]*\] ")

_LONGEST_DETAIL = 600


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_DETAIL else line[: _LONGEST_DETAIL - 1] + "…"


def _kind(status: str, text: str, model: str | None) -> type[PikFixError]:
    for statuses, pattern, error in _TEXTS:
        if status in statuses and pattern.search(text):
            return error
    error = STATUS_ERRORS.get(status, ServerError)
    if error is InvalidInputError and model == TENSOR_MODEL:
        return InvalidTensorError
    return error


def map_error(status: str | None, text: str | None, *, model: str | None, url: str) -> PikFixError:
    """Return the error for a failed call.

    Args:
        status: the gRPC status, as ``UNAVAILABLE`` or ``StatusCode.UNAVAILABLE``.
        text: the server's or gRPC's message.
        model: the model called; None for a question to the server itself.
        url: ``host:port``.
    """
    name = (status or "UNKNOWN").rpartition(".")[2]
    message = text or ""
    own = _STEP.search(message)
    if own is not None and own["code"] in CODE_ERRORS:
        kind = CODE_ERRORS[own["code"]]
        if kind is InvalidTensorError and model in PHOTO_MODELS.values():
            # The caller sent a file; a bad tensor behind it is a step's fault.
            kind = StepFailedError
        return kind(
            _one_line(own["text"]),
            model=model,
            step=own["step"],
            code=own["code"],
            status=name,
            url=url,
        )
    kind = _kind(name, message, model)
    instance = _INSTANCE.search(message)
    detail = _one_line(_REQUEST_ID.sub("", message)) or f"status {name} without a message"
    if kind is ServerUnreachableError and _ACCEPTED_AND_CLOSED.search(message):
        detail = (
            "the connection is closed as soon as it is made: not a gRPC port, a server that wants "
            "TLS, or one that is still starting"
        )
    elif issubclass(kind, ConnectionFailedError):
        detail = _PREAMBLE.sub("", detail, count=1) or detail
    elif kind is DeadlineExceededError:
        detail = "no answer in the time given"
    return kind(
        detail,
        model=model,
        step=instance["step"] if instance else None,
        status=name,
        url=url,
    )
