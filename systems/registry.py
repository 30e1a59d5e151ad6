"""All systems by name; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

from pikfix.systems.base import System

SYSTEMS = {
    "pikfix": "pikfix.systems.pikfix",
    "damage": "pikfix.systems.damage",
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
