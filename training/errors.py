"""The one error of training that a user can cause and mend."""

from __future__ import annotations

_LONGEST = 150


class TrainingError(Exception):
    """A run cannot start or go on; the message is one line that says why and what to do."""


def in_one_line(error: BaseException) -> str:
    """The text of another library's error, short enough to be quoted."""
    said = error.strerror if isinstance(error, OSError) else None
    text = " ".join((said or str(error)).split())
    return text[:_LONGEST] or type(error).__name__
