"""When a request that a server had no room for is sent again.

Which troubles pass, the errors say themselves (``PikFixError.passing``). A connection that breaks
or is refused, gRPC repeats at once and a few times (``Retry.attempts``); a full queue takes as long
as the photos before, and is waited for here. The command line, which knows of all photos of a
batch, waits by the same rule.
"""

from __future__ import annotations

import random
import time

from pikfix.client._errors import DeadlineExceededError, PikFixError, ServerBusyError
from pikfix.client._options import Retry
from pikfix.client._requests import deadline_parameters

LONGEST_PAUSE_S = 8.0


def pause_before_room(error: ServerBusyError, refusals: int) -> float:
    """Return the seconds to wait after a refusal, which double from one to the next.

    Args:
        error: the refusal.
        refusals: how many the same request has met before.
    """
    pause = min(error.retry_after * 2.0 ** min(refusals, 16), LONGEST_PAUSE_S)
    # Requests that were refused together should not come back together.
    return pause * random.uniform(1.0, 1.5)


def after_waiting(error: PikFixError, seconds: float) -> PikFixError:
    """Return an error that tells how much of the time given went into waiting for room."""
    if seconds <= 0 or not isinstance(error, (DeadlineExceededError, ServerBusyError)):
        return error
    return type(error)(
        f"{error.detail.rstrip(' .;!')} (waited {seconds:.1f} s for room in the server)",
        model=error.model,
        step=error.step,
        code=error.code,
        status=error.status,
        url=error.url,
    )


class Tries:
    """The attempts at one request, which share its one time limit.

    Args:
        seconds: the limit from now; None for none.
        retry: whether to wait for room.

    Attributes:
        parameters: of the request, the same for each attempt: its deadline.
    """

    def __init__(self, seconds: float | None, retry: Retry) -> None:
        self._ends = None if seconds is None else time.monotonic() + seconds
        self._waits = retry.wait_for_room
        self._refusals = 0
        self._waited = 0.0
        self.parameters = deadline_parameters(seconds)

    @property
    def seconds_left(self) -> float | None:
        """Time for the next attempt."""
        return None if self._ends is None else max(self._ends - time.monotonic(), 1e-3)

    def pause_after(self, error: PikFixError) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            PikFixError: the error, if it is none to wait for or too little time is left.
        """
        if not (self._waits and isinstance(error, ServerBusyError)):
            raise after_waiting(error, self._waited)
        pause = pause_before_room(error, self._refusals)
        self._refusals += 1
        if self._ends is not None and time.monotonic() + pause >= self._ends:
            raise after_waiting(error, self._waited)
        self._waited += pause
        return pause
