"""The error that every function on picture files raises for what a user can cause."""

from __future__ import annotations

from pikfix.protocol.errors import ErrorCode


class PhotoError(ValueError):
    """A picture, an option or a tensor that cannot be worked on.

    Attributes:
        code: one of :data:`pikfix.protocol.errors.ErrorCode`; clients tell errors apart by it.
        message: one line: what is wrong and what to do.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        # Parsers quote file contents; a line break would end the error early for a client.
        self.message = " ".join(message.split())

    def __str__(self) -> str:
        return self.message
