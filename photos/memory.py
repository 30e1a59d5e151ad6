"""What malloc does with the memory of a step that takes picture after picture (glibc only)."""

from __future__ import annotations

import ctypes
import time

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 1 << 25

GIVE_BACK_SECONDS = 30.0
"""Between two returns of free memory: what is needed again has its pages zeroed first."""


class KeptMemory:
    """Keeps what is freed for the next picture, and gives it back to the system now and then.

    By default malloc gives large blocks back at once, and the system fills every page with zeros
    when they are asked for again: a third of the time that a photo's colours take to compose.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        mallopt = getattr(library, "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
            mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        self._trim = getattr(library, "malloc_trim", None)
        self._given_back = time.monotonic()

    def give_back(self) -> None:
        """Hand free pages back if half a minute has passed since the last time."""
        now = time.monotonic()
        if self._trim is not None and now - self._given_back > GIVE_BACK_SECONDS:
            self._given_back = now
            self._trim(0)
