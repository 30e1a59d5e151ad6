"""Sends photos to a server, a few at a time, and writes what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import errno
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from pikfix.batch.receipts import FileFacts
from pikfix.cli.flow import Flow
from pikfix.cli.plan import Job
from pikfix.cli.problems import CommandError, explain, stop_signals
from pikfix.cli.threads import in_daemon_thread
from pikfix.client import (
    AccessDeniedError,
    AsyncPikFixClient,
    ModelNotFoundError,
    PictureFormat,
    PikFixError,
    ProxyError,
    Report,
    RequestCancelledError,
    RestoredPhoto,
    ServerNotReadyError,
    ServerUnreachableError,
    TlsError,
    WrongServerError,
)
from pikfix.photos import read_picture_file, sidecar
from pikfix.protocol.names import DEFAULT_SYSTEM
from pikfix.protocol.options import DEFAULT_QUALITY

# After one of these, once the wait for a server has ended, no later photo can fare better.
_HOPELESS = (
    ServerUnreachableError,
    ServerNotReadyError,
    WrongServerError,
    TlsError,
    ProxyError,
    ModelNotFoundError,
    AccessDeniedError,
    RequestCancelledError,
)
_WITH_RESULT = ("restored", "left", "skipped")
_HOPELESS_ERRNO = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT})


@dataclass(frozen=True)
class Outcome:
    """What became of one photo.

    Attributes:
        job: the photo and its result file.
        status: ``restored``; ``left`` where the result is as the photo was, since that looks like
            text or a drawing; ``failed``, ``skipped``, or ``unfinished`` where the run ended first.
        seconds: from reading the photo to the written result.
        report: the server's report on a restored photo.
        error: why it failed.
        sidecar: the file beside the result that says how it was made, if there is one.
        photo: facts about the photo's file, where it was read and they are asked for.
        result: the same about the result's.
    """

    job: Job
    status: str
    seconds: float = 0.0
    report: Report | None = None
    error: Exception | None = None
    sidecar: Path | None = None
    photo: FileFacts | None = None
    result: FileFacts | None = None

    @property
    def problem(self) -> str:
        """The error in one line, without the photo's name."""
        if self.error is None:
            return ""
        if isinstance(self.error, OSError) and self.error.filename == str(self.job.photo):
            return self.error.strerror or str(self.error)
        return explain(self.error) or repr(self.error)

    def to_dict(self) -> dict[str, Any]:
        """Return the object that ``--json`` prints."""
        error: dict[str, str | None] | None = None
        if self.error is not None:
            error = {"type": type(self.error).__name__, "message": self.problem}
            if isinstance(self.error, PikFixError):
                error |= {"step": self.error.step, "code": self.error.code}
        return {
            "photo": str(self.job.photo),
            "output": str(self.job.output) if self.status in _WITH_RESULT else None,
            "sidecar": None if self.sidecar is None else str(self.sidecar),
            "status": self.status,
            "seconds": round(self.seconds, 3),
            "report": None if self.report is None else self.report.to_dict(),
            "error": error,
        }


class FileReference(bytes):
    """An encoded reference that was read from a file.

    Attributes:
        name: the file's, without folders.
    """

    name: str

    def __new__(cls, data: bytes, name: str) -> FileReference:
        """Keep a file's bytes with its name."""
        reference = super().__new__(cls, data)
        reference.name = name
        return reference


class LibraryReference(FileReference):
    """An encoded reference that was chosen from a library of this machine.

    Attributes:
        name: its name in the library.
        score: how well it suits the photo.
    """

    score: float

    def __new__(cls, data: bytes, name: str, score: float) -> LibraryReference:
        """Keep a file's bytes with what the library says about it."""
        reference = super().__new__(cls, data, name)
        assert isinstance(reference, LibraryReference)
        reference.score = score
        return reference


def _with_names(restored: RestoredPhoto, sent: Sequence[bytes]) -> RestoredPhoto:
    """Enter into the report what only this side knows: which pictures of a library were sent."""
    used = restored.report.references
    if len(used) != len(sent):
        return restored
    named = tuple(
        dataclasses.replace(use, source="library", name=one.name, score=one.score)
        if isinstance(one, LibraryReference)
        else use
        for use, one in zip(used, sent, strict=True)
    )
    report = dataclasses.replace(restored.report, references=named)
    return dataclasses.replace(restored, report=report)


