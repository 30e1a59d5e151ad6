"""Builds and updates a library.

Only new and changed pictures are decoded, and a build that dies loses no picture it has done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from pikfix.photos import write_atomically
from pikfix.photos.search import find_pictures
from pikfix.references import fingerprint, manifest
from pikfix.references.backbone import Backbone, load_backbone
from pikfix.references.errors import LibraryError
from pikfix.references.library import Library, open_backbone
from pikfix.references.manifest import Entry, LeftOut, Manifest, read_manifest
from pikfix.references.pictures import Picture, read_picture
from pikfix.references.scoring import Layout, pool_features
from pikfix.references.segments import (
    PREFIX,
    Features,
    SegmentWriter,
    gather,
    open_segment,
    read_journal,
)
from pikfix.references.shortlist import INDEX_PREFIX, Shortlist, build_shortlist
from pikfix.references.threshold import calibrate

_BATCH = 16
_MAX_SEGMENTS = 8
_COPY_ROWS = 256
_LOCK = ".lock"

T = TypeVar("T")
Key = tuple[str, int, int]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Built:
    """What a build did.

    Attributes:
        usable: pictures in the library.
        added: of these, decoded now.
        kept: of these, taken over from before.
        removed: pictures of before that are gone or were changed.
        left_out: pictures that are no references, by reason.
        threshold: score below which no picture suits.
        others: a line for each kind of thing in the folder that is no picture.
    """

    usable: int
    added: int
    kept: int
    removed: int
    left_out: tuple[LeftOut, ...]
    threshold: float
    others: tuple[str, ...] = ()


@dataclass
class _Known:
    """What is there before a build."""

    manifest: Manifest | None
    segments: list[str]
    entries: dict[Key, Entry]
    left_out: dict[Key, LeftOut]


def build_library(
    pictures: Path,
    library: Path,
    *,
    backbone: Path | None = None,
    rebuild: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build a library, or bring it up to date; until it is done the old one stays as it is.

    Args:
        pictures: folder of colour photos, searched with its sub-folders.
        library: folder of the library, made if it does not exist.
        backbone: a checkpoint or VGG-19 weights; the library's own where None.
        rebuild: compute everything anew, which another backbone needs.
        jobs: threads that decode; one per core where None.
        progress: called with the pictures done and all of them.

    Raises:
        LibraryError: there is nothing to build from, the library is of another version or
            backbone, or another build is at work.
        OSError: the library's folder cannot be written.
    """
    files, others = _find(pictures, library)
    if library.is_dir() and not (library / manifest.FILE).exists() and _is_foreign(library):
        raise LibraryError(f"{library} holds other files: give a new or empty folder for a library")
    library.mkdir(parents=True, exist_ok=True)
    with _lock(library):
        before = _read_before(library)
        network = _choose_backbone(library, before, backbone, rebuild=rebuild)
        built = _Build(pictures, library, network, before, rebuild=rebuild).run(
            files, jobs or os.cpu_count() or 1, progress or (lambda done, total: None)
        )
    return replace(built, others=tuple(others))


def _find(pictures: Path, library: Path) -> tuple[dict[Key, Path], list[str]]:
    """Pictures with their state, and a line for each kind of thing that is none."""
    if not pictures.is_dir():
        raise LibraryError(f"{pictures} is not a folder: give a folder of colour photos")
    found = find_pictures(pictures, unless=library)
    files: dict[Key, Path] = {}
    for path in sorted(found.pictures):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            # What is no file to read is left out with its reason later.
            status = path.stat() if path.exists() else path.lstat()
            name = path.relative_to(pictures).as_posix()
            files[name, status.st_size, status.st_mtime_ns] = path
    if not files:
        what = "; ".join(found.notes())
        raise LibraryError(
            f"there are no pictures in {pictures}{f' ({what})' if what else ''}: expected .jpg, "
            ".png, .tif, ..."
        )
    return files, found.notes()


def _is_foreign(library: Path) -> bool:
    ours = (PREFIX, INDEX_PREFIX, "backbone-", ".")
    return any(not path.name.startswith(ours) for path in library.iterdir())


