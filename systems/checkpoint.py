"""Checkpoints of any system: each names its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pikfix.networks.checkpoint import (
    DEFAULT_SYSTEM,
    CheckpointError,
    load_weights,
    read_checkpoint,
    read_config,
)
from pikfix.systems.base import Step, System
from pikfix.systems.registry import system_of


@dataclass(frozen=True)
class Loaded:
    """A checkpoint: its system, configuration, model in evaluation mode, and metadata."""

    system: System
    config: Any
    model: nn.Module
    metadata: dict[str, str]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of its configuration."""
        return self.system.steps(self.config)

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules of its steps, by name."""
        return self.system.modules(self.model, self.steps)


def load(path: str | Path) -> Loaded:
    """Build the network that a checkpoint describes and load its weights as float32.

    Raises:
        CheckpointError: the file is missing, truncated, not a pikfix checkpoint, of a system that
            this version does not have, or its tensors do not fit the configuration inside.
    """
    path = Path(path)
    metadata, tensors = read_checkpoint(path)
    try:
        system = system_of(metadata.get("system", DEFAULT_SYSTEM))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; update pikfix") from error
    config = read_config(system.config_type, metadata, path)
    model = system.build(config)
    load_weights(model, tensors, path)
    return Loaded(system, config, model.eval(), metadata)
