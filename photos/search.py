"""Pictures in a folder and its sub-folders: found by what can be read, the rest counted."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pikfix.photos.recognize import is_picture, suffixes


@dataclass
class Found:
    """What a folder holds.

    Attributes:
        pictures: files that are to be taken for pictures, by `recognize`, in the order of their
            folders. Some may turn out to be damaged.
        unreadable: files and folders that cannot be looked into, with the reason.
        left_out: how many files are no pictures, by suffix or kind.
        not_followed: links to folders, which are not searched.
    """

    pictures: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    not_followed: int = 0

    def notes(self) -> list[str]:
        """Return a line for everything that is not among the pictures, files of a kind counted."""
        lines = [f"{path}: {reason}" for path, reason in self.unreadable]
        counted = describe_left_out(self.left_out, self.not_followed)
        return [*lines, counted] if counted else lines


def describe_left_out(left_out: Mapping[str, int], not_followed: int = 0) -> str:
    """Return what was left out, as in ``3 files left out: 2 .txt, 1 .mp4``; "" if nothing."""
    parts = []
    total = sum(left_out.values())
    if total:
        most_first = sorted(left_out.items(), key=lambda one: (-one[1], one[0]))
        kinds = ", ".join(f"{count} {kind}" for kind, count in most_first)
        parts.append(f"{total} file{'s' if total > 1 else ''} left out: {kinds}")
    if not_followed:
        links = "a link" if not_followed == 1 else f"{not_followed} links"
        parts.append(f"{links} to a folder not followed")
    return "; ".join(parts)


def find_pictures(folder: Path, unless: Path | None = None) -> Found:
    """Search a folder with its sub-folders; hidden files are left out, links not followed.

    Args:
        folder: searched even if hidden.
        unless: a sub-folder that is not searched, such as that of the results.
    """
    found = Found()

    def note(error: OSError) -> None:
        found.unreadable.append((Path(str(error.filename or folder)), error.strerror or str(error)))

    not_searched = None if unless is None else os.path.realpath(unless)
    for place, folders, files in os.walk(folder, onerror=note):
        here = Path(place)
        found.not_followed += sum((here / name).is_symlink() for name in folders)
        folders[:] = sorted(n for n in folders if os.path.realpath(here / n) != not_searched)
        hidden = any(part.startswith(".") for part in here.relative_to(folder).parts)
        for name in sorted(files):
            path = here / name
            try:
                kind = "hidden" if hidden or name.startswith(".") else _why_left_out(path)
            except OSError as error:
                found.unreadable.append((path, error.strerror or str(error)))
                continue
            if kind is None:
                found.pictures.append(path)
            else:
                found.left_out[kind] += 1
    return found


def _why_left_out(path: Path) -> str | None:
    """Return the suffix or kind of a file that is no picture; None for a picture."""
    # What is called a picture and is none, such as a named pipe, is an input that fails.
    if path.suffix.lower() in suffixes():
        return None
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:  # a link to nothing
        regular = False
    if not regular:
        return "special"  # opening a named pipe would wait for its writer
    if is_picture(path):
        return None
    return path.suffix.lower() or "without suffix"
