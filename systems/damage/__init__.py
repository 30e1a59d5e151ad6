"""Where a photo is damaged: a detector, and a filler of what it finds; part of other systems."""

from pikfix.systems.damage.system import SYSTEM

__all__ = ["SYSTEM"]
