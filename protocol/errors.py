"""How a step says what went wrong: ``[step] code: message``."""

from __future__ import annotations

from typing import Literal

ErrorCode = Literal[
    "bad_photo",
    "unsupported_photo",
    "missing_package",
    "bad_reference",
    "bad_options",
    "photo_too_large",
    "bad_tensor",
    "busy",
    "deadline_exceeded",
    "out_of_memory",
    "internal",
]
"""Clients tell errors apart by these."""


def error_text(step: str, code: ErrorCode, message: str) -> str:
    """The text of an error, which clients parse."""
    return f"[{step}] {code}: {message}"
