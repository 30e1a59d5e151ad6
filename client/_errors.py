"""Everything that a call can raise.

The tree::

    PikFixError
    ├── InvalidInputError (also a ValueError): what was sent cannot be used
    │   ├── InvalidPhotoError        the photo cannot be decoded or is no photo
    │   │   ├── PhotoTooLargeError   more pixels than the server accepts
    │   │   └── UnsupportedPhotoError: a sound file of a kind that is not read
    │   │       └── MissingPackageError   it would be with a package beside the server
    │   ├── InvalidReferenceError    a colour reference cannot be decoded
    │   ├── InvalidOptionsError      an option is unknown or out of range
    │   ├── InvalidTensorError       wrong shape, type or values
    │   └── MessageTooLargeError     more bytes than a message may hold
    ├── ConnectionFailedError: no answer came from the server
    │   ├── ServerUnreachableError   nobody listens there, or no such host
    │   ├── ConnectionLostError      the server went away in mid-request
    │   ├── WrongServerError         something listens there, but no Triton gRPC
    │   ├── ProxyError               a proxy on the way refuses to connect
    │   └── TlsError                 the two ends cannot agree on encryption
    ├── ServerError: the server answered, and its answer was no
    │   ├── ServerNotReadyError      server or model is loading or unloading
    │   ├── ModelNotFoundError       the server does not have the model
    │   ├── ServerBusyError          the queue is full, or waiting took too long
    │   ├── AccessDeniedError        credentials are missing or not accepted
    │   ├── StepFailedError          a step failed on the server
    │   │   └── StepCrashedError     the step's process died
    │   └── InvalidResponseError     the answer is not what the contract says
    ├── DeadlineExceededError        the time given ran out
    ├── RequestCancelledError        the call was cancelled before an answer, not by the caller
    └── ClientClosedError            the client was closed, or cannot be used here
        ├── WrongLoopError           an asyncio client in another loop than its own
        └── ForkedClientError        a client in another process than its own

Whether the same request may succeed a little later, ``error.passing`` says: it is the one list of
what is worth sending again.

Files that cannot be read or written raise the usual :class:`OSError`.
"""

from __future__ import annotations

from typing import Any, ClassVar

# The server's steps say themselves what to do about these.
_SELF_EXPLAINING = frozenset(
    {"bad_photo", "unsupported_photo", "missing_package"}
    | {"bad_reference", "bad_options", "photo_too_large", "bad_tensor"}
)


class PikFixError(Exception):
    """Base of all errors of the client.

    ``str(error)`` is one line: where it went wrong, what is wrong, and what to do.

    Attributes:
        detail: what is wrong, in the words of whoever noticed.
        model: the model that was called, such as ``pikfix_photo``.
        step: the step of the model that failed, such as ``decode_photo``, if known.
        code: the step's error code, such as ``bad_photo``, if it gave one.
        status: the gRPC status, such as ``UNAVAILABLE``, if the error came by gRPC.
        url: ``host:port`` of the server, if the call got that far.
        passing: the trouble may be over in a moment, and the same request succeed then: a full
            queue, a server that is being restarted, a connection that broke. Repeating is safe,
            since a request changes nothing on the server.
    """

    advice: ClassVar[str] = ""
    passing: ClassVar[bool] = False

    def __init__(
        self,
        detail: str,
        *,
        model: str | None = None,
        step: str | None = None,
        code: str | None = None,
        status: str | None = None,
        url: str | None = None,
    ) -> None:
        self.detail = detail
        self.model = model
        self.step = step
        self.code = code
        self.status = status
        self.url = url
        super().__init__(self._message())

    def _message(self) -> str:
        names = [self.model] if self.model else []
        if self.step and self.step != self.model:
            names.append(f"step {self.step}")
        where = ", ".join(names)
        if self.url:
            where = f"{where} at {self.url}" if where else self.url
        message = f"{where}: {self.detail}" if where else self.detail
        said = isinstance(self, InvalidInputError) and self.code in _SELF_EXPLAINING
        if said or not self.advice:
            return message
        return f"{message.rstrip(' .;!')}; {self.advice}"

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments do not survive Exception's own pickling, and errors
        # cross process boundaries in worker pools.
        return (type(self)._rebuild, (self.detail, self._names()))

    def _names(self) -> dict[str, str | None]:
        return {
            "model": self.model,
            "step": self.step,
            "code": self.code,
            "status": self.status,
            "url": self.url,
        }

    @classmethod
    def _rebuild(cls, detail: str, names: dict[str, str | None]) -> PikFixError:
        return cls(detail, **names)


class InvalidInputError(PikFixError, ValueError):
    """What was sent cannot be used; sending it again will not help."""


class InvalidPhotoError(InvalidInputError):
    """The photo is empty, damaged, or no picture at all."""

    advice = "send a picture file that opens in a viewer (JPEG, PNG, TIFF, WebP, ...)"


class PhotoTooLargeError(InvalidPhotoError):
    """The photo has more pixels than the server accepts."""

    advice = "scale the photo down, or raise the server's limit"


