"""The one exception of this package."""

from __future__ import annotations


class ServingError(RuntimeError):
    """The server cannot be started or has failed; the message is one line that says what to do."""
