"""What can go wrong in an export."""

from __future__ import annotations


class ExportError(ValueError):
    """An export that was refused or failed; the repository is as it was before."""


class ParityError(ExportError):
    """An exported network does not compute what the PyTorch network computes."""
