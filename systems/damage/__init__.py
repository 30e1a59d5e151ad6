"""Where a photo is damaged: a detector, and a filler of what it finds."""

from pikfix.systems.damage.system import SYSTEM

__all__ = ["SYSTEM"]
