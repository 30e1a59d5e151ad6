"""The tone alone: the end of restoration, whose levels stay as they are."""

from __future__ import annotations

from torch import nn

from pikfix.systems.pikfix.training.stages.restoration import Restoration


class Tone(Restoration):
    """Trains the tone curve by restoration's losses."""

    name = "tone"
    parts = ("tone",)

    def modules(self) -> list[nn.Module]:
        """The tone, a part of restoration."""
        return [self.network.get_submodule("restoration.tone")]
