"""The stages of Pik-Fix's training, and which of them a run consists of."""

from __future__ import annotations

from pikfix.systems.pikfix.training.stages.base import Material, PikFixStage
from pikfix.systems.pikfix.training.stages.colors import Colors
from pikfix.systems.pikfix.training.stages.joint import Joint
from pikfix.systems.pikfix.training.stages.restoration import Restoration
from pikfix.systems.pikfix.training.stages.tone import Tone

__all__ = ["STAGES", "Material", "PikFixStage", "stage_of"]

STAGES: tuple[type[PikFixStage], ...] = (Restoration, Tone, Colors)
"""In the order of their forward passes."""


def stage_of(material: Material) -> PikFixStage:
    """The stage that trains `material.config.parts`: one of `STAGES`, or several at once."""
    parts = set(material.config.parts)
    if parts >= {*Restoration.parts, *Tone.parts}:
        parts -= {*Tone.parts}  # the end of restoration, which is trained with it
    stages = [kind(material) for kind in STAGES if parts & set(kind.parts)]
    return stages[0] if len(stages) == 1 else Joint(material, stages)
