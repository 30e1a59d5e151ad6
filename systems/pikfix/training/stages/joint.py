"""Several stages in one update: one forward pass, all of their losses."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pikfix.systems.pikfix.networks import PikFix
from pikfix.systems.pikfix.training.augment import Inputs
from pikfix.systems.pikfix.training.stages.base import Material, Outputs, PikFixStage
from pikfix.systems.pikfix.training.validation import Sample


class Joint(PikFixStage):
    """Trains what its stages train; each sees the outputs of those before it.

    Args:
        material: that the stages were made of.
        stages: in the order of their forward passes; the last one's score counts.
    """

    def __init__(self, material: Material, stages: Sequence[PikFixStage]) -> None:
        super().__init__(material)
        self.stages = stages
        self.name = "+".join(stage.name for stage in stages)
        self.extras = {name: module for s in stages for name, module in s.extras.items()}
        self.weights = {name: weight for s in stages for name, weight in s.weights.items()}
        self.shown = [name for s in stages for name in s.shown]
        self.critics = [critic for s in stages for critic in s.critics]
        self.left_out = tuple(name for s in stages for name in s.left_out)
        self.measures = [name for s in reversed(stages) for name in s.measures]

    def modules(self) -> list[nn.Module]:
        return [module for stage in self.stages for module in stage.modules()]

    def compute(self, inputs: Inputs, known: Outputs) -> Outputs:
        for stage in self.stages:
            known = {**known, **stage.compute(inputs, known)}
        return known

    def losses(self, inputs: Inputs, outputs: Outputs) -> dict[str, Tensor]:
        """The terms of all stages; those of one name are added."""
        terms: dict[str, Tensor] = {}
        for stage in self.stages:
            for name, term in stage.losses(inputs, outputs).items():
                before = terms.pop(name, None)
                terms[name] = term if before is None else before + term
        return terms

    def measure(self, network: PikFix, sample: Sample) -> tuple[dict[str, float], list[Tensor]]:
        found = [stage.measure(network, sample) for stage in self.stages]
        row = {name: value for figures, _ in found for name, value in figures.items()}
        return row, [tile for _, tiles in found for tile in tiles]
