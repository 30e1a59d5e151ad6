"""What became of each photo: one line of JSON in a file that only one process writes.

A line is handed to the system whole, so that a process that is killed loses none it has written;
one that a failing machine cut short is passed over, and its photo done again. Processes on several
machines share the folder and nothing else: no file is written by two of them.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pikfix.photos import write_atomically

SUFFIX = ".receipts.jsonl"
_OPTIONS = "batch.json"
_VERSION = 1
DONE = ("restored", "left")
"""What a photo may have become that has a result."""


class ReceiptsError(Exception):
    """The receipts cannot be used; the message says why and what to do."""


class FileFacts(NamedTuple):
    """What is known of a file.

    Attributes:
        bytes: its size.
        sha256: its digest in hexadecimal.
        mtime_ns: when it was changed, in nanoseconds of Unix time; 0 where that does not matter.
    """

    bytes: int
    sha256: str
    mtime_ns: int = 0


class Receipt(NamedTuple):
    """The last line about a photo.

    Attributes:
        status: ``restored``, ``left``, ``failed``, or ``begun`` where no end is known.
        photo: the photo's file; None where it could not be read.
        output: the result's file below OUT.
        result: the result's facts; None without one.
        final: the same photo would fail in the same way again.
        reason: why it failed.
        ends: how many lines tell an end of this photo; 1 is right.
        at: when the line was written, in seconds of Unix time.
    """

    status: str
    photo: FileFacts | None = None
    output: str = ""
    result: FileFacts | None = None
    final: bool = False
    reason: str = ""
    ends: int = 0
    at: float = 0.0


def agree_on_options(folder: Path, options: dict[str, Any]) -> None:
    """See that all processes and runs of a batch make their results alike.

    Raises:
        ReceiptsError: the batch was begun with other options.
        OSError: the folder cannot be written or read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / _OPTIONS
    if not place.exists():
        text = json.dumps({"version": _VERSION, "options": options}, indent=1, sort_keys=True)
        write_atomically(place, text.encode())
    try:
        before = json.loads(place.read_text())["options"]
    except (ValueError, KeyError, TypeError) as error:
        raise ReceiptsError(f"{place} is damaged; give another --receipts folder") from error
    wanted = json.loads(json.dumps(options))
    changed = sorted(name for name in {*before, *wanted} if before.get(name) != wanted.get(name))
    if changed:
        raise ReceiptsError(
            f"this batch was begun with another choice of {', '.join(changed)}; give the same, or "
            "another -o and --receipts"
        )


class ReceiptWriter:
    """Writes the receipts of one process.

    Args:
        folder: shared with the batch's other processes.
        run: facts about this process, such as its part.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self.path = folder / f"{stamp}-{secrets.token_hex(4)}{SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._file = os.open(self.path, flags | getattr(os, "O_CLOEXEC", 0), 0o666)
        self._write({"run": {**run, "host": socket.gethostname()}, "at": time.time()})

    def begin(self, name: str) -> None:
        """Note that a photo's result may appear from now on.

        Raises:
            OSError: the line cannot be written.
        """
        self._write({"photo": name, "status": "begun", "at": time.time()})

    def end(self, name: str, receipt: dict[str, Any]) -> None:
        """Note what became of a photo.

        Raises:
            OSError: the line cannot be written.
        """
        self._write({"photo": name, **receipt, "at": time.time()})

    def _write(self, line: dict[str, Any]) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        while data:  # a full disk takes a part, and says so at the next
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        """Hand everything to the disk."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)


@dataclass
class Ledger:
    """All receipts of a batch.

    Attributes:
        receipts: the last about each photo, by its name.
        spans: when each process worked: host, beginning and end in seconds of Unix time.
        damaged: lines that cannot be read, as a failing machine leaves them.
    """

    receipts: dict[str, Receipt] = field(default_factory=dict)
    spans: list[tuple[str, float, float]] = field(default_factory=list)
    damaged: int = 0

    def machine_seconds(self) -> float:
        """Return how long machines worked; processes beside each other on one count once."""
        total = 0.0
        for host in {host for host, _, _ in self.spans}:
            until = 0.0
            for start, end in sorted((a, b) for one, a, b in self.spans if one == host):
                total += max(0.0, end - max(start, until))
                until = max(until, end)
        return total

    def wall_seconds(self) -> float:
        """Return how long at least one machine worked."""
        return Ledger(spans=[("", a, b) for _, a, b in self.spans]).machine_seconds()


def read_receipts(folder: Path, *, digests: bool = True) -> Ledger:
    """Read what all processes have written so far; an absent folder holds nothing.

    Args:
        folder: the batch's.
        digests: keep digests, which are most of the memory.

    Raises:
        OSError: a file cannot be read.
    """
    ledger = Ledger()
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        host, first, last = "", 0.0, 0.0
        for line in _lines(path, ledger):
            last = max(last, line["at"])
            if "run" in line:
                host, first = str(line["run"].get("host", "")), line["at"]
            else:
                _enter(ledger.receipts, line, digests=digests)
        if last:
            ledger.spans.append((host, first or last, last))
    return ledger


def _enter(receipts: dict[str, Receipt], line: dict[str, Any], *, digests: bool) -> None:
    before = receipts.get(line["photo"])
    if before is None or before.status == "begun":
        receipts[line["photo"]] = _receipt(line, digests=digests)
    elif line["status"] == "begun":
        # Done once more: until that ends, what the photo was before counts.
        return
    elif line["at"] >= before.at:
        receipts[line["photo"]] = _receipt(line, before.ends, digests=digests)
    else:
        receipts[line["photo"]] = before._replace(ends=before.ends + 1)


def _receipt(line: dict[str, Any], ends: int = 0, *, digests: bool) -> Receipt:
    def facts(key: str) -> FileFacts | None:
        found = line.get(key)
        if found is None:
            return None
        sha256 = str(found["sha256"]) if digests else ""
        return FileFacts(int(found["bytes"]), sha256, int(found.get("mtime_ns", 0)))

    error = line.get("error") or {}
    return Receipt(
        status=str(line["status"]),
        photo=facts("input"),
        output=str(line.get("output") or ""),
        result=facts("result"),
        final=bool(line.get("final", False)),
        reason=str(error.get("message", "")),
        ends=ends + (line["status"] != "begun"),
        at=line["at"],
    )


def _lines(path: Path, ledger: Ledger) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for data in file:
            try:
                line = json.loads(data)
                if data.endswith(b"\n") and (
                    "run" in line or ("photo" in line and "status" in line)
                ):
                    line["at"] = float(line["at"])
                    yield line
                    continue
            except (ValueError, KeyError, TypeError):
                pass
            ledger.damaged += 1
