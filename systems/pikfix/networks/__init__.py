"""The networks of Pik-Fix: restoration, tone, similarity and colorization."""

from pikfix.systems.pikfix.networks.checkpoint import load_checkpoint
from pikfix.systems.pikfix.networks.config import PRESETS, PYRAMID_LEVELS, PikFixConfig
from pikfix.systems.pikfix.networks.model import PikFix, PikFixOutput, to_working

__all__ = [
    "PRESETS",
    "PYRAMID_LEVELS",
    "PikFix",
    "PikFixConfig",
    "PikFixOutput",
    "load_checkpoint",
    "to_working",
]
