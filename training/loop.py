"""The training loop: steps, guards, checkpoints, validation, on Lightning Fabric."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from torch import nn

from pikfix.training import schedule
from pikfix.training.config import OptimizerConfig
from pikfix.training.dataset import Batch, batches_from
from pikfix.training.errors import TrainingError, in_one_line
from pikfix.training.logs import Logs, Meter, Reporter, save_grid
from pikfix.training.signals import catch_signals
from pikfix.training.stage import Stage
from pikfix.training.state import State, save_state
from pikfix.training.update import Updater, agree

MAX_BAD_STEPS = 5
"""A run stops after this many steps in a row without a finite gradient."""

MAX_FAILED_SAVES = 3
"""A run stops after this many checkpoints in a row that could not be written."""


@dataclass(frozen=True)
class Budget:
    """When a run ends and how often it does what is not training.

    steps, minutes: of the whole run, over all resumes; the first to be reached ends it.
    checkpoint_minutes, validation_minutes: pauses between them.
    log_steps: steps per row of training.csv.
    """

    steps: int | None = None
    minutes: float | None = None
    checkpoint_minutes: float = 5.0
    validation_minutes: float = 20.0
    log_steps: int = 50


@dataclass(frozen=True)
class Result:
    """The end of a run: `finished` (its budget is used) or `stopped` (by a signal).

    first: whether this is the process, of several, that speaks for the run.
    """

    step: int
    minutes: float
    reason: str
    model: Path
    first: bool = True


class Trainer:
    """Trains one stage; `run` may be called once.

    Args:
        stage: what is trained, on no device yet.
        optimizer: its options.
        budget: of the run.
        fabric: launched.
        folder: of the run; exists.
        reporter: tells how it goes.
        seed: of everything random in a step.
        config, facts: plain values that decide what the run computes and that identify its
            material, stored in every state.
    """

    def __init__(
        self,
        stage: Stage,
        optimizer: OptimizerConfig,
        budget: Budget,
        *,
        fabric: Fabric,
        folder: Path,
        reporter: Reporter,
        seed: int = 0,
        config: Mapping[str, Any] = {},
        facts: Mapping[str, Any] = {},
    ) -> None:
        self.stage = stage
        self.optimizer = optimizer
        self.budget = budget
        self.fabric = fabric
        self.folder = folder
        self.reporter = reporter
        self.config = config
        self.facts = facts
        self.update = Updater(fabric, stage, optimizer, seed)

        self.step = 0
        self.minutes = 0.0
        self.bad_steps = 0
        self.failed_saves = 0
        self.best = -math.inf
        self.signals: list[int] = []

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> State:
        """Everything a resumed run needs: tensors and plain values only."""
        state: State = {
            "config": json.dumps(self.config),
            "facts": json.dumps(self.facts),
            "step": self.step,
            "minutes": self.minutes,
            "bad_steps": self.bad_steps,
            "best": self.best,
            **self.update.state(),
        }
        return state

    def restore(self, state: State) -> None:
        """Continue where `state` was taken.

        Raises:
            TrainingError: it is of another network, or of a version that built this one otherwise.
        """
        try:
            self.update.restore(state)
            self.step = state["step"]
            self.minutes = state["minutes"]
            self.bad_steps = state["bad_steps"]
            self.best = state["best"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(
                f"the run in {self.folder} does not fit this version's networks "
                f"({in_one_line(error)}): start another with --init and its model.safetensors"
            ) from error

    # -- schedules -----------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Share of the budget that is used."""
        return schedule.progress(self.step, self.minutes, self.budget.steps, self.budget.minutes)

    def learning_rate(self) -> float:
        """Of the coming step."""
        epoch = self.step * self.optimizer.batch // self.stage.photos
        return schedule.learning_rate(self.optimizer, self.step, epoch, self.progress)

    # -- the loop ------------------------------------------------------------------------------

    def run(self, workers: int, resumed: bool) -> Result:
        """Train until the budget is used or a signal comes.

        Raises:
            TrainingError: gradients stay infinite, or checkpoints cannot be written.
        """
        logs = self._logs(resumed)
        try:
            with catch_signals() as self.signals:
                reason = self._train(workers, logs)
            if logs is not None:
                logs.flush()
        finally:
            if logs is not None:
                logs.close()
        model = self.folder / "model.safetensors"
        return Result(self.step, self.minutes, reason, model, self.fabric.is_global_zero)

    def _logs(self, resumed: bool) -> Logs | None:
        if not self.fabric.is_global_zero:
            return None
        stage = self.stage
        annealed = stage.anneal(stage.network, self.progress)
        critics = (critic.name for critic in stage.critics)
        return Logs(
            self.folder,
            (*annealed, "gradient_norm", "skipped", "total", *stage.weights, *critics),
            tuple(stage.measures),
            self.step if resumed else None,
        )

    def _train(self, workers: int, logs: Logs | None) -> str:
        with contextlib.closing(batches_from(self.stage.data, self.step, workers)) as batches:
            return self._train_on(batches, logs)

    def _train_on(self, batches: Iterator[Batch], logs: Logs | None) -> str:
        meter = Meter()
        clock = time.monotonic()
        window, window_started = 0, clock
        next_save = clock + 60 * self.budget.checkpoint_minutes
        next_validation = clock + 60 * self.budget.validation_minutes
        self.update.module.train()
        saved_at = -1
        while True:
            reason = self._reason_to_end()
            if reason:
                break
            batch = self.fabric.to_device(next(batches))
            values = self._step(batch)
            meter.add(values)
            window += 1
            now = time.monotonic()
            self.minutes += (now - clock) / 60
            clock = now
            images = self.optimizer.batch
            rate = window * images / max(now - window_started, 1e-9)
            if self.fabric.is_global_zero:
                shown = {k: v for k, v in values.items() if k in ("total", *self.stage.shown)}
                self.reporter.step(self.step, self.minutes, rate, shown)
            if self.step % self.budget.log_steps == 0:
                self._log(logs, meter, rate)
                window, window_started = 0, now
            if self._agree(now >= next_save):
                self._save()
                saved_at = self.step
                next_save = time.monotonic() + 60 * self.budget.checkpoint_minutes
            if self.stage.measures and self._agree(now >= next_validation):
                if saved_at != self.step:
                    self._save()
                    saved_at = self.step
                self._validate(logs)
                next_validation = time.monotonic() + 60 * self.budget.validation_minutes
                window, window_started = 0, time.monotonic()
        self._log(logs, meter, None)
        if saved_at != self.step:
            self._save(final=True)
        if self.stage.measures and reason == "finished":
            self._validate(logs)
        return reason

    def _reason_to_end(self) -> str:
        budget = self.budget
        if budget.steps is not None and self.step >= budget.steps:
            return "finished"
        if self._agree(budget.minutes is not None and self.minutes >= budget.minutes):
            return "finished"
        if self._agree(bool(self.signals)):
            return "stopped"
        return ""

    def _agree(self, decision: bool) -> bool:
        return agree(self.fabric, decision)

    def _step(self, batch: Batch) -> dict[str, float]:
        """One update of all weights; returns the logged values."""
        rate = self.learning_rate()
        annealed = self.stage.anneal(self.stage.network, self.progress)
        values, updated = self.update(batch, self.step, rate)
        if updated:
            self.bad_steps = 0
        else:
            self._skip()
            # What is not finite would spoil the means of the log.
            values = {}
        self.step += 1
        return values | annealed | {"learning_rate": rate, "skipped": float(not updated)}

    def _skip(self) -> None:
        self.bad_steps += 1
        if self.fabric.is_global_zero:
            self.reporter.say(f"step {self.step}: the gradient is not finite, the step is skipped")
        if self.bad_steps >= MAX_BAD_STEPS:
            raise TrainingError(
                f"no finite gradient for {self.bad_steps} steps, up to step {self.step}: resume "
                "from the last checkpoint with a new run (--init) at a lower --lr, or in fp32"
            )

    # -- what is not training ------------------------------------------------------------------

    def _log(self, logs: Logs | None, meter: Meter, rate: float | None) -> None:
        values = meter.read()
        if logs is None or not values:
            return
        epoch = self.step * self.optimizer.batch / self.stage.photos
        values |= {"epoch": epoch, "minutes": self.minutes}
        if rate is not None:
            values["images_per_second"] = rate
        logs.training(self.step, values)

    def _save(self, final: bool = False) -> None:
        """Write the state and the averaged model; a failure is told, and raised when it stays."""
        if not self.fabric.is_global_zero:
            return
        try:
            save_state(self.folder, self.state())
            self.export(self.folder / "model.safetensors")
        except OSError as error:
            self.failed_saves += 1
            text = (
                f"the checkpoint of step {self.step} cannot be written ({error.strerror or error})"
            )
            if final or self.failed_saves >= MAX_FAILED_SAVES:
                raise TrainingError(
                    f"{text}; the one before it is whole: free some space in {self.folder} and "
                    "continue with --resume"
                ) from error
            self.reporter.say(f"{text}; the one before it is whole; the next try comes later")
        else:
            self.failed_saves = 0

    def export(self, path: Path, measures: dict[str, float] | None = None) -> None:
        """Write the averaged network as a checkpoint, annealed as far as the run has come."""
        metadata = {
            "steps": str(self.step),
            "minutes": f"{self.minutes:.1f}",
            "photos": str(self.stage.photos),
        }
        if measures:
            metadata["validation"] = json.dumps(measures)
        self.stage.save(self._averaged(), path, metadata)

    def _averaged(self) -> nn.Module:
        network = self.update.average.module
        self.stage.anneal(network, self.progress)
        return network

    def _validate(self, logs: Logs | None) -> None:
        """Measure the averaged network; only the first process does."""
        if logs is not None:
            found = self.stage.validate(self._averaged())
            logs.validation(self.step, self.minutes, found.measures, found.grid)
            if found.grid is not None:
                try:
                    save_grid(self.folder / "grids" / f"step_{self.step:07d}.jpg", found.grid)
                except OSError as error:
                    self._say_unwritten("the picture grid", error)
            text = ", ".join(f"{name} {value:.2f}" for name, value in found.measures.items())
            self.reporter.say(f"validation at step {self.step}: {text}")
            if found.score > self.best:
                self.best = found.score
                try:
                    self.export(self.folder / "best.safetensors", found.measures)
                except OSError as error:
                    self._say_unwritten("best.safetensors", error)
        self.fabric.barrier()

    def _say_unwritten(self, what: str, error: OSError) -> None:
        self.reporter.say(f"{what} cannot be written ({error.strerror or error})")
