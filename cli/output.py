"""What a run over photos prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pikfix.cli.runner import Outcome


class Reporter:
    """Prints outcomes as they come and a summary; a progress bar where stderr is a terminal.

    Args:
        total: number of photos.
        as_json: one JSON object per photo instead of a line per result.
    """

    def __init__(self, total: int, *, as_json: bool) -> None:
        self._as_json = as_json
        self._start = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._warnings: Counter[str] = Counter()
        # No rich at all in a pipe: it would wrap lines at 80 columns.
        self._progress = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                # stdout may be a pipe, and stays what it is.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            if sys.stderr.isatty()
            else None
        )
        self._task = self._progress.add_task("restoring", total=total) if self._progress else None

    def __enter__(self) -> Reporter:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def count(self, status: str) -> int:
        """Return how many outcomes had this status."""
        return self._counts[status]

    def describe(self, text: str) -> None:
        """Say in the progress bar what is going on."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text)

    def complain(self, text: str) -> None:
        """Print a line on stderr."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def __call__(self, outcome: Outcome) -> None:
        """Print one outcome and count it."""
        self._counts[outcome.status] += 1
        if outcome.status == "failed":
            self.complain(f"{outcome.job.photo}: {outcome.problem}")
        if outcome.report is not None:
            for warning in outcome.report.warnings:
                self._warn(outcome, warning)
        if self._as_json:
            self._say(json.dumps(outcome.to_dict()))
        elif outcome.status in ("restored", "left"):
            how = " (left as it is)" if outcome.status == "left" else ""
            self._say(f"{outcome.job.photo} -> {outcome.job.output}{how}")
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    def _warn(self, outcome: Outcome, warning: str) -> None:
        # The same words for every photo of a folder are said once, and counted.
        self._warnings[warning] += 1
        if self._warnings[warning] == 1:
            self.complain(f"{outcome.job.photo}: warning: {warning}")

    def _say(self, text: str) -> None:
        if self._progress is not None and sys.stdout.isatty():
            # Both are the same terminal: the bar has to make room.
            self.complain(text)
        else:
            print(text, flush=True)

    def summarize(self) -> None:
        """Print how many photos met which fate, below the bar."""
        if self._progress is not None:
            self._progress.stop()
        for warning, count in self._warnings.items():
            if count > 1:
                self.complain(f"warning on {count} photos: {warning}")
        counts = [
            f"{self._counts[status]} {status}"
            for status in ("restored", "left", "failed", "skipped", "unfinished")
            if self._counts[status]
        ]
        seconds = time.monotonic() - self._start
        self.complain(f"{', '.join(counts) or 'nothing done'} in {seconds:.1f} s")
