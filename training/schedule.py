"""The schedules of a run: the learning rate and the correlation's temperature."""

from __future__ import annotations

import math

from pikfix.training.config import OptimizerConfig

_EPOCH_DECAY = 0.99  # Pik-Fix, sec. 4.1
_COSINE_FLOOR = 0.01


def progress(step: int, elapsed: float, steps: int | None, minutes: float | None) -> float:
    """Share of a budget of steps, else of minutes, that is used; 0 without one."""
    if steps:
        return min(1.0, step / steps)
    if minutes:
        return min(1.0, elapsed / minutes)
    return 0.0


def learning_rate(options: OptimizerConfig, step: int, epoch: int, used: float) -> float:
    """Rate of the coming step.

    step: steps done.
    epoch: epochs done.
    used: share of the budget that is used, see `progress`.
    """
    rate = options.learning_rate * min(1.0, (step + 1) / max(1, options.warmup))
    if options.schedule == "exponential":
        return float(rate * _EPOCH_DECAY**epoch)
    if options.schedule == "cosine":
        half = (1 + math.cos(math.pi * used)) / 2
        return rate * (_COSINE_FLOOR + (1 - _COSINE_FLOOR) * half)
    return rate


def temperature(options: OptimizerConfig, final: float, used: float) -> float:
    """Temperature of the coming step's correlation, annealed geometrically to `final`."""
    start = options.temperature_start
    if start is None or start <= final:
        return final
    share = min(1.0, used / options.temperature_anneal)
    return float(start * (final / start) ** share)
