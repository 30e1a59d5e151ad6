"""Words that options of several commands take."""

from __future__ import annotations

from enum import Enum


class Device(str, Enum):
    """What networks run on."""

    cpu = "cpu"
    cuda = "cuda"


class Strength(str, Enum):
    """How much photos have suffered: presets of `pikfix.training.degradation`."""

    light = "light"
    default = "default"
    heavy = "heavy"
