"""Watches a running server and restarts it when it can no longer answer.

A killed python stub never comes back on server 2.51. Unloading and loading its model revives it,
but needs explicit model control, through which every local user could load code into the server;
it also leaks the old region and leaves a shutdown waiting for its timeout. So the supervisor
restarts the server.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Protocol

from pikfix.serving.errors import ServingError
from pikfix.serving.health import Health, completed

logger = logging.getLogger("pikfix.serving")

CHECK_EVERY_S = 1.0
CANARY_EVERY_S = 30.0
CANARY_TIMEOUT_S = 20.0
# Answers that are wrong, not late, this often in a row: restart.
UNHEALTHY_LIMIT = 3
# No canary answered, nothing finished and next to no processor time used for this long: the
# server hangs. A large photo on a small machine works all the time.
STALLED_AFTER_S = 600.0
WORKING_SHARE = 0.05
# A server that needs more restarts than this within the window is broken, not unlucky.
RESTART_LIMIT = 5
RESTART_WINDOW_S = 600.0


class Watched(Protocol):
    """What the supervisor needs of a server."""

    @property
    def grpc_url(self) -> str:
        """Where to ask for statistics."""

    def is_running(self) -> bool:
        """Whether the server's process lives."""

    def dead_instances(self) -> list[str]:
        """Model instances whose process has died."""

    def cpu_seconds(self) -> float:
        """Processor time used so far."""

    def health(self, timeout_s: float = ...) -> Health:
        """The result of a canary request."""

    def restart(self) -> None:
        """End and start again; ServingError if it does not come up."""

    def give_up(self, problem: str) -> None:
        """End for good."""


class Supervisor(threading.Thread):
    """A daemon thread that keeps one server able to answer."""

    def __init__(self, server: Watched):
        super().__init__(name="pikfix-supervisor", daemon=True)
        self._server = server
        self._cancelled = threading.Event()
        self._suspects: list[str] = []
        self._unhealthy = 0
        self._restarts: deque[float] = deque()
        self._finished: int | None = None
        self._used = 0.0
        self._progress_at = time.monotonic()
        self._next_canary = time.monotonic() + CANARY_EVERY_S

    def cancel(self) -> None:
        """End the watch; a restart that is under way is finished first."""
        self._cancelled.set()

    def run(self) -> None:
        """Check until cancelled or until the server is given up."""
        while not self._cancelled.wait(CHECK_EVERY_S):
            problem = self.find_problem()
            if problem is not None and not self._cancelled.is_set() and not self._recover(problem):
                return

    def find_problem(self) -> str | None:
        """One line that calls for a restart; None while there is none."""
        if not self._server.is_running():
            return "the server has ended unexpectedly"
        dead = self._server.dead_instances()
        # Seen twice: a look at /proc may fall between two moments of a process's start.
        confirmed = [name for name in dead if name in self._suspects]
        self._suspects = dead
        if confirmed:
            return f"the process of {', '.join(confirmed)} has died"
        now = time.monotonic()
        if now < self._next_canary:
            return None
        problem = self._judge(self._server.health(CANARY_TIMEOUT_S))
        self._next_canary = time.monotonic() + CANARY_EVERY_S
        return problem

    def _judge(self, health: Health) -> str | None:
        now = time.monotonic()
        if health.healthy:
            self._unhealthy = 0
            self._progress_at = now
            return None
        if health.state == "busy":
            finished, used = completed(self._server.grpc_url), self._server.cpu_seconds()
            if finished not in (None, self._finished) or (
                used - self._used > WORKING_SHARE * CANARY_EVERY_S
            ):
                self._progress_at = now
            self._finished, self._used = finished, used
            if now - self._progress_at > STALLED_AFTER_S:
                return f"nothing has been finished for {STALLED_AFTER_S:.0f} s"
            return None
        if self._cancelled.is_set():
            return None  # a server that is being stopped refuses
        self._unhealthy += 1
        logger.warning("the server is %s: %s", health.state, health.problem)
        return health.problem if self._unhealthy >= UNHEALTHY_LIMIT else None

    def _recover(self, problem: str) -> bool:
        """Restart; False once the server is given up."""
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > RESTART_WINDOW_S:
            self._restarts.popleft()
        if len(self._restarts) >= RESTART_LIMIT:
            self._server.give_up(
                f"{problem}; given up after {RESTART_LIMIT} restarts in "
                f"{RESTART_WINDOW_S / 60:.0f} minutes"
            )
            return False
        self._restarts.append(now)
        logger.warning("%s; restarting it", problem)
        try:
            self._server.restart()
        except ServingError as error:
            if not self._cancelled.is_set():
                self._server.give_up(f"{problem}, and the restart failed: {error}")
            return False
        self._suspects, self._unhealthy, self._finished, self._used = [], 0, None, 0.0
        self._progress_at = time.monotonic()
        self._next_canary = self._progress_at + CANARY_EVERY_S
        logger.warning("the server answers again")
        return True
