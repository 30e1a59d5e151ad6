"""Whether a starting server can still become ready.

The server waits without limit for a stub that it has started, even after that has died.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Sequence

from pikfix.serving.arguments import Endpoint

# How often to look, and how long a dead stub may stay unreaped: the server reaps those whose
# failure it has understood.
EVERY_S = 0.5
GRACE_S = 1.5
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}

STUB_DIED = "the process of "


class StartWatch:
    """Looks at a server's stubs until it listens, which it does once its models are loaded."""

    def __init__(self, server_pid: int, endpoints: Sequence[Endpoint]):
        self._server = server_pid
        self._endpoints = list(endpoints)
        self._names: dict[int, str] = {}
        self._seen: dict[int, float] = {}
        # Without an endpoint nothing would tell the end of the start.
        self.over = not self._endpoints

    def problem(self) -> str | None:
        """One line on a stub that has died; None while there is none."""
        if self.over:
            return None
        # Not above: what no package is installed for is to be said in one line.
        from pikfix.serving import processes  # noqa: PLC0415

        self._names |= processes.stubs(self._server)
        dead = processes.dead_stubs(self._server)
        now = time.monotonic()
        self._seen = {pid: self._seen.get(pid, now) for pid in dead}
        lasting = [pid for pid, since in self._seen.items() if now - since >= GRACE_S]
        # Only then: a stub's end is the server's business once it listens.
        if lasting:
            pid = lasting[0]
            return f"{STUB_DIED}{self._names.get(pid, 'a model')} {how_it_ended(dead[pid])}"
        self.over = any(_accepts(endpoint) for endpoint in self._endpoints)
        return None


def how_it_ended(status: int) -> str:
    """A wait status in words."""
    signal_number = status & 0x7F
    if signal_number:
        return f"was ended by signal {signal_number} during the start"
    return f"ended with exit code {status >> 8} during the start"


def _accepts(endpoint: Endpoint) -> bool:
    address = _ANY_ADDRESS.get(endpoint.address, endpoint.address)
    with contextlib.suppress(OSError), socket.create_connection((address, endpoint.port), 0.2):
        return True
    return False
