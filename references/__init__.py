"""Chooses colour references: scores, the library on disk, and what server and commands ask of it.

`build_library` in `builder`, `Library` in `library`. Importing this package alone loads no torch.
"""

from __future__ import annotations

from pikfix.references.errors import LibraryError

__all__ = ["LibraryError"]