class References(Protocol):
    """Chooses the references to send with a photo; called in a worker thread."""

    def __call__(self, photo: bytes) -> Sequence[bytes]:
        """Return the encoded references for an encoded photo."""


@dataclass(frozen=True)
class Settings:
    """How every photo is restored.

    Attributes:
        references: chooses what to send as reference.
        color: False restores only.
        force_color: colorize after a library's references even where none suits.
        force_photo: restore borders, pages of text and drawings as well.
        quality: of JPEG and WebP, 1 to 100.
        profile: of the results, own or srgb.
        depth: bits a sample of the results; None: the photo's.
        pages: of files with several photos, all or first.
        keep_color: photos that have colours keep them.
        strength: of the restoration, 0 to 1.
        color_strength: of the colours, 0 to 1.
        faces: have faces drawn anew, where the server can.
        system: that restores, or systems joined by a plus sign.
        mask: an encoded picture of the damage, where there is one.
        timeout: seconds per photo and attempt.
        in_flight: photos at a time, at most.
        overwrite: replace results that exist.
        reconnect_timeout: seconds to wait for a server that went away.
        sidecars: write beside each result how it was made.
        digests: let outcomes tell facts about the files.
    """

    references: References
    color: bool = True
    force_color: bool = False
    force_photo: bool = False
    quality: int = DEFAULT_QUALITY
    profile: str = "own"
    depth: int | None = None
    pages: str = "all"
    keep_color: bool = False
    strength: float = 1.0
    color_strength: float = 1.0
    faces: bool = True
    system: str = DEFAULT_SYSTEM
    mask: bytes | None = field(default=None, repr=False)
    timeout: float = 300.0
    in_flight: int = 2
    overwrite: bool = False
    reconnect_timeout: float = 0.0
    sidecars: bool = True
    digests: bool = False

    @property
    def wishes(self) -> dict[str, Any]:
        """What every photo is asked to become, as the client's `restore` takes it."""
        return {
            "color": self.color,
            "force_color": self.force_color,
            "force_photo": self.force_photo,
            "quality": self.quality,
            "profile": self.profile,
            "depth": self.depth,
            "pages": self.pages,
            "keep_color": self.keep_color,
            "strength": self.strength,
            "color_strength": self.color_strength,
            **({} if self.faces else {"faces": False}),
            **({} if self.system == DEFAULT_SYSTEM else {"system": self.system}),
        }


@dataclass
class _Files:
    """Facts about one photo's files, as they become known."""

    photo: FileFacts | None = None
    result: FileFacts | None = None


