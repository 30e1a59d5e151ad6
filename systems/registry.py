"""All systems by name; each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

from pikfix.systems.base import Model, System, TensorSpec

SYSTEMS = {
    "pikfix": "pikfix.systems.pikfix",
    "damage": "pikfix.systems.damage",
    "latent": "pikfix.systems.latent.system",
    "faces": "pikfix.systems.latent.faces.system",
}
"""Where the `SYSTEM` of each name is declared."""


def system_of(name: str) -> System:
    """The system of a name.

    Raises:
        ValueError: there is none; the message names those there are.
    """
    if name not in SYSTEMS:
        raise ValueError(f"no system {name!r}; this version has: {', '.join(SYSTEMS)}")
    system: System = import_module(SYSTEMS[name]).SYSTEM
    return system


def python_steps(system: System) -> tuple[Model, ...]:
    """A system's steps that are code, as all systems together declare them.

    A step of one name is one model, which serves every system that names it: it takes and gives
    what any of them wants, and a request may leave out what not all of them send.
    """
    everywhere = [step for name in SYSTEMS for step in system_of(name).python_steps]
    merged = []
    for own in system.python_steps:
        views = [step for step in everywhere if step.name == own.name] or [own]
        inputs = _joined([view.inputs for view in views])
        outputs = _joined([view.outputs for view in views])
        merged.append(Model(own.name, inputs, tuple(replace(t, optional=False) for t in outputs)))
    return tuple(merged)


def _joined(views: Sequence[tuple[TensorSpec, ...]]) -> tuple[TensorSpec, ...]:
    tensors = {tensor.name: tensor for view in views for tensor in view}
    count = {name: sum(any(t.name == name for t in view) for view in views) for name in tensors}
    return tuple(
        replace(tensor, optional=tensor.optional or count[name] < len(views))
        for name, tensor in tensors.items()
    )