@contextlib.contextmanager
def _lock(library: Path) -> Iterator[None]:
    with (library / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LibraryError(f"another build of {library} is at work: wait for it") from error
        yield


def _read_before(library: Path) -> Manifest | None:
    return read_manifest(library) if (library / manifest.FILE).exists() else None


def _choose_backbone(
    library: Path, before: Manifest | None, given: Path | None, *, rebuild: bool
) -> Backbone:
    if given is not None:
        network = load_backbone(given)
        if before is not None and before.backbone_digest != network.digest and not rebuild:
            raise LibraryError(
                f"{library} was built with another backbone ({before.backbone_digest[:12]}, "
                f"{given} is {network.digest[:12]}): leave --backbone out, or compute everything "
                "anew with --rebuild"
            )
        return network
    if before is None:
        raise LibraryError("a new library needs a checkpoint or VGG-19 weights: give --backbone")
    try:
        return open_backbone(library, before)
    except FileNotFoundError as error:
        raise LibraryError(f"{error.filename} is missing: give it with --backbone") from error


class _Build:
    def __init__(
        self,
        pictures: Path,
        library: Path,
        network: Backbone,
        before: Manifest | None,
        *,
        rebuild: bool,
    ) -> None:
        self.pictures, self.library, self.network = pictures, library, network
        self.before = before
        blank = np.zeros((256, 256), np.float32)
        self.layout = self._describe([Picture(blank)])[0]
        self.known = _Known(before, [], {}, {})
        if not rebuild:
            self._take_over()

    def run(self, files: dict[Key, Path], jobs: int, progress: Progress) -> Built:
        known = self.known
        entries = {key: known.entries[key] for key in files if key in known.entries}
        left_out = {key: known.left_out[key] for key in files if key in known.left_out}
        kept = len(entries)
        todo = {
            key: path for key, path in files.items() if key not in entries and key not in left_out
        }
        progress(len(files) - len(todo), len(files))
        if todo:
            for done, (key, result) in enumerate(self._compute(todo, jobs), 1):
                if isinstance(result, Entry):
                    entries[key] = result
                else:
                    left_out[key] = result
                progress(len(files) - len(todo) + done, len(files))
        if not entries:
            reason = next(iter(left_out.values())).reason
            raise LibraryError(
                f"none of the {len(files)} pictures in {self.pictures} can be a reference; "
                f"the first: {reason}"
            )
        published = self._publish([entries[key] for key in sorted(entries)], left_out)
        before = set() if self.before is None else {_key(entry) for entry in self.before.entries}
        return Built(
            usable=len(entries),
            added=len(entries) - kept,
            kept=kept,
            removed=len(before - set(entries)),
            left_out=published.left_out,
            threshold=published.threshold,
        )

    def _take_over(self) -> None:
        known, before = self.known, self.before
        if before is not None and before.backbone_digest == self.network.digest:
            known.segments = list(before.segments)
            usable = {number: self._length(name) for number, name in enumerate(before.segments)}
            for entry in before.entries:
                if entry.row < usable[entry.segment]:
                    known.entries[_key(entry)] = entry
            known.left_out = {(one.name, one.size, one.modified_ns): one for one in before.left_out}
        # Segments that no manifest names come from builds that did not live to its end.
        for folder in sorted(self.library.glob(f"{PREFIX}*")):
            if folder.name in known.segments:
                continue
            entries, left_out = read_journal(
                folder, self.layout, self.network.digest, len(known.segments)
            )
            if entries or left_out:
                known.segments.append(folder.name)
                known.entries = {**{_key(entry): entry for entry in entries}, **known.entries}
                known.left_out.update({(o.name, o.size, o.modified_ns): o for o in left_out})

    def _length(self, segment: str) -> int:
        """Rows that can be used; a damaged segment has none and is computed anew."""
        try:
            return len(open_segment(self.library / segment, self.layout).means)
        except (LibraryError, FileNotFoundError):
            return 0

    def _compute(self, todo: dict[Key, Path], jobs: int) -> Iterator[tuple[Key, Entry | LeftOut]]:
        number = len(self.known.segments)
        writer = self._writer(len(todo))
        try:
            for batch in _batches(_decoded(todo, jobs), _BATCH):
                pictures = [one for _, one in batch if isinstance(one, Picture)]
                features = self._describe(pictures)[1] if pictures else None
                row = 0
                for key, one in batch:
                    if isinstance(one, Picture) and features is not None:
                        yield key, writer.add(key, features, row, number)
                        row += 1
                    else:
                        left_out = LeftOut(*key, reason=str(one))
                        writer.leave_out(left_out)
                        yield key, left_out
        finally:
            writer.close(durable=True)
        self.known.segments.append(writer.folder.name)

    def _writer(self, capacity: int) -> SegmentWriter:
        folder = self.library / f"{PREFIX}{secrets.token_hex(6)}"
        return SegmentWriter(folder, self.layout, capacity, self.network.digest)

    def _describe(self, pictures: Sequence[Picture]) -> tuple[Layout, Features]:
        batch = torch.from_numpy(np.stack([picture.luminance for picture in pictures]))[:, None]
        layout, means, maps = pool_features(self.network(batch))
        halfs = maps.clamp(-65504, 65504).half().numpy()
        prints = np.stack([fingerprint.fingerprint(picture.luminance) for picture in pictures])
        palettes = np.stack([picture.palette for picture in pictures])
        return layout, Features(means.numpy(), halfs, prints, palettes)

    def _publish(self, entries: list[Entry], left_out: dict[Key, LeftOut]) -> Manifest:
        if self._is_published(entries, left_out) and self.before is not None:
            return self.before
        segments = list(self.known.segments)
        used = sorted({entry.segment for entry in entries})
        rows = sum(self._length(segments[number]) for number in used)
        if len(used) > _MAX_SEGMENTS or rows > 2 * len(entries) + _COPY_ROWS:
            entries, segments = self._compact(entries, segments)
        else:
            # Segments without a live row are dropped.
            place = {number: index for index, number in enumerate(used)}
            entries = [replace(entry, segment=place[entry.segment]) for entry in entries]
            segments = [segments[number] for number in used]
        opened = [open_segment(self.library / name, self.layout) for name in segments]
        backbone_file = f"backbone-{self.network.digest[:16]}.safetensors"
        write_atomically(self.library / backbone_file, self.network.to_bytes())
        index = build_shortlist(self.library, self.layout, opened, entries)
        made = Manifest(
            pictures=str(self.pictures.resolve()),
            pictures_relative=manifest.relative(self.pictures, self.library),
            backbone_kind=self.network.kind,
            backbone_digest=self.network.digest,
            backbone_file=backbone_file,
            levels=self.layout.levels,
            threshold=calibrate(Shortlist.load(self.library / index), self.layout, opened, entries),
            index=index,
            segments=tuple(segments),
            entries=tuple(entries),
            left_out=tuple(left_out[key] for key in sorted(left_out)),
        )
        made.write(self.library)
        _clean(self.library, made)
        return made

    def _is_published(self, entries: list[Entry], left_out: dict[Key, LeftOut]) -> bool:
        """Whether the library is already what this build would make it."""
        old = self.before
        if (
            old is None
            or old.entries != tuple(entries)
            or old.left_out != tuple(left_out[key] for key in sorted(left_out))
            or old.pictures != str(self.pictures.resolve())
        ):
            return False
        try:
            Library(self.library)
        except LibraryError:
            return False
        return True

    def _compact(self, entries: list[Entry], segments: list[str]) -> tuple[list[Entry], list[str]]:
        opened = {
            entry.segment: open_segment(self.library / segments[entry.segment], self.layout)
            for entry in {e.segment: e for e in entries}.values()
        }
        ordered = [opened.get(number) for number in range(len(segments))]
        usable = [one if one is not None else next(iter(opened.values())) for one in ordered]
        writer = self._writer(len(entries))
        moved: list[Entry] = []
        for chunk in _batches(iter(entries), _COPY_ROWS):
            features = gather(usable, chunk)
            for row, entry in enumerate(chunk):
                moved.append(writer.add(_key(entry), features, row, 0))
        writer.close(durable=True)
        return moved, [writer.folder.name]


def _key(entry: Entry) -> Key:
    return entry.name, entry.size, entry.modified_ns


def _clean(library: Path, kept: Manifest) -> None:
    """Remove what the manifest does not name; whoever has it open keeps reading it."""
    named = {*kept.segments, kept.index, kept.backbone_file}
    for pattern in (f"{PREFIX}*", f"{INDEX_PREFIX}*", "backbone-*", ".pikfix-*.part"):
        for path in library.glob(pattern):
            if path.name in named:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _read(path: Path) -> Picture | str:
    """A usable picture, or why it is none."""
    try:
        picture = read_picture(path)
    except LibraryError as error:
        return str(error)
    why = picture.why_unfit
    return picture if why is None else f"{path}: {why}"


def _decoded(todo: dict[Key, Path], jobs: int) -> Iterator[tuple[Key, Picture | str]]:
    """Decode in threads (Pillow's decoders release the interpreter), in order, not far ahead."""
    waiting: list[tuple[Key, Future[Picture | str]]] = []
    items = iter(todo.items())
    with ThreadPoolExecutor(jobs) as pool:
        try:
            while True:
                for key, path in islice(items, 2 * _BATCH + jobs - len(waiting)):
                    waiting.append((key, pool.submit(_read, path)))
                if not waiting:
                    return
                key, future = waiting.pop(0)
                yield key, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    waiting = iter(items)
    while batch := list(islice(waiting, size)):
        yield batch
