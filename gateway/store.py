"""Restorations on disk: whole folders that appear at once, an end that is written once.

::

    FOLDER/lock                    held while a gateway uses the folder
    FOLDER/incoming-*/             an upload; nobody knows of it yet
    FOLDER/ID/request.json, photo, mask, reference-0, ...
    FOLDER/ID/result               the restored picture
    FOLDER/ID/end.json             written last: how it ended

A folder without ``end.json`` is work to do, also after the gateway was killed; one with it is
finished and never done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from pikfix.photos import write_atomically

logger = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed"]

_ID = re.compile(r"[0-9a-f]{32}")
_INCOMING = "incoming-"


class StoreError(Exception):
    """The folder of restorations cannot be used; one line that says why."""


@dataclass(eq=False)
class Job:
    """One restoration.

    Attributes:
        id: 128 random bits in hexadecimal.
        owner: name of the token it was asked for with; empty where there are none.
        created: Unix time in seconds, as the others.
        name: the photo's file name as the caller gave it, for showing alone.
        size: bytes of the photo.
        references: references that were sent.
        library: names of pictures of the server's library to colour after.
        options: the options that were asked for.
        key: the caller's Idempotency-Key.
        state: queued, running, done or failed.
        started: when it was first sent to the server.
        finished: when it ended.
        report: the server's report, once done.
        error: the problem's members, once failed.
    """

    id: str
    owner: str
    created: float
    name: str
    size: int
    references: int = 0
    library: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    key: str | None = None
    state: State = "queued"
    started: float | None = None
    finished: float | None = None
    report: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("done", "failed")


_REQUEST = ("id", "owner", "created", "name", "size", "references", "library", "options", "key")
_END = ("state", "started", "finished", "report", "error")


def _pick(job: Job, names: tuple[str, ...]) -> bytes:
    return json.dumps({name: getattr(job, name) for name in names}).encode()


class Store:
    """The folder of restorations.

    Args:
        folder: made where it is missing, for its owner's eyes alone.

    Raises:
        StoreError: another gateway uses it.
        OSError: it cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock: IO[str] = (folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StoreError(
                f"{folder} is in use by another `pikfix web`: give this one another --store"
            ) from error

    def close(self) -> None:
        """Let another gateway use the folder."""
        self._lock.close()

    def load(self) -> list[Job]:
        """Return what is there, the oldest first; what was never whole is removed."""
        jobs = []
        for place in self.folder.iterdir():
            if place.name.startswith(_INCOMING):
                shutil.rmtree(place, ignore_errors=True)
            elif _ID.fullmatch(place.name):
                try:
                    jobs.append(self._load(place))
                except (OSError, ValueError, TypeError, KeyError) as error:
                    logger.warning("%s is no restoration and is left as it is: %r", place, error)
        return sorted(jobs, key=lambda job: job.created)

    def _load(self, place: Path) -> Job:
        values = json.loads((place / "request.json").read_bytes())
        values["library"] = tuple(values["library"])
        with contextlib.suppress(FileNotFoundError):
            values |= json.loads((place / "end.json").read_bytes())
        job = Job(**values)
        if job.id != place.name:
            raise ValueError("its request names another one")
        return job

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Path]:
        """Give a folder for an upload, which is gone afterwards unless it was accepted."""
        place = self.folder / f"{_INCOMING}{secrets.token_hex(16)}"
        place.mkdir(mode=0o700)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def accept(self, job: Job, incoming: Path) -> None:
        """Make an upload, with ``photo`` and the references in place, a restoration to do."""
        write_atomically(incoming / "request.json", _pick(job, _REQUEST))
        incoming.rename(self.folder / job.id)
        self._settle(self.folder)

    def photo(self, job: Job) -> Path:
        """The photo's file."""
        return self.folder / job.id / "photo"

    def mask(self, job: Job) -> Path | None:
        """The file of the mask that was sent, or None."""
        path = self.folder / job.id / "mask"
        return path if path.exists() else None

    def reference(self, job: Job, number: int) -> Path:
        """The file of a reference that was sent."""
        return self.folder / job.id / f"reference-{number}"

    def result(self, job: Job) -> Path:
        """The restored picture's file."""
        return self.folder / job.id / "result"

    def ranking(self, job: Job) -> Path:
        """The file that keeps how the library's pictures suit the photo."""
        return self.folder / job.id / "ranking.json"

    def finish(self, job: Job, result: bytes | None) -> None:
        """Write how a restoration ended: its picture first, its end last."""
        if result is not None:
            write_atomically(self.result(job), result)
        write_atomically(self.folder / job.id / "end.json", _pick(job, _END))

    def remove(self, job: Job) -> None:
        """Forget a restoration: all of it, or after a crash in between nothing of it."""
        place = self.folder / f"{_INCOMING}{secrets.token_hex(16)}"
        with contextlib.suppress(FileNotFoundError):
            (self.folder / job.id).rename(place)
        shutil.rmtree(place, ignore_errors=True)

    def expired(self, job: Job, keep_seconds: float) -> bool:
        """Whether a restoration ended longer ago than it is kept."""
        return job.finished is not None and time.time() - job.finished > keep_seconds

    @staticmethod
    def _settle(folder: Path) -> None:
        """Let a rename outlive a loss of power."""
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
