"""How the instances of one server share its cores: one alone takes all, several take parts.

One request passes the steps one after the other, and then every core should work on it; under
load as many steps compute at once, and threads beyond the cores only wait for each other. Which
of the two it is changes from request to request, so each instance looks before it computes.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class SharedCores:
    """One instance's view of the cores; it holds the lock of its own file while it computes.

    The others count it by that lock, which dies with its process, so that a crash leaves no
    core taken.
    """

    def __init__(self, folder: Path, instance: str, cores: int):
        """Join the instances of `folder`, which is made if missing; OSError if it cannot be."""
        folder.mkdir(exist_ok=True)
        self._folder, self._cores = folder, cores
        self._own = folder / instance
        self._file = self._own.open("w")

    @contextmanager
    def part(self) -> Iterator[int]:
        """Compute within; gives the number of threads to do it with, at least one.

        What others are given meanwhile takes this instance into account, but a part, once given,
        stays as it is until the end.
        """
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield max(1, self._cores // (1 + self._others()))
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _others(self) -> int:
        """How many other instances are computing."""
        return sum(_is_locked(path) for path in self._folder.iterdir() if path != self._own)


def _is_locked(path: Path) -> bool:
    with path.open() as file:  # closing it gives a lock back
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
