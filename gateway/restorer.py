"""The bounded queue of restorations, and the few of them that are with the server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pikfix.client import (
    AsyncPikFixClient,
    ConnectionLostError,
    PikFixError,
    RestoredPhoto,
    StepCrashedError,
)
from pikfix.gateway.library import Library
from pikfix.gateway.metrics import Metrics
from pikfix.gateway.problems import Problem, problem_of
from pikfix.gateway.settings import Settings
from pikfix.gateway.store import Job, Store

logger = logging.getLogger(__name__)

_MOST_DEATHS = 3
"""Deaths of a step or the server that one photo may meet: it may be their cause."""
_DEATHS = (StepCrashedError, ConnectionLostError)
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 8.0
_SWEEP_S = 60.0
_REMEMBERED = 20
_USUAL_SECONDS = 5.0


class Restorer:
    """Knows every restoration, and does those that wait, the oldest first.

    Args:
        client: the connection to the server.
        store: where restorations are kept.
        settings: how many at a time, how long.
        metrics: told of everything.
        library: where references are that are asked for by name.
    """

    def __init__(
        self,
        client: AsyncPikFixClient,
        store: Store,
        settings: Settings,
        metrics: Metrics,
        library: Library | None = None,
    ) -> None:
        self._library = library
        self._client = client
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._jobs: dict[str, Job] = {}
        self._keys: dict[tuple[str, str], str | None] = {}
        self._waiting: deque[Job] = deque()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._uploads = 0
        self._changed = asyncio.Condition()
        self._changes = 0
        self._closing = False
        self._took: deque[float] = deque(maxlen=_REMEMBERED)
        self._workers: list[asyncio.Task[None]] = []
        self.answered_at = -math.inf
        """When the server last answered a photo, by the monotonic clock."""

    # --- life ---

    async def start(self) -> None:
        """Take up what the store holds, and begin."""
        for job in await asyncio.to_thread(self._store.load):
            self._know(job)
            if not job.ended:
                self._waiting.append(job)
        if self._waiting:
            logger.info("%d unfinished restorations are taken up again", len(self._waiting))
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._settings.in_flight)]
        self._workers.append(asyncio.create_task(self._sweep()))
        self._count()

    async def let_go(self) -> None:
        """Answer those who wait for something: the gateway is about to end."""
        self._closing = True
        await self._tell()

    async def stop(self) -> None:
        """End; what is not finished is done by the next gateway on this folder."""
        tasks = [*self._workers, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- what comes in ---

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the queue for an upload.

        Raises:
            Problem: 429; the queue is full.
        """
        taken = self._uploads + len(self._waiting) + len(self._running)
        if taken >= self._settings.queue:
            seconds = self._seconds_until(len(self._waiting)) or 1
            raise Problem(
                429,
                "queue_full",
                "Too many restorations are waiting",
                f"all {self._settings.queue} places are taken: send the photo again in {seconds} s",
                retry_after=seconds,
            )
        self._uploads += 1
        self._count()
        try:
            yield
        finally:
            self._uploads -= 1
            self._count()

    @contextlib.contextmanager
    def key(self, owner: str, key: str | None) -> Iterator[Job | None]:
        """Hold an Idempotency-Key; gives the restoration that it already stands for.

        Raises:
            Problem: 409; a request with the same key is being read.
        """
        if key is None:
            yield None
            return
        known = (owner, key)
        if known in self._keys:
            number = self._keys[known]
            if number is None:
                raise Problem(
                    409,
                    "key_in_use",
                    "The same request is being read",
                    "a request with this Idempotency-Key is still being read: ask again later",
                    retry_after=1,
                )
            yield self._jobs[number]
            return
        self._keys[known] = None
        try:
            yield None
        finally:
            if self._keys.get(known, "") is None:  # nothing came of it
                del self._keys[known]

    async def add(self, job: Job) -> None:
        """Queue a restoration that the store has accepted."""
        self._know(job)
        self._waiting.append(job)
        await self._tell()

    def get(self, number: str, owner: str) -> Job:
        """Return a restoration of this owner.

        Raises:
            Problem: 404.
        """
        job = self._jobs.get(number)
        if job is None or job.owner != owner:
            raise Problem(
                404,
                "not_found",
                "There is no such restoration",
                "it never was, was deleted, or ended longer ago than results are kept",
            )
        return job

    async def remove(self, job: Job) -> None:
        """Forget a restoration, and leave off the work on it."""
        if self._jobs.pop(job.id, None) is None:
            return
        if job.key is not None:
            self._keys.pop((job.owner, job.key), None)
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)
        task = self._running.get(job.id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        if not job.ended:
            self._metrics.restorations.labels("cancelled").inc()
        await asyncio.to_thread(self._store.remove, job)
        await self._tell()

    # --- what is told ---

    def ahead(self, job: Job) -> int:
        """Restorations that are begun before this one."""
        return self._waiting.index(job) if job in self._waiting else 0

    def seconds_left(self, job: Job) -> int | None:
        """About how long until it ends, by what the last ones took; None where that is unknown."""
        if job.ended or not self._took:
            return None
        if job.state == "running":
            passed = time.time() - (job.started or time.time())
            return max(1, round(statistics.median(self._took) - passed))
        return self._seconds_until(self.ahead(job) + 1)

    def knows(self, job: Job) -> bool:
        """Whether it was not removed."""
        return job.id in self._jobs

    async def ended(self, job: Job) -> None:
        """Return once a restoration has ended or was removed, or the gateway is about to end."""
        async with self._changed:
            await self._changed.wait_for(lambda: job.ended or self._closing or not self.knows(job))

    async def changes(self, seconds: float) -> AsyncIterator[None]:
        """Yield whenever anything changes, and after so many seconds without a change.

        It ends when the gateway is about to.
        """
        while not self._closing:
            seen = self._changes
            yield None
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._changed_since(seen), seconds)

    async def _changed_since(self, seen: int) -> None:
        async with self._changed:
            # Of what changed while the last state was being sent, nobody was notified.
            await self._changed.wait_for(lambda: self._changes != seen)

    def _seconds_until(self, ahead: int) -> int:
        each = statistics.median(self._took) if self._took else _USUAL_SECONDS
        return max(1, math.ceil(each * math.ceil((ahead + 1) / self._settings.in_flight)))

    # --- work ---

    def _know(self, job: Job) -> None:
        self._jobs[job.id] = job
        if job.key is not None:
            self._keys[job.owner, job.key] = job.id

    def _count(self) -> None:
        gauge = self._metrics.jobs
        gauge.labels("uploading").set(self._uploads)
        gauge.labels("queued").set(len(self._waiting))
        gauge.labels("running").set(len(self._running))
        gauge.labels("ended").set(sum(job.ended for job in self._jobs.values()))

    async def _tell(self) -> None:
        self._count()
        async with self._changed:
            self._changes += 1
            self._changed.notify_all()

    async def _work(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._waiting)
                job = self._waiting.popleft()
                job.state, job.started = "running", time.time()
                task = self._running[job.id] = asyncio.create_task(self._one(job))
            await self._tell()
            try:
                await asyncio.wait({task})
            finally:
                self._running.pop(job.id, None)
            await self._tell()

    async def _one(self, job: Job) -> None:
        start = time.monotonic()
        problem = restored = None
        try:
            restored = await self._restore(job)
            self.answered_at = time.monotonic()
        except Problem as found:
            problem = found
        except PikFixError as error:
            problem = problem_of(error)
        except OSError as error:
            problem = Problem(500, "not_readable", "The upload was lost", error.strerror or "")
        except Exception:
            logger.exception("restoration %s failed", job.id)
            problem = Problem(500, "internal", "Something failed", "the gateway's log says more")
        try:
            await self._end(job, restored, problem)
        except OSError as error:
            logger.error("restoration %s cannot be written: %s", job.id, error.strerror)
            problem = Problem(
                507,
                "not_writable",
                "The result cannot be written",
                f"{error.strerror}: make room where results are kept, then send the photo again",
            )
            job.state, job.error, job.finished = "failed", problem.to_dict(), time.time()
        seconds = time.monotonic() - start
        outcome = "done" if problem is None else problem.code
        self._metrics.restorations.labels(outcome).inc()
        if problem is None:
            self._took.append(seconds)
            self._metrics.seconds.observe(seconds)
        logger.info("restoration %s: %s after %.2f s", job.id, outcome, seconds)

    async def _end(self, job: Job, restored: RestoredPhoto | None, problem: Problem | None) -> None:
        end: dict[str, Any] = {
            "state": "done" if problem is None else "failed",
            "finished": time.time(),
            "report": None if restored is None else restored.report.to_dict(),
            "error": None if problem is None else problem.to_dict(),
        }
        # A copy is written first: nobody sees an end that is not on disk.
        ended = Job(**{**vars(job), **end})
        data = None if restored is None else restored.data
        await asyncio.to_thread(self._store.finish, ended, data)
        for name, value in end.items():
            setattr(job, name, value)

    async def _restore(self, job: Job) -> RestoredPhoto:
        references = [self._store.reference(job, number) for number in range(job.references)]
        if self._library is not None:
            references += [await self._library.path_of(name) for name in job.library]
        deaths, pause, away_since = 0, _FIRST_PAUSE_S, 0.0
        while True:
            try:
                return _with_names(await self._send(job, references), job)
            except PikFixError as error:
                now = time.monotonic()
                away_since = away_since or now
                deaths += isinstance(error, _DEATHS)
                over = now - away_since > self._settings.patience or deaths >= _MOST_DEATHS
                if not error.passing or over:
                    raise
                logger.warning("restoration %s is sent again: %s", job.id, type(error).__name__)
            await asyncio.sleep(pause * random.uniform(1.0, 1.5))
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _send(self, job: Job, references: list[Path]) -> RestoredPhoto:
        # As bytes: what is wrong with a file, the server knows best.
        path = self._store.mask(job)
        files = [self._store.photo(job), *references, *([] if path is None else [path])]
        photo, *sent = await asyncio.to_thread(_read, files)
        mask = None if path is None else sent.pop()
        return await self._client.restore(
            photo, sent, mask=mask, timeout=self._settings.timeout, **job.options
        )

    async def _sweep(self) -> None:
        keep = self._settings.keep_seconds
        while True:
            for job in [one for one in self._jobs.values() if self._store.expired(one, keep)]:
                await self.remove(job)
            await asyncio.sleep(min(_SWEEP_S, max(keep / 2, 0.1)))


def _read(paths: Sequence[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


def _with_names(restored: RestoredPhoto, job: Job) -> RestoredPhoto:
    """Enter into the report what only this side knows: which pictures of the library were sent."""
    used = restored.report.references
    if len(used) != job.references + len(job.library):
        return restored
    names = [None] * job.references + list(job.library)
    named = tuple(
        use if name is None else replace(use, source="library", name=name)
        for use, name in zip(used, names, strict=True)
    )
    return replace(restored, report=replace(restored.report, references=named))
