"""Checkpoints: weights, configuration and system in one safetensors file, never pickle."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pikfix.protocol.names import DEFAULT_SYSTEM
from pikfix.systems.base import Step, System
from pikfix.systems.registry import system_of

_FORMAT = "pikfix"
_FORMAT_VERSION = "1"
UNTRAINED = "untrained"
"""Key of the metadata that says which networks of a checkpoint nothing has trained yet."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; the message says what to do."""


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


def save_checkpoint(
    model: Any,
    path: str | Path,
    metadata: dict[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    system: str = DEFAULT_SYSTEM,
) -> None:
    """Write `model` with its configuration; the file appears whole or not at all.

    Args:
        model: what to write, from any device; a module with the attribute `config`.
        path: the file, `.safetensors` by convention.
        metadata: further facts to store, such as how it was trained.
        system: whose model it is.
        dtype: what floating-point weights are stored as; their own type when None. float16 halves
            the file; loading gives float32 again.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in model.state_dict().items()
    }
    header = {
        **(metadata or {}),
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "system": system,
        "config": json.dumps(model.config.to_dict()),
    }
    write_tensors(tensors, path, header)


def write_tensors(tensors: dict[str, torch.Tensor], path: Path, header: dict[str, str]) -> None:
    """Write safetensors with metadata; the file appears whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=header)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read what a checkpoint says of itself, without its weights.

    Raises:
        CheckpointError: the file is missing, damaged or not a pikfix checkpoint.
    """
    return _read(Path(path), with_tensors=False)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """What a checkpoint says of itself, and its weights as float32.

    Raises:
        CheckpointError: the file is missing, damaged or not a pikfix checkpoint.
    """
    return _read(path, with_tensors=True)


def read_config(config_type: Any, metadata: dict[str, str], path: Path) -> Any:
    """The configuration in a checkpoint's metadata, of a type with `from_dict`.

    Raises:
        CheckpointError: it is missing, or this version cannot use it.
    """
    try:
        return config_type.from_dict(json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its configuration cannot be used ({error}); it may come from another version "
            "of pikfix: train or download it again"
        ) from error


def load_weights(model: Any, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Load a checkpoint's weights into the network that its configuration describes.

    Raises:
        CheckpointError: they do not fit it.
    """
    own = model.state_dict()
    missing = sorted(set(own) - set(tensors))
    unexpected = sorted(set(tensors) - set(own))
    other = sorted(n for n in own if n in tensors and own[n].shape != tensors[n].shape)
    for names, what in (
        (missing, "lacks"),
        (unexpected, "has the unknown"),
        (other, "has a wrong shape for"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"{path} {what} {names[0]}{more}: it does not fit its own configuration "
                f"({model.config.name}); use a checkpoint that `pikfix train` wrote"
            )
    model.load_state_dict(tensors)


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a checkpoint (.safetensors)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            names = file.keys() if with_tensors else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file ({error}); download or copy it again"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(
            f"{path}: not a pikfix checkpoint; use one that `pikfix train` wrote or that is shipped"
        )
    if metadata.get("format_version") != _FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: checkpoint format {metadata.get('format_version')}, this version reads "
            f"{_FORMAT_VERSION}; update pikfix"
        )
    tensors = {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
    return metadata, tensors
