"""The one error of training that a user can cause and mend."""

from __future__ import annotations


class TrainingError(Exception):
    """A run cannot start or go on; the message is one line that says why and what to do."""
