"""Options that every stage of every system has, and how the options of two runs differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Schedule = Literal["constant", "exponential", "cosine"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer: how weights follow gradients.

    batch: samples per step over all devices.
    learning_rate: peak rate of Adam; reached after `warmup` steps.
    schedule: constant; exponential (times 0.99 each epoch, as published); cosine to 1 % over the
        budget (`steps`, else `minutes`).
    temperature_start: temperature of the correlation at the beginning, annealed geometrically to
        the network's own over the first `temperature_anneal` of the budget; None keeps it.
    ema: decay of the averaged weights, which are what validation and export use.
    clip: largest gradient norm; 0 does not clip.
    """

    batch: int = 16
    learning_rate: float = 2e-4
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    warmup: int = 200
    schedule: Schedule = "cosine"
    temperature_start: float | None = 0.05
    temperature_anneal: float = 0.3
    ema: float = 0.999
    clip: float = 1.0
    precision: Precision = "bf16"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}: it must be at least 1")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate is {self.learning_rate}: it must be in (0, 1)")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}: it must be in [0, 1)")
        if self.temperature_start is not None and not self.temperature_start > 0:
            raise ValueError(f"temperature_start is {self.temperature_start}: it must be positive")
        if not 0 < self.temperature_anneal <= 1:
            raise ValueError(f"temperature_anneal is {self.temperature_anneal}: must be in (0, 1]")
        one_of("schedule", self.schedule, Schedule)
        one_of("precision", self.precision, Precision)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Name every leaf in which two nested dicts differ, as `data.crop: 128 -> 256`."""
    found = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{key}.")
        elif _plain(before) != _plain(after):
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def one_of(name: str, value: str, kind: Any) -> None:
    """Refuse a value that is none of a `Literal`'s.

    Raises:
        ValueError: it is another; the message names the field and the choices.
    """
    if value not in get_args(kind):
        raise ValueError(f"{name} is {value!r}: choose from {', '.join(get_args(kind))}")
