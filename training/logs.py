"""The logs of a run: CSV files, pictures, TensorBoard events, a progress bar or plain lines."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from torch.utils.tensorboard import SummaryWriter

from pikfix.training.photo_store import write_atomically
from pikfix.training.schedule import progress

_LINE_SECONDS = 60.0


class Csv:
    """Rows of numbers under a fixed header; continues a file that is there.

    resumed_at: rows of later steps than this, written after the state that a run resumes from,
        are dropped; None starts the file anew.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], resumed_at: int | None) -> None:
        self._path = path
        self._columns = columns
        kept: list[dict[str, str]] = []
        if resumed_at is not None and path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]
            kept = [row for row in rows if int(row["step"]) <= resumed_at]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        write_atomically(path, buffer.getvalue().encode())

    def write(self, row: Mapping[str, float]) -> None:
        """Append one row; missing columns stay empty."""
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore", lineterminator="\n")
            writer.writerow({key: _number(value) for key, value in row.items()})


class Logs:
    """The logs of one run; only the first process of several writes them.

    Args:
        folder: of the run.
        values, measures: further columns of training.csv and of validation.csv.
        resumed_at: see `Csv`.
    """

    def __init__(
        self,
        folder: Path,
        values: tuple[str, ...],
        measures: tuple[str, ...],
        resumed_at: int | None,
    ) -> None:
        training = ("step", "epoch", "minutes", "images_per_second", "learning_rate", *values)
        self._training = Csv(folder / "training.csv", training, resumed_at)
        self._validation = Csv(
            folder / "validation.csv", ("step", "minutes", *measures), resumed_at
        )
        self._events = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=None if resumed_at is None else resumed_at + 1,
        )

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Log the means of the steps since the last call."""
        self._training.write({"step": step, **values})
        for name, value in values.items():
            self._events.add_scalar(f"training/{name}", value, step)

    def validation(
        self,
        step: int,
        minutes: float,
        values: Mapping[str, float],
        grid: npt.NDArray[np.uint8] | None,
    ) -> None:
        """Log measures and a picture grid `[H, W, 3]`."""
        self._validation.write({"step": step, "minutes": minutes, **values})
        for name, value in values.items():
            self._events.add_scalar(f"validation/{name}", value, step)
        if grid is not None:
            self._events.add_image("validation/grid", grid, step, dataformats="HWC")

    def flush(self) -> None:
        """Bring the events to disk."""
        self._events.flush()

    def close(self) -> None:
        """End the logs."""
        self._events.close()


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


class Meter:
    """Means of named values since it was last read."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Count one value of each name."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Return the means and start again."""
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return means


class Reporter:
    """A progress bar on a terminal, one line per minute elsewhere.

    Args:
        stream: where to; a terminal gets a bar.
        steps: of the whole run, or None.
        minutes: of the whole run, or None.
    """

    def __init__(
        self, steps: int | None, minutes: float | None, stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._steps = steps
        self._minutes = minutes
        self._last_line = 0.0
        self._bar: Progress | None = None
        if self._stream.isatty():
            self._bar = Progress(
                TextColumn("step {task.fields[step]}"),
                BarColumn(),
                TextColumn("{task.percentage:.0f} %"),
                TextColumn("{task.fields[text]}"),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task("train", total=1.0, step=0, text="")
            self._bar.start()

    def say(self, text: str) -> None:
        """Print one line, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def step(self, step: int, elapsed: float, rate: float, values: Mapping[str, float]) -> None:
        """Tell where the run is.

        Args:
            step: steps done.
            elapsed: minutes of the run so far, over all resumes.
            rate: images per second.
            values: the newest means.
        """
        losses = " ".join(f"{name} {value:.4f}" for name, value in values.items())
        done = progress(step, elapsed, self._steps, self._minutes)
        left = ""
        if done:
            left = f", {_duration(elapsed * (1 - done) / done)} left"
        text = f"{rate:.1f} images/s{left}  {losses}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done or 0.0, step=step, text=text)
        elif time.monotonic() - self._last_line >= _LINE_SECONDS or self._last_line == 0:
            self._last_line = time.monotonic()
            self.say(f"step {step}, {_duration(elapsed)}, {text}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _duration(minutes: float) -> str:
    hours, rest = divmod(round(minutes * 60), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def save_grid(path: Path, grid: npt.NDArray[np.uint8]) -> None:
    """Write a picture grid `[H, W, 3]`, JPEG by its suffix.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(grid).save(path, quality=90)
