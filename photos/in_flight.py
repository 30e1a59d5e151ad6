"""How many photos a server works on at a time: a bound that its first and last step keep together.

Triton's own bound, `max_queue_size` of a queue policy, costs more than it saves: a dynamic batcher
with a policy that finds its instances busy sleeps half a second, from which only a later request
wakes it (core, src/dynamic_batch_scheduler.cc, WaitForPayloadSlotAvailable). Of four clients with a
small network on two cores, each waited 59 ms for a step that takes 4, and 2 ms without a policy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import stat
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pikfix.photos.errors import PhotoError

LONGEST_SECONDS = 120.0
"""After which a photo counts as lost on its way where none has come through yet.

A caller who gives up, and a step that fails, end the request between the first and the last step,
and Triton tells neither of them. Without a bound of its own, a batch that is interrupted would keep
its places until the deadlines of its photos, hours perhaps, and others would find no room."""

LEAST_SECONDS = 10.0
"""No photo counts as lost earlier."""

_TIMES_THE_SLOWEST = 2.0
_REMEMBERED = 0.9  # of the slowest, by each photo that was faster

_SECONDS = struct.Struct("d")
_PLACE = struct.Struct("2d")
_PREFIX = "pikfix-in-flight"
_LOCK_WITHIN_S = 1.0


class InFlight:
    """The places of one server's photos, in a file that its steps' processes share.

    The file begins with the seconds that the slowest of the latest photos took. A place holds the
    Unix times since and until which it is taken; what is lost on the way frees it then.

    Args:
        path: the file; made when a photo is admitted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of_this_server(cls) -> InFlight:
        """The places of the server that has started this process."""
        server = os.getppid()
        return cls(_folder() / f"{_name_of(server, _started(server))}")

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
            OSError: the file cannot be used, or another process does not let go of it.
        """
        with self._locked(os.O_RDWR | os.O_CREAT) as handle:
            now = time.time()
            slowest = _read_slowest(handle)
            longest = (
                max(LEAST_SECONDS, _TIMES_THE_SLOWEST * slowest) if slowest else LONGEST_SECONDS
            )
            last = now + longest if until is None else min(until, now + longest)
            taken = _read_places(handle, limit)
            # A start that lies ahead tells that the clock was set back.
            free = [n for n, (start, end) in enumerate(taken) if not start <= now < end]
            wanted = min(photos, limit)
            if len(free) < wanted:
                raise PhotoError(
                    "busy",
                    f"{limit - len(free)} photos are being worked on, of at most {limit}: send it"
                    " again in a moment",
                )
            for place in free[:wanted]:
                os.pwrite(handle, _PLACE.pack(now, last), _offset(place))
        return free[:wanted]

    def release(self, places: Sequence[int]) -> None:
        """Free places, those of an earlier server too: what is free stays so."""
        if not places:
            return
        with contextlib.suppress(OSError), self._locked(os.O_RDWR) as handle:
            now = time.time()
            taken = _read_places(handle, max(places) + 1)
            slowest = _read_slowest(handle)
            for place in places:
                start, _ = taken[place]
                if 0.0 < start <= now:  # one that has counted as lost is the best of lessons
                    slowest = max(now - start, slowest * _REMEMBERED)
                os.pwrite(handle, _PLACE.pack(0.0, 0.0), _offset(place))
            os.pwrite(handle, _SECONDS.pack(slowest), 0)

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
        # What somebody else has put there, a named pipe for one, must not be waited for.
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        handle = os.open(self.path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(self.path))
            self._lock(handle)
            yield handle
        finally:
            os.close(handle)  # and with it the lock

    def _lock(self, handle: int) -> None:
        end = time.monotonic() + _LOCK_WITHIN_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:  # held for microseconds, unless its holder is stopped
                if time.monotonic() > end:
                    raise OSError(error.errno, "its lock is held", str(self.path)) from error
                time.sleep(0.001)


def _folder() -> Path:
    """Where the file lies: the same folder for every step, also where a disk fills up in between.

    `tempfile.gettempdir` writes to find out, and raises where there is no place.
    """
    given = os.environ.get("TMPDIR")
    for folder in (*([Path(given).absolute()] if given else []), Path("/tmp")):
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return Path("/dev/shm")  # the server cannot run without it


def _offset(place: int) -> int:
    return _SECONDS.size + place * _PLACE.size


def _read_slowest(handle: int) -> float:
    (seconds,) = _SECONDS.unpack(os.pread(handle, _SECONDS.size, 0).ljust(_SECONDS.size, b"\0"))
    return float(seconds) if 0.0 < seconds < math.inf else 0.0


def _read_places(handle: int, count: int) -> list[tuple[float, float]]:
    size = count * _PLACE.size
    data = os.pread(handle, size, _offset(0)).ljust(size, b"\0")
    return [(start, end) for start, end in _PLACE.iter_unpack(data)]


def _name_of(server: int, started: str) -> str:
    return f"{_PREFIX}-{os.getuid()}-{server}-{started}"


def _started(process: int) -> str:
    """When a process was started, which tells it from a later one of its number."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return fields[19]
