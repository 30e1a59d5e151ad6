"""Which photos a batch has, which part of them is one worker's, and where results go.

A photo is known by its name: its path below one root, as text. A million of them fit into memory,
and nothing but names is looked at, so that every worker comes to the same plan by itself.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pikfix.client._results import SUFFIX_FORMATS
from pikfix.photos.search import describe_left_out, find_pictures

_SUFFIX_OF = {"jpeg": ".jpg", "png": ".png", "tiff": ".tif", "webp": ".webp"}
_CLASHES_NAMED = 10
_LONGEST_NAME = 4096


class ManifestError(Exception):
    """The photos cannot be planned; the message says why and what to do."""


def result_name(name: str, format: str | None) -> tuple[str, str]:
    """Return the name of a photo's result and its format.

    Args:
        name: the photo's, with or without folders.
        format: of all results; None keeps the photo's own, or PNG where that cannot be written.
    """
    own = SUFFIX_FORMATS.get(os.path.splitext(name)[1].lower())
    chosen = format or own or "png"
    # After the whole name: scan.bmp and scan.png, or scan.tif, must not become one file, and
    # where a result goes must not depend on what else is in the folder today.
    return (name if own == chosen else name + _SUFFIX_OF[chosen]), chosen


@dataclass(frozen=True)
class Shard:
    """One of several parts of equal size, which together are all photos.

    Attributes:
        index: which, from 0.
        count: how many there are.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the part that ``I/N`` names.

        Raises:
            ValueError: it names none.
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if match is None or not int(match[1]) < int(match[2]):
            raise ValueError(f"{text!r} is no part: give I/N, I from 0 to N-1, such as 0/4 to 3/4")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, name: str) -> bool:
        """Tell whether a photo is in this part, by its name alone: the same on every machine."""
        if self.count == 1:
            return True
        digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.count == self.index


@dataclass
class Manifest:
    """The photos of a batch.

    Attributes:
        root: folder that names are below.
        names: of the photos, each once, in order.
        unreadable: folders and files that cannot be looked into, with the reason; what they hold
            is unknown.
        left_out: how many files are no pictures, by suffix or kind.
        not_followed: links to folders, which are not searched.
    """

    root: str
    names: list[str]
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    not_followed: int = 0

    def path(self, name: str) -> str:
        """Return where a photo is."""
        return os.path.join(self.root, name)

    def part(self, shard: Shard) -> Iterator[str]:
        """Yield the names of one part, in order."""
        return filter(shard.holds, self.names)

    def describe_left_out(self) -> str:
        """Return what was left out in a line; "" if nothing."""
        return describe_left_out(self.left_out, self.not_followed)

    def check_results(self, out: Path, format: str | None) -> None:
        """See that every photo has a result of its own, and none replaces a photo.

        Raises:
            ManifestError: two photos would have one result, or a result would replace a photo.
        """
        takers: dict[str, str] = {}
        clashes = []
        for name in self.names:
            result = result_name(name, format)[0]
            other = takers.setdefault(result, name)
            if other is not name:
                clashes.append(f"{other} and {name} would both become {result}")
        if clashes:
            more = len(clashes) - _CLASHES_NAMED
            if more > 0:
                clashes[_CLASHES_NAMED:] = [f"and {more} more"]
            raise ManifestError(f"{'; '.join(clashes)}; rename them, or restore them separately")
        below = os.path.join(os.path.realpath(out), "")
        root = os.path.join(os.path.realpath(self.root), "")
        if not (root.startswith(below) or below.startswith(root)):
            return
        for name in self.names:
            path = root + name
            if path.startswith(below) and path[len(below) :] in takers:
                raise ManifestError(
                    f"a result would replace the photo {path}; give another place with -o"
                )


def from_folder(folder: Path, out: Path) -> Manifest:
    """Return all pictures of a folder and its sub-folders, that of the results left out.

    Raises:
        OSError: the folder cannot be read at all.
    """
    os.scandir(folder).close()
    found = find_pictures(folder, unless=out)
    prefix = len(os.path.join(folder, ""))
    if folder == Path():
        prefix = 0
    return Manifest(
        str(folder),
        [os.fspath(path)[prefix:] for path in found.pictures],
        [(str(path), reason) for path, reason in found.unreadable],
        found.left_out,
        found.not_followed,
    )


def from_listing(file: Path) -> Manifest:
    """Return the photos that a file lists, one a line or, as of ``find -print0``, NUL between them.

    Relative paths are below the file's folder. With an absolute one among them all names are from
    the root of the file system on, and so are their results below OUT.

    Raises:
        OSError: it cannot be read.
        ManifestError: it is no list of paths.
    """
    content = file.read_bytes()
    lines = content.split(b"\0") if b"\0" in content else content.split(b"\n")
    folder = os.path.abspath(file.parent)
    paths = []
    for number, line in enumerate(lines, 1):
        text = os.fsdecode(line.removesuffix(b"\r"))
        if not text.strip():
            continue
        if len(text) > _LONGEST_NAME:
            raise ManifestError(f"{file} is no list of photos: line {number} is no path")
        paths.append(text)
    absolute = any(map(os.path.isabs, paths))
    root = os.path.abspath(os.sep) if absolute else str(file.parent)
    names: dict[str, None] = {}
    for path in paths:
        name = os.path.normpath(os.path.join(folder, path) if absolute else path)
        if absolute:
            name = os.path.relpath(name, root) if os.name == "nt" else name.lstrip(os.sep)
        elif name.split(os.sep, 1)[0] == os.pardir:
            raise ManifestError(
                f"{path} in {file} is not below the list's folder; list absolute paths instead"
            )
        names[name] = None
    return Manifest(root, list(names))
