"""What every part of the GPU campaign shares: its settings, its clock, and rows on disk.

A row is one figure or a few that belong together: a line of JSON that is on disk the moment it is
known. What has a row is not measured again.
"""

from __future__ import annotations

import datetime
import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "checkpoints" / "compact.safetensors"
_TRIES = 2
"""Of a figure that fails: the second may find a machine in a better mood, a third will not."""


class OutOfTimeError(Exception):
    """A section's time is used up; its rows so far stand."""


class BrokenDeviceError(Exception):
    """The GPU refuses all further work of this process."""


@dataclass(frozen=True)
class Plan:
    """What a campaign measures.

    device: "cuda", or "cpu" for a rehearsal in miniature.
    bundle: what `prepare` made, where there is one.
    out: where rows and files go.
    warps: channels, width, queries and keys of the kernels' problems.
    sides: of square photos.
    batches: of the networks.
    concurrency: clients of the server at a time.
    seconds: of one timing.
    load_seconds: of one load on the server.
    warm_seconds: of the load before, in which shapes are recorded.
    networks: presets or configurations, by name; None is the shipped checkpoint.
    packages: sub-nets that are compiled ahead of time.
    """

    device: str
    out: Path
    bundle: Path | None = None
    checkpoint: Path = CHECKPOINT
    warps: tuple[tuple[int, int, int, int], ...] = (
        (128, 128, 16384, 16384),
        (256, 128, 16384, 4096),
        (256, 64, 16384, 16384),
        (256, 512, 16384, 4096),
        (64, 64, 16384, 16384),
    )
    operations: int = 4096
    sides: tuple[int, ...] = (512, 256, 1024)
    batches: tuple[int, ...] = (8, 1, 32)
    concurrency: tuple[int, ...] = (8, 32, 1)
    seconds: float = 0.2
    load_seconds: float = 8.0
    warm_seconds: float = 4.0
    tiles: int = 12
    parity_side: int = 96
    networks: dict[str, Row | None] = field(
        default_factory=lambda: {"compact": None, "paper": {"preset": "paper"}}
    )
    packages: tuple[str, ...] = ("similarity", "damage", "restore", "tone", "colorize")
    crash: str | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether this is the real thing."""
        return self.device == "cuda"


class Rows:
    """The rows of a campaign, and the clock of the section that adds to them."""

    def __init__(self, path: Path, section: str, seconds: float) -> None:
        self._path, self._section = path, section
        self._end = time.monotonic() + seconds
        self._tried: dict[str, int] = {}
        self._done: set[str] = set()
        for row in read_rows(path):
            if row["section"] == section:
                self._note(row)

    def _note(self, row: Row) -> None:
        self._tried[row["key"]] = self._tried.get(row["key"], 0) + 1
        if "failed" not in row:
            self._done.add(row["key"])

    def has(self, key: str) -> bool:
        """Whether the figure is there, or was tried often enough."""
        return key in self._done or self._tried.get(key, 0) >= _TRIES

    def left(self) -> float:
        """Seconds that the section has."""
        return self._end - time.monotonic()

    def add(self, key: str, **figures: Any) -> None:
        """Put a row on disk."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        row = {"section": self._section, "key": key, "at": now, **figures}
        line = json.dumps(row) + "\n"
        # One write: a process that is killed leaves whole lines.
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)
        self._note(row)
        print(f"{self._section} {key}: {_short(figures)}", flush=True)

    def measure(self, key: str, figures: Callable[[], Row]) -> Row | None:
        """Measure what has no row yet; a failure is a row, too.

        Raises:
            OutOfTimeError: before it begins, if the section's time is used up.
            BrokenDeviceError: after a failure that the GPU does not recover from.
        """
        if self.has(key):
            return None
        if self.left() <= 0:
            raise OutOfTimeError
        start = time.monotonic()
        try:
            found = figures()
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            traceback.print_exc()
            self.add(key, failed=f"{type(error).__name__}: {first}")
            if "CUDA error" in str(error):
                raise BrokenDeviceError(first) from error
            return None
        self.add(key, **found, took=round(time.monotonic() - start, 2))
        return found


def read_rows(path: Path) -> list[Row]:
    """All whole rows of a file; none where there is no file."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # the line that was being written when the machine went away
            continue
    return found


def _short(figures: Row) -> str:
    parts = [
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
        if not isinstance(value, list | dict)
    ]
    return ", ".join(parts)[:200]
