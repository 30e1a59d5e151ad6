"""What a library says of itself: one JSON file, replaced whole, that names all its other files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pikfix.photos import write_atomically
from pikfix.references.errors import LibraryError

FILE = "library.json"
FORMAT = "pikfix-references"
VERSION = 2


@dataclass(frozen=True)
class Entry:
    """A usable picture.

    Attributes:
        name: path relative to the folder of pictures, with slashes.
        size: of the file in bytes.
        modified_ns: the file's modification time in nanoseconds.
        segment: number of the segment with its features.
        row: its row there.
        check: CRC-32 of that row.
    """

    name: str
    size: int
    modified_ns: int
    segment: int
    row: int
    check: int


@dataclass(frozen=True)
class LeftOut:
    """A picture that is no reference, remembered so that it is not decoded again."""

    name: str
    size: int
    modified_ns: int
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The content of a library.

    Attributes:
        pictures: the folder of pictures, absolute.
        pictures_relative: the same as seen from the library, which may have moved together with it.
        backbone_kind: "vgg19" or "resnet".
        backbone_digest: of its architecture and weights.
        backbone_file: with its weights, inside the library.
        levels: channels and positions per side of each level.
        threshold: best scores below it mean that no picture suits.
        index: folder of the shortlist's index.
        segments: folders with features.
        entries: usable pictures; their order is the index's.
        left_out: the others.
    """

    pictures: str
    pictures_relative: str
    backbone_kind: str
    backbone_digest: str
    backbone_file: str
    levels: tuple[tuple[int, int], ...]
    threshold: float
    index: str
    segments: tuple[str, ...]
    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...]

    def folder(self, library: Path) -> Path:
        """Where the pictures are: beside the library as when it was built, or where they were."""
        beside = (library.resolve() / self.pictures_relative).resolve()
        return beside if beside.is_dir() else Path(self.pictures)

    def to_json(self) -> bytes:
        """Serialize; the inverse of `parse`."""
        fields = dict(vars(self))
        fields["entries"] = [list(vars(entry).values()) for entry in self.entries]
        fields["left_out"] = [list(vars(entry).values()) for entry in self.left_out]
        return json.dumps({"format": FORMAT, "version": VERSION, **fields}).encode()

    def write(self, library: Path) -> None:
        """Make this the library's content, at once."""
        write_atomically(library / FILE, self.to_json())


def relative(pictures: Path, library: Path) -> str:
    """The folder of pictures as seen from the library."""
    return Path(os.path.relpath(pictures.resolve(), library.resolve())).as_posix()


def read_manifest(library: Path) -> Manifest:
    """Read a library's manifest.

    Raises:
        LibraryError: there is none, it is damaged, or of another version.
    """
    path = library / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise LibraryError(
            f"{library} is no library of references: make one with "
            "`pikfix references build PHOTOS -o LIBRARY`"
        ) from None
    except OSError as error:
        raise LibraryError(f"{path}: {error.strerror or error}") from error
    try:
        fields = json.loads(data)
        known = fields.pop("format") == FORMAT
        version = fields.pop("version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not known:
        raise LibraryError(f"{path} is not the manifest of a library: give another folder")
    if version != VERSION:
        raise LibraryError(
            f"{library} has the library format {version}, this pikfix reads {VERSION}: "
            f"{'update pikfix, or ' if _newer(version) else ''}build the library anew in an empty "
            "folder"
        )
    try:
        return _parse(fields)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error


def _newer(version: object) -> bool:
    return isinstance(version, int) and version > VERSION


def _damaged(path: Path, error: Exception) -> LibraryError:
    reason = " ".join(str(error).split())[:100]
    return LibraryError(
        f"{path} is damaged ({reason}): remove it and build the library again; the features that "
        "are whole will be used"
    )


def _parse(fields: Mapping[str, Any]) -> Manifest:
    values = dict(fields)
    values["levels"] = tuple((int(c), int(side)) for c, side in values["levels"])
    values["threshold"] = float(values["threshold"])
    values["segments"] = tuple(str(name) for name in values["segments"])
    values["entries"] = tuple(Entry(*entry) for entry in values["entries"])
    values["left_out"] = tuple(LeftOut(*entry) for entry in values["left_out"])
    manifest = Manifest(**values)
    for entry in manifest.entries:
        if not (0 <= entry.segment < len(manifest.segments) and entry.row >= 0):
            raise ValueError(f"{entry.name} is in no segment")
    return manifest
