"""What a run over photos prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import datetime
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
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pikfix.cli.problems import printable
from pikfix.cli.runner import Outcome

_TOLD_EVERY_S = 60.0


class _Rate(ProgressColumn):
    """Photos a second, as of late."""

    def render(self, task: Task) -> Text:
        """Return the column's text."""
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


class Reporter:
    """Prints outcomes as they come and a summary; a progress bar where stderr is a terminal.

    Args:
        total: number of photos.
        as_json: one JSON object per photo instead of a line per result.
        brief: say nothing of results; where stderr is no terminal, how far it is once a minute.
    """

    def __init__(self, total: int, *, as_json: bool, brief: bool = False) -> None:
        self._as_json = as_json
        self._brief = brief
        self._total = total
        self._told = time.monotonic()
        self._start = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._warnings: Counter[str] = Counter()
        self.unheard: OSError | None = None  # why stdout takes no more
        # No rich at all in a pipe: it would wrap lines at 80 columns.
        self._progress = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                _Rate(),
                console=Console(stderr=True),
                # stdout may be a pipe, and stays what it is.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            if sys.stderr is not None and sys.stderr.isatty()
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
        line = printable(text)
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            # Where both go into one pipe that nobody reads, or a full disk, nobody can be told.
            with contextlib.suppress(OSError):
                print(line, file=sys.stderr, flush=True)

    def __call__(self, outcome: Outcome) -> None:
        """Print one outcome and count it.

        Raises:
            OSError: the first time that stdout cannot be written to, BrokenPipeError where nobody
                reads it any more; the outcome is counted then, and later ones are named on stderr
                where nothing came of them.
        """
        self._counts[outcome.status] += 1
        if outcome.status == "failed":
            self.complain(f"{outcome.job.photo}: {outcome.problem}")
        if outcome.report is not None:
            for warning in outcome.report.warnings:
                self._warn(outcome, warning)
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)
        elif self._brief and time.monotonic() - self._told >= _TOLD_EVERY_S:
            self._tell_how_far()
        if self.unheard:
            if outcome.status == "unfinished":
                self.complain(f"{outcome.job.photo}: not restored")
        elif self._as_json:
            self._say(json.dumps(outcome.to_dict()))
        elif outcome.status in ("restored", "left") and not self._brief:
            how = " (left as it is)" if outcome.status == "left" else ""
            self._say(printable(f"{outcome.job.photo} -> {outcome.job.output}{how}"))

    def _tell_how_far(self) -> None:
        self._told = time.monotonic()
        done = sum(self._counts.values())
        rate = done / (self._told - self._start)
        left = (self._total - done) / rate
        self.complain(
            f"{done} of {self._total}, {self._counts['failed']} failed, {rate:.2f}/s, "
            f"{datetime.timedelta(seconds=round(left))} left"
        )

    def _warn(self, outcome: Outcome, warning: str) -> None:
        # The same words for every photo of a folder are said once, and counted.
        self._warnings[warning] += 1
        if self._warnings[warning] == 1:
            self.complain(f"{outcome.job.photo}: warning: {warning}")

    def _say(self, text: str) -> None:
        if self._progress is not None and sys.stdout is not None and sys.stdout.isatty():
            # Both are the same terminal: the bar has to make room.
            self.complain(text)
            return
        try:
            print(text, flush=True)
        except OSError as error:
            self.unheard = error
            raise

    def summarize(self, left_out: str = "") -> None:
        """Print how many photos met which fate, and what was no photo, below the bar."""
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
        if left_out:
            self.complain(left_out)
        self.complain(f"{', '.join(counts) or 'nothing done'} in {seconds:.1f} s")
