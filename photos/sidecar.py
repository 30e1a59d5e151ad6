"""The file beside a result that says how it was made: ``NAME.pikfix.json``.

Unlike the picture's own metadata it survives what strips those, and it holds what those have no
field for: digests of everything that went in, each reference's share, the options.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pikfix.photos import provenance

SUFFIX = ".pikfix.json"
_KIND = "pikfix_sidecar"
_VERSION = 1
# A sidecar is a page of text; what is larger is something else.
_MOST_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class File:
    """A file that went in or came out: its name, without folders, and its bytes."""

    name: str
    data: bytes = dataclasses.field(repr=False)

    def facts(self) -> dict[str, Any]:
        """Return name, size and digest."""
        return {"file": self.name, "bytes": len(self.data), "sha256": digest(self.data)}


def digest(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def path_beside(result: str | os.PathLike[str]) -> Path:
    """Return the place of a result's sidecar: beside it, its whole name before the suffix."""
    path = Path(result)
    return path.with_name(path.name + SUFFIX)


def compose(
    photo: File,
    result: File,
    references: Sequence[File | None],
    *,
    report: Mapping[str, Any],
    options: Mapping[str, Any],
    when: datetime.datetime,
) -> bytes:
    """Write a sidecar.

    Args:
        photo: what was sent.
        result: what came back.
        references: those that were sent, in the order of the report's; None or too few where the
            server took others.
        report: the server's report as plain values.
        options: what was asked for.
        when: date and time, with a time zone.

    Returns:
        JSON in UTF-8.
    """
    said = dict(report)
    entries = [
        {**entry, **(file.facts() if file is not None else {})}
        for entry, file in itertools.zip_longest(said.pop("references"), references, fillvalue=None)
        if entry is not None
    ]
    photo_said, result_said = said.pop("photo"), said.pop("result")
    model = {"version": said.pop("model_version"), "sha256": said.pop("model_sha256", None)}
    values = {
        _KIND: _VERSION,
        "software": provenance.software(),
        "created": when.isoformat(timespec="seconds"),
        "photo": photo.facts() | photo_said,
        "result": result.facts() | result_said,
        "model": model,
        "references": entries,
        "options": dict(options),
        **said,
    }
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(
        "utf-8", "backslashreplace"
    )


def read(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read a sidecar; None where a file is something else.

    Raises:
        OSError: it cannot be read.
    """
    place = Path(path)
    if not place.is_file() or place.stat().st_size > _MOST_BYTES:
        place.stat()  # a missing file is an error, a folder or a device is none of ours
        return None
    try:
        values = json.loads(place.read_bytes())
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and isinstance(values.get(_KIND), int) else None


def is_one(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a sidecar that this software wrote."""
    try:
        return read(path) is not None
    except OSError:
        return False
