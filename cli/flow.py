"""How many photos are in flight, and when one that met a passing trouble is sent again.

Which troubles pass, the client's errors say themselves (``PikFixError.passing``), and how long to
wait for room, the client's rule. Here is how long to wait for a server, and how a batch keeps from
causing the trouble: the number of photos in flight follows what the server takes, and a photo that
may have killed it is sent again alone, so that it cannot take others along for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pikfix.cli.problems import CommandError
from pikfix.client import (
    AsyncPikFixClient,
    ConnectionLostError,
    DeadlineExceededError,
    ModelNotFoundError,
    PikFixError,
    ServerBusyError,
    StepCrashedError,
    StepFailedError,
    TlsError,
    WrongServerError,
)
from pikfix.client._waits import LONGEST_PAUSE_S, after_waiting, pause_before_room
from pikfix.protocol.names import DEFAULT_SYSTEM

_Answer = TypeVar("_Answer")

# Deaths of the server or a step that one photo may meet, the last one alone in flight.
_MOST_DEATHS = 3
# With others in flight these may be their doing: no time left, no memory left.
_PERHAPS_LOAD = (DeadlineExceededError, StepFailedError)
# The server answered before; until it is itself again, something else may answer in its place.
_PERHAPS_ANOTHER = (WrongServerError, TlsError)
_FIRST_PAUSE_S = 0.1
# A supervisor needs a few seconds to notice that a step has died; until then the server seems
# ready and is not.
_NOTICED_AFTER_S = 10.0
_MENTIONED_AFTER_S = 3.0


@dataclass
class _Place:
    """A photo in flight; `company` tells whether another one was at any moment."""

    company: bool


@dataclass
class _Tries:
    """What one photo has met so far."""

    refusals: int = 0
    refused_since: float = 0.0
    deaths: int = 0
    pauses: float = 0.0
    turned_away_at: float = 0.0
    alone: bool = False


@dataclass
class Flow:
    """The photos in flight to one server.

    Attributes:
        client: the connection, which repeats nothing by itself.
        limit: photos in flight at most; falls to what the server takes, and rises again.
        timeout: seconds given to each attempt.
        reconnect_timeout: seconds to wait for a server that went away.
        notice: called with a line where that takes more than a moment.
        system: that the photos are for.
    """

    client: AsyncPikFixClient
    limit: int
    timeout: float
    reconnect_timeout: float
    notice: Callable[[str], None]
    system: str = DEFAULT_SYSTEM
    _most: int = field(init=False)
    _places: list[_Place] = field(default_factory=list)
    _waiting_alone: int = 0
    _alone: bool = False
    _answers: int = 0
    _answered_at: float = 0.0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _recovery: asyncio.Task[None] | None = None
    _supervised: bool = True

    def __post_init__(self) -> None:
        self._most = self.limit

    async def send(self, request: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """Return the answer to a request, sent again while its trouble may pass.

        Raises:
            PikFixError: the trouble does not pass, or has lasted too long.
            CommandError: it has lasted too long for this photo alone.
        """
        tries = _Tries()
        while True:
            async with self._place(alone=tries.alone) as place:
                try:
                    answer = await request()
                except PikFixError as error:
                    trouble = error
                else:
                    await self._note_answer()
                    return answer
            await self._wait_after(trouble, tries, place)

    async def _wait_after(self, error: PikFixError, tries: _Tries, place: _Place) -> None:
        """Return when the request may be sent again; raise the error where it may not."""
        if isinstance(error, ServerBusyError):
            await self._wait_for_room(error, tries)
            return
        died = isinstance(error, (StepCrashedError, ConnectionLostError))
        if died:
            tries.deaths += 1
            if tries.deaths >= _MOST_DEATHS and not place.company:
                raise error
            tries.alone = True
        elif not error.passing and not isinstance(error, _PERHAPS_ANOTHER):
            if not isinstance(error, _PERHAPS_LOAD) or not place.company or tries.alone:
                raise error
            tries.alone = True
            return
        try:
            await self._server_back(died=isinstance(error, StepCrashedError))
        except PikFixError as reason:
            # The server is gone; what it said of this photo is the first sign of it.
            raise reason from error
        if not died:
            await self._pause_before_ready(error, tries)

    async def _pause_before_ready(self, error: PikFixError, tries: _Tries) -> None:
        """Wait longer each time that a server which calls itself ready turns the photo away."""
        if tries.pauses > self.reconnect_timeout:
            if self._answered_at > tries.turned_away_at:
                # It is no reason to end the run.
                raise CommandError(f"turned away while other photos were answered: {error}")
            raise error
        tries.turned_away_at = tries.turned_away_at or time.monotonic()
        pause = min(max(tries.pauses, _FIRST_PAUSE_S), LONGEST_PAUSE_S)
        tries.pauses += pause
        await asyncio.sleep(pause * random.uniform(0.75, 1.25))

    async def _wait_for_room(self, error: ServerBusyError, tries: _Tries) -> None:
        now = time.monotonic()
        tries.refused_since = tries.refused_since or now
        # While other photos of the run are answered, places become free.
        since = max(tries.refused_since, self._answered_at)
        if now - since > max(self.timeout, self.reconnect_timeout):
            raise after_waiting(error, now - tries.refused_since)
        pause = pause_before_room(error, tries.refusals)
        tries.refusals += 1
        async with self._changed:
            self.limit = max(1, min(self.limit, len(self._places)))
            self._answers = 0
        await asyncio.sleep(pause)

    async def _note_answer(self) -> None:
        self._answered_at = time.monotonic()
        self._answers += 1
        # Seldom: each step up may cost a refusal.
        if self.limit < self._most and self._answers >= 4 * self.limit:
            self.limit += 1
            self._answers = 0

    @contextlib.asynccontextmanager
    async def _place(self, *, alone: bool) -> AsyncIterator[_Place]:
        def free() -> bool:
            if self._recovery is not None or self._alone:
                return False
            if alone:
                return not self._places
            return not self._waiting_alone and len(self._places) < self.limit

        self._waiting_alone += alone
        try:
            async with self._changed:
                await self._changed.wait_for(free)
        finally:
            self._waiting_alone -= alone
        place = _Place(company=bool(self._places))
        for other in self._places:
            other.company = True
        self._places.append(place)
        self._alone = alone
        try:
            yield place
        finally:
            self._places.remove(place)
            self._alone = self._alone and not alone
            async with self._changed:
                self._changed.notify_all()

    async def _server_back(self, *, died: bool) -> None:
        """Return once the server answers again; all photos wait for it together."""
        if self._recovery is None:
            self._recovery = asyncio.create_task(self._recover(died=died))
        await asyncio.shield(self._recovery)

    async def _recover(self, *, died: bool) -> None:
        try:
            await self._poll(died=died)
        finally:
            self._recovery = None
            async with self._changed:
                self._changed.notify_all()

    async def _poll(self, *, died: bool) -> None:
        start = time.monotonic()
        noticed = 0.0
        if died:
            noticed = _NOTICED_AFTER_S if self._supervised else 1.0
        gone, told, pause = False, False, 0.2
        while True:
            try:
                await self.client.ensure_ready(self.system)
            except PikFixError as error:
                expected = error.passing or isinstance(
                    error, (*_PERHAPS_ANOTHER, ModelNotFoundError, DeadlineExceededError)
                )
                waited = time.monotonic() - start
                if not expected or waited > self.reconnect_timeout:
                    raise
                if waited > _MENTIONED_AFTER_S and not told:
                    told = True
                    self.notice(
                        "pikfix: the server does not answer; waiting up to "
                        f"{self.reconnect_timeout:g} s for it to come back"
                    )
                gone = True
            else:
                if gone or time.monotonic() - start >= noticed:
                    self._supervised = self._supervised and (gone or not died)
                    return
            await asyncio.sleep(pause * random.uniform(0.75, 1.25))
            pause = min(1.0, pause * 1.5)