class UnsupportedPhotoError(InvalidPhotoError):
    """The photo is of a kind that the server does not read; it may well be whole."""

    advice = "convert the photo to JPEG, PNG or TIFF with 8 or 16 bits a sample"


class MissingPackageError(UnsupportedPhotoError):
    """The server would read the photo if a package were installed beside it."""

    advice = "install the package beside the server, or convert the photo to JPEG, PNG or TIFF"


class InvalidReferenceError(InvalidInputError):
    """A colour reference is empty, damaged, or no picture at all."""

    advice = "choose another reference photo, or none"


class InvalidOptionsError(InvalidInputError):
    """An option is unknown or out of its range."""


class InvalidTensorError(InvalidInputError):
    """A tensor has the wrong shape, type or values."""


class MessageTooLargeError(InvalidInputError):
    """A request or an answer has more bytes than a message may hold."""

    advice = "send fewer or smaller pictures per request"


class ConnectionFailedError(PikFixError):
    """No answer came from the server."""

    advice = "check that the server runs and can be reached"


class ServerUnreachableError(ConnectionFailedError):
    """Nobody listens at the address, or the host does not exist."""

    passing = True
    advice = (
        "start a server with `pikfix serve`, or check host and port (Triton's gRPC port, "
        "8001 unless changed)"
    )


class ConnectionLostError(ConnectionFailedError):
    """The connection broke in mid-request: the server was stopped, killed or cut off."""

    passing = True
    advice = "look at the server's log, start it again if it is gone, and repeat the request"


class WrongServerError(ConnectionFailedError):
    """Something listens at the address, but it does not speak Triton's gRPC."""

    advice = (
        "use Triton's gRPC port (8001 unless changed), not its HTTP (8000) or metrics (8002) port"
    )


class TlsError(ConnectionFailedError):
    """The two ends cannot agree on encryption, or a certificate is not trusted."""

    advice = "give tls=Tls(...) exactly if the server uses TLS, with the certificate that signed it"


class ProxyError(ConnectionFailedError):
    """The proxy that the environment names does not connect to the server."""

    advice = (
        "check grpc_proxy, https_proxy and http_proxy, or go past them with no_proxy, "
        "PIKFIX_PROXY=0 or proxy=False"
    )


class ServerError(PikFixError):
    """The server answered, and its answer was no."""


class ServerNotReadyError(ServerError):
    """The server, or the model, is loading, unloading or failed to load."""

    passing = True
    advice = "wait until is_ready() is true; if it stays false, read the server's log"


class ModelNotFoundError(ServerError):
    """The server does not have the model."""

    advice = (
        "start the server on a model repository that `pikfix export` has filled, "
        "and see server_info() for what it has"
    )


class ServerBusyError(ServerError):
    """The server's queue is full, or the request waited in it for too long.

    The clients wait for room by themselves, as ``Retry`` says; this is raised where the request's
    timeout does not last, or the policy is ``Retry.never()``.

    retry_after: seconds to wait at least before the same request is worth sending again, since a
        place in a queue becomes free when a photo is answered. Callers of many photos should
        double it with each refusal.
    """

    passing = True
    retry_after: float = 1.0
    advice = f"wait at least {retry_after:g} s (retry_after), or send fewer requests at once"


class AccessDeniedError(ServerError):
    """Credentials are missing or not accepted."""

    advice = "check the token (PIKFIX_TOKEN), the headers and the TLS client certificate"


class StepFailedError(ServerError):
    """A step of the model failed on the server, through no known fault of the request."""

    advice = "read the server's log; `pikfix doctor` shows its environment"


class StepCrashedError(StepFailedError):
    """The process of a step died, or was found dead; `pikfix serve` restarts the server then.

    Whoever killed it, every request that meets it fails; only a photo that is alone with it each
    time is the likely cause.
    """

    passing = True
    advice = (
        "send the request again once is_ready() is true; if the same photo fails each time, the "
        "server's log says more"
    )


class InvalidResponseError(ServerError):
    """The answer is not what the contract says; client and server may not match."""

    advice = "use the client and the model repository of one and the same version"


class DeadlineExceededError(PikFixError):
    """The time given ran out before the answer came."""

    advice = "give a longer timeout, or a smaller photo"


class RequestCancelledError(PikFixError):
    """The call was cancelled before an answer came, by the server or what lies before it."""

    passing = True
    advice = "send the request again"


class ClientClosedError(PikFixError):
    """The client was closed, or cannot be used here; a new one is needed."""

    advice = "make a new client"


class WrongLoopError(ClientClosedError):
    """The asyncio client's connection belongs to another event loop, or none of asyncio's runs."""

    advice = "make one AsyncPikFixClient inside each asyncio.run(), or use PikFixClient in threads"


class ForkedClientError(ClientClosedError):
    """The client was made in another process: gRPC's connections do not survive a fork."""

    advice = "make a client in each process, after the fork (or use the start method 'spawn')"
