"""Features on disk: immutable folders of memory-mapped arrays, each with a journal of its rows.

A build writes one segment and its journal row by row. Until the manifest names it, the segment is
no part of the library; a later build takes over whatever rows of it are whole.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pikfix.references import agreement, fingerprint, manifest
from pikfix.references.errors import LibraryError
from pikfix.references.manifest import Entry, LeftOut
from pikfix.references.scoring import Layout

PREFIX = "segment-"
_JOURNAL = "journal.jsonl"

Floats = npt.NDArray[np.float32]
Halfs = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Features:
    """What is stored of pictures.

    Attributes:
        means: [N, sum C_i] float32.
        maps: [N, sum C_i g_i^2] float16.
        fingerprints: [N, 32] uint8.
        palettes: [N, 8] float32.
    """

    means: Floats
    maps: Halfs
    fingerprints: npt.NDArray[np.uint8]
    palettes: Floats

    def check(self, row: int) -> int:
        """CRC-32 of a row."""
        value = 0
        for array in (self.means, self.maps, self.fingerprints, self.palettes):
            value = zlib.crc32(np.ascontiguousarray(array[row]).data, value)
        return value


def _columns(layout: Layout) -> dict[str, tuple[type[Any], int]]:
    return {
        "means": (np.float32, layout.channels),
        "maps": (np.float16, layout.values),
        "fingerprints": (np.uint8, fingerprint.BYTES),
        "palettes": (np.float32, agreement.VALUES),
    }


def open_segment(folder: Path, layout: Layout) -> Features:
    """Map a segment's arrays into memory.

    Raises:
        FileNotFoundError: one of them is missing.
        LibraryError: one is damaged, or of another backbone.
    """
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, (dtype, width) in _columns(layout).items():
        path = folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, EOFError) as error:
            raise LibraryError(
                f"{path} is damaged ({error}): remove {folder} and build the library again"
            ) from error
        if array.dtype != dtype or array.ndim != 2 or array.shape[1] != width:
            raise LibraryError(
                f"{path} does not fit the library: remove {folder} and build the library again"
            )
        arrays[name] = array
    if len({len(array) for array in arrays.values()}) != 1:
        raise LibraryError(
            f"the arrays in {folder} differ in length: remove it and build the library again"
        )
    return Features(**arrays)


class SegmentWriter:
    """Writes a segment, row by row; what it has journaled survives the death of the process.

    Args:
        folder: of the new segment.
        layout: of the features.
        capacity: rows at most; those that are not written take no room on the disk.
        digest: of the backbone.
    """

    def __init__(self, folder: Path, layout: Layout, capacity: int, digest: str) -> None:
        folder.mkdir()
        self.folder = folder
        self._arrays = {
            name: np.lib.format.open_memmap(
                folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(capacity, width)
            )
            for name, (dtype, width) in _columns(layout).items()
        }
        self._features = Features(**self._arrays)
        self._rows = 0
        self._journal = (folder / _JOURNAL).open("w", encoding="utf-8")
        self._note({"version": manifest.VERSION, "digest": digest, "levels": layout.levels})

    def add(self, key: tuple[str, int, int], features: Features, row: int, segment: int) -> Entry:
        """Store one row of features under (name, size, modified_ns); answers its entry."""
        own = self._rows
        for name, array in self._arrays.items():
            array[own] = getattr(features, name)[row]
        self._rows += 1
        entry = Entry(*key, segment=segment, row=own, check=self._features.check(own))
        self._note([*key, own, entry.check])
        return entry

    def leave_out(self, left_out: LeftOut) -> None:
        """Note a picture that is no reference."""
        self._note([left_out.name, left_out.size, left_out.modified_ns, left_out.reason])

    def _note(self, line: object) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()

    def close(self, *, durable: bool) -> None:
        """Close the files; `durable` brings them to the disk first."""
        if durable:
            for array in self._arrays.values():
                array.flush()
            os.fsync(self._journal.fileno())
        self._journal.close()


def read_journal(
    folder: Path, layout: Layout, digest: str, segment: int
) -> tuple[list[Entry], list[LeftOut]]:
    """Entries of a segment that no manifest names, as far as its journal and rows are whole.

    Args:
        folder: of the segment.
        layout: what its rows must be like.
        digest: the backbone they must come from.
        segment: the number it will have.
    """
    entries: list[Entry] = []
    left_out: list[LeftOut] = []
    try:
        features = open_segment(folder, layout)
        lines = (folder / _JOURNAL).read_text(encoding="utf-8").splitlines()
        header = json.loads(lines[0]) if lines else {}
        if header.get("version") != manifest.VERSION or header.get("digest") != digest:
            return [], []
        for line in lines[1:]:
            name, size, modified, *rest = json.loads(line)
            if len(rest) == 1:
                left_out.append(LeftOut(name, size, modified, rest[0]))
                continue
            row, check = rest
            if row < len(features.means) and features.check(row) == check:
                entries.append(Entry(name, size, modified, segment, row, check))
    except (OSError, ValueError, TypeError, AttributeError):
        # A torn last line, or files of a build that was killed early: what was read before holds.
        pass
    return entries, left_out


def gather(segments: Sequence[Features], entries: Sequence[Entry]) -> Features:
    """Copy the rows of some entries out of their segments, in the entries' order."""
    first = segments[0]
    out = Features(
        np.empty((len(entries), first.means.shape[1]), np.float32),
        np.empty((len(entries), first.maps.shape[1]), np.float16),
        np.empty((len(entries), fingerprint.BYTES), np.uint8),
        np.empty((len(entries), agreement.VALUES), np.float32),
    )
    for number in {entry.segment for entry in entries}:
        places = [i for i, entry in enumerate(entries) if entry.segment == number]
        # In the order of the file, which is the order that the disk reads fastest.
        places.sort(key=lambda i: entries[i].row)
        rows = [entries[i].row for i in places]
        source = segments[number]
        out.means[places] = source.means[rows]
        out.maps[places] = source.maps[rows]
        out.fingerprints[places] = source.fingerprints[rows]
        out.palettes[places] = source.palettes[rows]
    return out
