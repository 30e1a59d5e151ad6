"""The three exported sub-nets as modules whose forward has the contract's tensors, in its order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pikfix.networks import PYRAMID_LEVELS, PikFix, PikFixConfig, to_working


class SubnetStep(nn.Module):
    """A sub-net with the configuration of the whole model."""

    def __init__(self, model: PikFix) -> None:
        super().__init__()
        self.config: PikFixConfig = model.config


class RestoreStep(SubnetStep):
    """photo_l to restored_l and working_l."""

    def __init__(self, model: PikFix) -> None:
        super().__init__(model)
        self.restoration = model.restoration

    def forward(self, photo_l: Tensor) -> tuple[Tensor, Tensor]:
        restored_l = self.restoration(photo_l)
        return restored_l, to_working(restored_l)


class TileStep(nn.Module):
    """photo_l and whole to restored_l and working_l: photos, or, where `whole` is 0, tiles."""

    def __init__(self, step: RestoreStep) -> None:
        super().__init__()
        self.restoration = step.restoration

    def forward(self, photo_l: Tensor, whole: Tensor) -> tuple[Tensor, Tensor]:
        mended_l = self.restoration.mended(photo_l)
        restored_l = self.restoration.toned(photo_l, mended_l, whole)
        return restored_l, to_working(restored_l)


class WholeStep(nn.Module):
    """photo_l and mended_l to restored_l and working_l: what is left when tiles are joined."""

    def __init__(self, step: RestoreStep) -> None:
        super().__init__()
        self.restoration = step.restoration

    def forward(self, photo_l: Tensor, mended_l: Tensor) -> tuple[Tensor, Tensor]:
        restored_l = self.restoration.toned(photo_l, mended_l)
        return restored_l, to_working(restored_l)


class SimilarityStep(SubnetStep):
    """working_l and reference_lab to warped_1..4, confidence_1..4 and reference_share."""

    def __init__(self, model: PikFix) -> None:
        super().__init__(model)
        self.similarity = model.similarity

    def forward(self, working_l: Tensor, reference_lab: Tensor) -> tuple[Tensor, ...]:
        warped, confidence, share = self.similarity.with_share(working_l, reference_lab)
        return (*warped, *confidence, share)


class ColorizeStep(SubnetStep):
    """working_l, warped_1..4 and confidence_1..4 to ab."""

    def __init__(self, model: PikFix) -> None:
        super().__init__(model)
        self.colorization = model.colorization

    def forward(self, working_l: Tensor, *maps: Tensor) -> Tensor:
        warped, confidence = maps[:PYRAMID_LEVELS], maps[PYRAMID_LEVELS:]
        ab: Tensor = self.colorization(working_l, warped, confidence)
        return ab


def subnet_module(model: PikFix, name: str) -> SubnetStep:
    """Wrap the sub-net `name` of `model` ("restore", "similarity" or "colorize")."""
    steps: dict[str, type[SubnetStep]] = {
        "restore": RestoreStep,
        "similarity": SimilarityStep,
        "colorize": ColorizeStep,
    }
    return steps[name](model).eval()


@torch.no_grad()
def run_subnet(module: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Run a wrapped sub-net; always a tuple, in the contract's order."""
    out = module(*inputs.values())
    return out if isinstance(out, tuple) else (out,)
