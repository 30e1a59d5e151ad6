"""Value objects that say how a client connects, waits and repeats."""

from __future__ import annotations

import math
import numbers
import os
from dataclasses import dataclass
from pathlib import Path

# The largest message that protobuf and Triton's gRPC front end take.
MAX_MESSAGE_BYTES = 2**31 - 1


def _whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _positive(name: str, value: object) -> None:
    number = math.nan
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a positive number, got {value!r}")


@dataclass(frozen=True)
class Timeout:
    """How long to wait, in seconds.

    Attributes:
        request: for a photo or a tensor request, repeats and waits for room included; None waits
            for ever.
            A large photo on a CPU takes minutes.
        connect: for one attempt to open the connection.
        status: for ``is_ready``, ``ensure_ready`` and ``server_info``.
    """

    request: float | None = 300.0
    connect: float = 10.0
    status: float = 10.0

    def __post_init__(self) -> None:
        if self.request is not None:
            _positive("Timeout.request", self.request)
        _positive("Timeout.connect", self.connect)
        _positive("Timeout.status", self.status)


@dataclass(frozen=True)
class Limits:
    """Sizes and pings; the defaults match a Triton server's own defaults.

    Attributes:
        message_bytes: largest request and largest answer; 2 GiB - 1 is what Triton takes
            (plain gRPC would stop at 4 MiB).
        keepalive: seconds between pings while a request is in flight. A Triton server
            closes connections that ping more often than every 300 s, unless it was
            started with ``--grpc-http2-min-recv-ping-interval-without-data``.
        keepalive_timeout: seconds to wait for the answer to a ping, and for the far end to
            acknowledge sent data, before the connection counts as lost.
    """

    message_bytes: int = MAX_MESSAGE_BYTES
    keepalive: float = 330.0
    keepalive_timeout: float = 20.0

    def __post_init__(self) -> None:
        if not _whole(self.message_bytes) or not 0 < self.message_bytes <= MAX_MESSAGE_BYTES:
            raise ValueError(
                f"Limits.message_bytes must be 1 to {MAX_MESSAGE_BYTES}, got {self.message_bytes!r}"
            )
        _positive("Limits.keepalive", self.keepalive)
        _positive("Limits.keepalive_timeout", self.keepalive_timeout)


@dataclass(frozen=True)
class Retry:
    """When a request is sent again without the caller's doing.

    **A server without room** (a full queue, or too long a wait in it; ``ServerBusyError``) is
    waited for: at first ``retry_after`` seconds, then twice as long each time up to 8, by a random
    part more, while the request's timeout lasts. The error is raised where the next attempt would
    come too late.

    **A connection that fails** is repeated by gRPC, at once and a few times. Only the status
    UNAVAILABLE is repeated: the connection was refused, the queue was full,
    the model was still loading - the request was turned away before work began. gRPC also
    reports a connection that broke in mid-request so; a request changes nothing on the
    server, which makes repeating it safe then too. What failed in a step, ran out of time
    or was invalid is never repeated. All attempts share the request's one deadline.

    Attributes:
        attempts: how often a request is sent at most, 1 to 5 (gRPC's own cap); 1 never
            repeats.
        initial_backoff: upper bound of the first random pause, in seconds.
        max_backoff: upper bound of any pause, in seconds.
        multiplier: growth of the bound from pause to pause.
        budget_tokens: every UNAVAILABLE takes one token, and repeats stop while half of
            them or fewer are left, so that a struggling server is not flooded.
        budget_refill: tokens given back by a request that succeeds.
        wait_for_room: wait for a server without room; False raises its refusal.
    """

    attempts: int = 4
    initial_backoff: float = 0.2
    max_backoff: float = 3.0
    multiplier: float = 2.0
    budget_tokens: int = 20
    budget_refill: float = 0.5
    wait_for_room: bool = True

    def __post_init__(self) -> None:
        if not _whole(self.attempts) or not 1 <= self.attempts <= 5:
            raise ValueError(f"Retry.attempts must be 1 to 5, got {self.attempts!r}")
        for name in ("initial_backoff", "max_backoff", "multiplier", "budget_refill"):
            _positive(f"Retry.{name}", getattr(self, name))
        if not _whole(self.budget_tokens) or not 1 <= self.budget_tokens <= 1000:
            raise ValueError(f"Retry.budget_tokens must be 1 to 1000, got {self.budget_tokens!r}")
        if not isinstance(self.wait_for_room, bool):
            raise ValueError(  # noqa: TRY004 - wrong options have one error, whatever is wrong
                f"Retry.wait_for_room must be True or False, got {self.wait_for_room!r}"
            )

    @classmethod
    def never(cls) -> Retry:
        """Return the policy that sends every request once."""
        return cls(attempts=1, wait_for_room=False)


@dataclass(frozen=True)
class Tls:
    """Encryption of the connection; all files are PEM.

    Attributes:
        root_certificates: certificates to trust; None trusts those that come with gRPC.
        private_key: the client's own key, where the server asks for one.
        certificate_chain: the client's own certificate, where the server asks for one.
        server_name: the name that the server's certificate must carry, where it is not the
            host connected to.
    """

    root_certificates: str | os.PathLike[str] | None = None
    private_key: str | os.PathLike[str] | None = None
    certificate_chain: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("Tls needs private_key and certificate_chain together, or neither")
        for name in ("root_certificates", "private_key", "certificate_chain"):
            path = getattr(self, name)
            if path is not None and not isinstance(path, (str, os.PathLike)):
                raise ValueError(f"Tls.{name} must be the path of a PEM file, got {path!r}")
        if self.server_name is not None and not isinstance(self.server_name, str):
            raise ValueError(f"Tls.server_name must be a name, got {self.server_name!r}")

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the contents of the three files; OSError where one cannot be read."""
        paths = (self.root_certificates, self.private_key, self.certificate_chain)
        root, key, chain = (None if path is None else Path(path).read_bytes() for path in paths)
        return root, key, chain
