"""Checkpoints of Pik-Fix, for what works with its networks and no other system's."""

from __future__ import annotations

from pathlib import Path

import torch

from pikfix.protocol.names import DEFAULT_SYSTEM
from pikfix.systems.checkpoint import (
    CheckpointError,
    load_weights,
    read_checkpoint,
    read_config,
)
from pikfix.systems.pikfix.networks.config import PikFixConfig
from pikfix.systems.pikfix.networks.model import PikFix


def load_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> PikFix:
    """Build the network a checkpoint describes and load its weights as float32.

    Returns:
        The model in evaluation mode on `device`.

    Raises:
        CheckpointError: the file is missing, truncated, not a pikfix checkpoint, of another system,
            or its tensors do not fit the configuration inside.
    """
    path = Path(path)
    metadata, tensors = read_checkpoint(path)
    system = metadata.get("system", DEFAULT_SYSTEM)
    if system != "pikfix":
        raise CheckpointError(f"{path} is of the system {system}: give a checkpoint of pikfix")
    model = PikFix(read_config(PikFixConfig, metadata, path))
    load_weights(model, tensors, path)
    return model.eval().to(device)
