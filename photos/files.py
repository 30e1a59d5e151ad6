"""Picture files on disk: read without ever waiting for one, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

MAX_FILE_BYTES = 2**31 - 1
"""The largest picture file that is read: one message to a server holds no more."""

_HEAD_BYTES = 4096
_PART_BYTES = 1 << 20
_TOO_LARGE = "larger than 2 GiB, the most a request can hold"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_picture(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading.

    Everything else is refused before it is touched: opening a named pipe waits until someone
    writes to it, and a device may never end.

    Raises:
        OSError: it cannot be opened, is no regular file, is larger than
            :data:`MAX_FILE_BYTES` or begins with zeros alone, as no picture does (a sparse file);
            ``filename`` and ``strerror`` are set.
    """
    place = Path(path)
    name = str(place)
    try:
        _check(place.stat(), name)
        # It may have been exchanged since: then this does not wait either.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(name, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0))
    except FileNotFoundError as error:
        if place.is_symlink():
            text = f"a link to {place.readlink()}, which does not exist"
            raise FileNotFoundError(errno.ENOENT, text, name) from error
        raise
    file = os.fdopen(handle, "rb")
    try:
        _check(os.fstat(handle), name)
        head = file.read(_HEAD_BYTES) or b""
        if len(head) == _HEAD_BYTES and not any(head):
            raise OSError(errno.EINVAL, "it begins with zeros alone, as no picture does", name)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def _check(status: os.stat_result, name: str) -> None:
    for is_kind, kind in _KINDS:
        if is_kind(status.st_mode):
            number = errno.EISDIR if is_kind is stat.S_ISDIR else errno.EINVAL
            raise OSError(number, f"{kind}, not a file with a picture", name)
    if status.st_size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, _TOO_LARGE, name)


def read_picture_file(path: str | os.PathLike[str]) -> bytes:
    """Read all of a picture file; see :func:`open_picture`.

    Raises:
        OSError: as there, or it is a system's file that never ends.
    """
    with open_picture(path) as file:
        if os.fstat(file.fileno()).st_size > 0:
            return file.read()
        # Empty, or a system's file, which has no size and may grow without limit.
        parts, length = [], 0
        while part := file.read(_PART_BYTES):
            parts.append(part)
            length += len(part)
            if length > MAX_FILE_BYTES:
                raise OSError(errno.EFBIG, _TOO_LARGE, os.fspath(path))
    return b"".join(parts)


def why_unreadable(path: str | os.PathLike[str]) -> str | None:
    """Say why :func:`open_picture` would fail; None where it would not."""
    try:
        with open_picture(path):
            return None
    except OSError as error:
        return error.strerror or str(error)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` to ``path`` through a temporary file beside it and a rename.

    Whatever goes wrong, ``path`` holds what it held before, or all of ``data``. Safe in
    several threads at once.

    Raises:
        OSError: the folder is missing or not writable, or the disk is full.
    """
    return write_together([(path, data)])[0]


def write_together(files: Sequence[tuple[str | os.PathLike[str], bytes]]) -> list[Path]:
    """Write several files, each as :func:`write_atomically`, and none where one has no room.

    They appear in the order given, once all of them are on the disk. Where one cannot appear all
    the same, as its name is that of a folder, those before it that were new go again.

    Raises:
        OSError: as there.
    """
    targets = [Path(path) for path, _ in files]
    temporaries: list[Path] = []
    new: list[Path] = []
    try:
        for target, (_, data) in zip(targets, files, strict=True):
            temporaries.append(target.with_name(f".pikfix-{secrets.token_hex(8)}.part"))
            # Exclusive creation with the mode of any other new file; tempfile would make it
            # readable for its owner alone.
            with temporaries[-1].open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for target, temporary in zip(targets, temporaries, strict=True):
            existed = os.path.lexists(target)
            temporary.replace(target)
            new += [] if existed else [target]
    except BaseException:
        for leftover in [*temporaries, *new]:
            with contextlib.suppress(OSError):
                leftover.unlink()
        raise
    return targets
