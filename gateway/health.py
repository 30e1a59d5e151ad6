"""Whether the server restores photos, and by which systems.

A tiny photo is sent, unless one has just come back.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

import numpy as np

from pikfix.client import AsyncPikFixClient, DeadlineExceededError, PikFixError, ServerBusyError
from pikfix.gateway.options import SYSTEMS
from pikfix.gateway.problems import Problem, problem_of

_FRESH_S = 10.0
_SIDE = 32
SYSTEMS_FRESH_S = 1.0
_SYSTEMS_TIMEOUT_S = 2.0


class Canary:
    """Asks the server at most once in ten seconds.

    Args:
        client: the connection to the server.
        timeout: seconds to wait for the tiny photo.
    """

    def __init__(self, client: AsyncPikFixClient, timeout: float = 15.0) -> None:
        self._client = client
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._asked_at = -_FRESH_S
        self._found: tuple[str, Problem | None] = ("healthy", None)

    async def check(self, answered_at: float) -> str:
        """Return ``healthy`` or ``busy``.

        Args:
            answered_at: when the server last answered a photo, by the monotonic clock.

        Raises:
            Problem: 503; it does not answer, or fails.
        """
        if time.monotonic() - answered_at < _FRESH_S:
            return "healthy"
        async with self._lock:
            if time.monotonic() - self._asked_at >= _FRESH_S:
                self._found = await self._ask()
                self._asked_at = time.monotonic()
        state, problem = self._found
        if problem is not None:
            raise problem
        return state

    async def _ask(self) -> tuple[str, Problem | None]:
        ramp = np.linspace(0, 255, _SIDE).astype(np.uint8)
        photo = np.ascontiguousarray(np.broadcast_to(ramp, (_SIDE, _SIDE)))
        try:
            await self._client.restore(photo, color=False, timeout=self._timeout)
        except (ServerBusyError, DeadlineExceededError):
            return "busy", None  # one large photo keeps every later one waiting
        except PikFixError as error:
            problem = problem_of(error)
            problem.status = 503
            return "unhealthy", problem
        return "healthy", None


class Systems:
    """Asks the server which systems are ready, at most once in a second: everybody may ask here.

    Args:
        client: the connection to the server.
    """

    def __init__(self, client: AsyncPikFixClient) -> None:
        self._client = client
        self._lock = asyncio.Lock()
        self._asked_at = -math.inf
        self._found: list[str] = []

    async def ready(self) -> list[str]:
        """The names that the option `system` may have now; none where the server is away."""
        async with self._lock:
            if time.monotonic() - self._asked_at >= SYSTEMS_FRESH_S:
                ready = await asyncio.gather(*map(self._is_ready, SYSTEMS))
                self._found = [name for name, yes in zip(SYSTEMS, ready, strict=True) if yes]
                self._asked_at = time.monotonic()
            return self._found

    async def _is_ready(self, system: str) -> bool:
        with contextlib.suppress(PikFixError, asyncio.TimeoutError):
            return await asyncio.wait_for(self._client.is_ready(system), _SYSTEMS_TIMEOUT_S)
        return False
