"""The deadline of a request: a parameter that every step compares with its own clock.

Triton does not tell an ensemble's steps that the caller has given up, and times out what waits in
a queue, never what runs.
"""

from __future__ import annotations

import json
import time

PARAMETER = "deadline_unix_ms"
"""Milliseconds of Unix time."""


def deadline_in(seconds: float) -> dict[str, int]:
    """The parameter of a request that may take so long from now on."""
    return {PARAMETER: int((time.time() + seconds) * 1000)}


def read_deadline(parameters: str | None) -> int | None:
    """The deadline of a request in milliseconds, or None.

    Args:
        parameters: the request's parameters as JSON text.

    Raises:
        TypeError: it is no integer; the message says what it must be.
    """
    deadline = json.loads(parameters).get(PARAMETER) if parameters else None
    if deadline is None:
        return None
    if not isinstance(deadline, int) or isinstance(deadline, bool):
        raise TypeError(f"{PARAMETER} must be an integer, Unix time in ms, not {deadline!r}")
    return deadline


def lateness(deadline_ms: int | None, now: float | None = None) -> str | None:
    """What to tell whoever waited, once a deadline has passed; None until then.

    Args:
        deadline_ms: in milliseconds of Unix time; None is never reached.
        now: Unix time in seconds; the clock's where None.
    """
    if deadline_ms is None:
        return None
    late = (time.time() if now is None else now) * 1000.0 - deadline_ms
    if late <= 0:
        return None
    return f"the deadline passed {late:.0f} ms ago: allow more time, or try when load is lower"
