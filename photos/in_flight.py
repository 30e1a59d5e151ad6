"""How many photos a server works on at a time: a bound that its first and last step keep together.

Triton's own bound, `max_queue_size` of a queue policy, costs more than it saves: a dynamic batcher
with a policy that finds its instances busy sleeps half a second, from which only a later request
wakes it (core, src/dynamic_batch_scheduler.cc, WaitForPayloadSlotAvailable). On a GPU, where a step
takes milliseconds, eight clients were answered a tenth as fast for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pikfix.photos.errors import PhotoError

LONGEST_SECONDS = 120.0
"""After which a photo without a deadline counts as lost on its way: a step between has failed."""

_PLACE = struct.Struct("d")
_PREFIX = "pikfix-in-flight"


class InFlight:
    """The places of one server's photos, in a file that its steps' processes share.

    A place holds the Unix time until which it is taken; what is lost on the way frees it then.

    Args:
        path: the file; made when a photo is admitted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_this_server(cls) -> InFlight:
        """The places of the server that has started this process."""
        server = os.getppid()
        return cls(Path(tempfile.gettempdir()) / f"{_name_of(server, _started(server))}")

    def admit(self, photos: int, limit: int, until: float | None = None) -> list[int]:
        """Take a place for each photo of a request, or for as many as there are places.

        Args:
            photos: of the request.
            limit: places of the server.
            until: Unix time at which nobody waits for the answer any more.

        Returns:
            The places, for `release`.

        Raises:
            PhotoError: ``busy``, if there is not enough room.
            OSError: the file cannot be used.
        """
        now = time.time()
        last = now + LONGEST_SECONDS if until is None else until
        with self._locked(os.O_RDWR | os.O_CREAT) as handle:
            taken = _read(handle, limit)
            free = [place for place, end in enumerate(taken) if end <= now]
            wanted = min(photos, limit)
            if len(free) < wanted:
                raise PhotoError(
                    "busy",
                    f"{limit - len(free)} photos are being worked on, of at most {limit}: send it"
                    " again in a moment",
                )
            for place in free[:wanted]:
                taken[place] = last
            os.pwrite(handle, struct.pack(f"{limit}d", *taken), 0)
        return free[:wanted]

    def release(self, places: Sequence[int]) -> None:
        """Free places, those of an earlier server too: what is free stays so."""
        if not places:
            return
        with contextlib.suppress(OSError), self._locked(os.O_RDWR) as handle:
            for place in places:
                os.pwrite(handle, _PLACE.pack(0.0), place * _PLACE.size)

    def remove(self) -> None:
        """Remove the file, and those of servers that are no more."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            for path in self.path.parent.glob(f"{_PREFIX}-{os.getuid()}-*"):
                server = int(path.name.split("-")[-2])
                if path.name != _name_of(server, _started(server)):
                    path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, flags: int) -> Iterator[int]:
        handle = os.open(self.path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield handle
        finally:
            os.close(handle)  # and with it the lock


def _read(handle: int, limit: int) -> list[float]:
    size = limit * _PLACE.size
    return list(struct.unpack(f"{limit}d", os.pread(handle, size, 0).ljust(size, b"\0")))


def _name_of(server: int, started: str) -> str:
    return f"{_PREFIX}-{os.getuid()}-{server}-{started}"


def _started(process: int) -> str:
    """When a process was started, which tells it from a later one of its number."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return fields[19]
