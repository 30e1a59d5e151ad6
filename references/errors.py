"""The error of this package."""

from __future__ import annotations


class LibraryError(ValueError):
    """A library of references that cannot be built or used; one line, with what to do."""
