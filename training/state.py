"""The state of a run on disk: written whole or not at all, loaded without executing anything."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from pikfix.training.errors import TrainingError, in_one_line
from pikfix.training.photo_store import write_atomically

STATE = "state.pt"
PREVIOUS = "state.previous.pt"

State = dict[str, Any]


def save_state(folder: Path, state: State) -> None:
    """Write the state of a run and keep the one before it.

    Raises:
        OSError: it cannot be written; the last complete state is still there.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    current, previous = folder / STATE, folder / PREVIOUS
    temporary = folder / f".{STATE}.new"
    try:
        write_atomically(temporary, buffer.getbuffer())
        if current.exists():
            # Between these two renames the previous state is the newest complete one.
            current.replace(previous)
        temporary.replace(current)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def has_state(folder: Path) -> bool:
    """Whether the folder holds a run that can be continued."""
    return (folder / STATE).exists() or (folder / PREVIOUS).exists()


def load_state(folder: Path) -> tuple[State, list[str]]:
    """Load the newest complete state of a run.

    Returns:
        The state, and warnings about a newer file that could not be read.

    Raises:
        TrainingError: there is none.
    """
    warnings = []
    for name in (STATE, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state: State = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load has no common error for damaged files
            warnings.append(f"{path} is damaged ({in_one_line(error)})")
            continue
        return state, warnings
    if warnings:
        raise TrainingError(f"{'; '.join(warnings)}: the run in {folder} cannot be resumed")
    raise TrainingError(f"{folder} holds no run to resume: leave --resume out to start one")