@dataclass
class Run:
    """A run over many photos.

    Attributes:
        settings: how to restore.
        report: called with every outcome, as it comes.
        notice: called with a line about what the run waits for.
        begin: called before anything is done about a photo.
        begun: whether `over` was called.
        interrupted: whether a signal ended it.
        fatal_error: the error that ended it early.
    """

    settings: Settings
    report: Callable[[Outcome], None]
    notice: Callable[[str], None] = lambda line: None
    begin: Callable[[Job], None] = lambda job: None
    begun: bool = False
    interrupted: bool = False
    fatal_error: Exception | None = None
    _stopping: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def over(self, jobs: Collection[Job], client: AsyncPikFixClient) -> None:
        """Restore all photos; what was not begun or not finished is reported as such.

        Jobs are taken when their turn comes, and forgotten when they are done.
        """
        self.begun = True
        waiting = iter(jobs)
        begun: dict[int, Job] = {}

        async def work() -> None:
            while not self._stopping:
                job = next(waiting, None)
                if job is None:
                    return
                begun[id(job)] = job
                outcome = await self._one(job, flow)
                del begun[id(job)]
                if _is_hopeless(outcome.error):
                    self.fatal_error = outcome.error
                    self._stop()
                self._tell(outcome)

        count = min(self.settings.in_flight, len(jobs))
        flow = Flow(
            client,
            count,
            self.settings.timeout,
            self.settings.reconnect_timeout,
            self.notice,
            self.settings.system,
        )
        self._tasks = [asyncio.create_task(work()) for _ in range(count)]
        with self._signals():
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):  # a defect: every other error is an outcome
                raise result
        for job in itertools.chain(begun.values(), waiting):
            self._tell(Outcome(job, "unfinished"))

    def _tell(self, outcome: Outcome) -> None:
        try:
            self.report(outcome)
        except OSError:
            # Whoever reads the results has had enough, or the disk that takes them is full.
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let the first signal to stop end the run in order; the second one kills."""
        loop = asyncio.get_running_loop()
        numbers = stop_signals()

        def end() -> None:
            self.interrupted = True
            restore()
            self._stop()

        def restore() -> None:
            for number in numbers:
                loop.remove_signal_handler(number)

        try:
            for number in numbers:
                loop.add_signal_handler(number, end)
        except (NotImplementedError, RuntimeError, ValueError):
            # Windows, or not in the main thread: Ctrl-C then arrives as KeyboardInterrupt.
            yield
            return
        try:
            yield
        finally:
            restore()

    async def _one(self, job: Job, flow: Flow) -> Outcome:
        start = time.monotonic()
        files = _Files()
        try:
            self.begin(job)
            restored = await self._restore(job, flow, files)
        except (PikFixError, OSError, CommandError) as error:
            seconds = time.monotonic() - start
            return Outcome(job, "failed", seconds, error=error, photo=files.photo)
        # A page of text or a drawing comes back as it was, which is no restored photo.
        status = "restored" if restored.report.restored else "left"
        beside = sidecar.path_beside(job.output) if self.settings.sidecars else None
        return Outcome(
            job,
            status,
            time.monotonic() - start,
            restored.report,
            sidecar=beside,
            photo=files.photo,
            result=files.result,
        )

    async def _restore(self, job: Job, flow: Flow, files: _Files) -> RestoredPhoto:
        settings = self.settings
        photo, files.photo = await in_daemon_thread(self._read, job)
        references: Sequence[bytes] = ()
        if settings.color and DEFAULT_SYSTEM in settings.system.split("+"):
            references = await asyncio.to_thread(settings.references, photo)

        async def send() -> RestoredPhoto:
            return await flow.client.restore(
                photo,
                list(references),
                format=cast(PictureFormat, job.format),
                timeout=settings.timeout,
                mask=settings.mask,
                **settings.wishes,
            )

        restored = await flow.send(send)
        restored = _with_names(restored, references)
        if settings.digests:
            files.result = await asyncio.to_thread(_facts, restored.data)
        beside: bytes | None = None
        if settings.sidecars:
            beside = await asyncio.to_thread(self._sidecar, job, photo, references, restored)
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, job, restored, beside))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            # The thread cannot be stopped: let it end, so that what is written is counted.
            await writing
        return restored

    def _read(self, job: Job) -> tuple[bytes, FileFacts | None]:
        if not self.settings.digests:
            return read_picture_file(job.photo), None
        changed = job.photo.stat().st_mtime_ns  # before: a later change makes it stale
        photo = read_picture_file(job.photo)
        return photo, _facts(photo)._replace(mtime_ns=changed)

    def _sidecar(
        self, job: Job, photo: bytes, references: Sequence[bytes], restored: RestoredPhoto
    ) -> bytes:
        # Where the server took other references than were sent, it alone knows which.
        sent = references if len(references) == len(restored.report.references) else ()
        return sidecar.compose(
            sidecar.File(job.photo.name, photo),
            sidecar.File(job.output.name, restored.data),
            [
                sidecar.File(one.name, one) if isinstance(one, FileReference) else None
                for one in sent
            ],
            report=restored.report.to_dict(),
            options=self.settings.wishes | {"format": job.format},
            when=datetime.datetime.now().astimezone(),
        )

    def _write(self, job: Job, restored: RestoredPhoto, beside: bytes | None) -> None:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        if not self.settings.overwrite and job.output.exists():
            raise CommandError(f"{job.output} appeared meanwhile and is left as it is")
        place = sidecar.path_beside(job.output)
        ours = sidecar.is_one(place)
        if beside is not None and os.path.lexists(place) and not ours:
            raise CommandError(
                f"{place}, where the result's sidecar belongs, is another file; move it, or give"
                " --no-sidecar"
            )
        restored.save(job.output, sidecar=beside)
        if beside is None and ours:
            place.unlink()  # of the result that was replaced


def _facts(data: bytes) -> FileFacts:
    return FileFacts(len(data), hashlib.sha256(data).hexdigest())


def _is_hopeless(error: Exception | None) -> bool:
    if isinstance(error, OSError):
        return error.errno in _HOPELESS_ERRNO
    return isinstance(error, _HOPELESS)
