"""Paths that Triton pastes into a shell command or a list, and links that stand in for them.

The python backend starts a stub by `bash -c "exec STUB MODEL_FILE REGION ... BACKEND_FOLDER ..."`
without quotes, so that a space in any of these paths ends the start, or makes it wait for ever.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path

Link = Callable[[Path], Path]
"""Gives a path under which the same file or folder is reached."""


def is_plain(path: Path | str) -> bool:
    """Whether a path survives an unquoted shell word and the lists in LD_LIBRARY_PATH and PATH."""
    text = str(path)
    return shlex.quote(text) == text and os.pathsep not in text


class Links:
    """Symbolic links in a folder with a plain path, each to a path that is not plain."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._made: dict[Path, Path] = {}

    def __call__(self, path: Path) -> Path:
        """A plain path for an absolute one: itself, or a link to it."""
        if is_plain(path):
            return path
        if path not in self._made:
            self._folder.mkdir(exist_ok=True)
            link = self._folder / str(len(self._made))
            link.symlink_to(path)
            self._made[path] = link
        return self._made[path]
