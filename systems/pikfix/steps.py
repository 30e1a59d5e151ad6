"""Pik-Fix's steps: every tensor between them, and the modules that compute them."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from pikfix.layers.sizes import SIDE_MULTIPLE
from pikfix.protocol.names import PHOTO_MODEL, TENSOR_MODEL
from pikfix.systems.base import Ensemble, Model, Step, TensorSpec
from pikfix.systems.damage.steps import DAMAGE_MASK, FILLED_L, PHOTO_L, damage_step
from pikfix.systems.files import MASK, OPTIONS, PHOTO, PHOTO_INFO, REFERENCE, REPORT, RESULT
from pikfix.systems.pikfix.networks import PYRAMID_LEVELS, PikFix, PikFixConfig, to_working
from pikfix.systems.pikfix.networks.restoration import Restoration

NAME = "pikfix"

REPAIRED_L = TensorSpec("repaired_l", (1, "H", "W"))
RESTORED_L = TensorSpec("restored_l", (1, "H", "W"))
WORKING_L = TensorSpec("working_l", (1, "h", "w"))
REFERENCE_LAB = TensorSpec("reference_lab", ("R", 3, "H_r", "W_r"))
AB = TensorSpec("ab", (2, "h", "w"))
CONFIDENCE = tuple(
    TensorSpec(f"confidence_{i + 1}", (1, f"h/{4 << i}", f"w/{4 << i}"))
    for i in range(PYRAMID_LEVELS)
)
SHARE = TensorSpec("reference_share", ("R",))


class RestoreStep(nn.Module):
    """filled_l to repaired_l: what may be computed in tiles."""

    def __init__(self, model: PikFix) -> None:
        super().__init__()
        # The same network without its tone, which is the next step.
        self.restoration: Restoration = copy.copy(model.restoration)
        self.restoration._modules = {**model.restoration._modules, "tone": None}

    def forward(self, filled_l: Tensor) -> Tensor:
        return self.restoration.repaired(filled_l)


class ToneStep(nn.Module):
    """filled_l and repaired_l, whole photos, to restored_l and working_l."""

    def __init__(self, model: PikFix) -> None:
        super().__init__()
        self.tone = model.restoration.tone

    def forward(self, filled_l: Tensor, repaired_l: Tensor) -> tuple[Tensor, Tensor]:
        restored_l = repaired_l
        if self.tone is not None:
            restored_l = self.tone.set(filled_l, repaired_l).clamp(-1, 1)
        return restored_l, to_working(restored_l)


class SimilarityStep(nn.Module):
    """working_l and reference_lab to warped_1..4, confidence_1..4 and reference_share."""

    def __init__(self, model: PikFix) -> None:
        super().__init__()
        self.similarity = model.similarity

    def forward(self, working_l: Tensor, reference_lab: Tensor) -> tuple[Tensor, ...]:
        warped, confidence, share = self.similarity.with_share(working_l, reference_lab)
        return (*warped, *confidence, share)


class ColorizeStep(nn.Module):
    """working_l, warped_1..4 and confidence_1..4 to ab."""

    def __init__(self, model: PikFix) -> None:
        super().__init__()
        self.colorization = model.colorization

    def forward(self, working_l: Tensor, *maps: Tensor) -> Tensor:
        warped, confidence = maps[:PYRAMID_LEVELS], maps[PYRAMID_LEVELS:]
        ab: Tensor = self.colorization(working_l, warped, confidence)
        return ab


def steps(config: PikFixConfig) -> tuple[Step, ...]:
    """The steps of a configuration, which sets halo and channels."""
    warped = tuple(
        TensorSpec(f"warped_{i + 1}", (config.warped_channels, f"h/{4 << i}", f"w/{4 << i}"))
        for i in range(PYRAMID_LEVELS)
    )
    return (
        damage_step(NAME, config, lambda model: model.damage),
        Step(
            "restore",
            (FILLED_L,),
            (REPAIRED_L,),
            system=NAME,
            config=config,
            module=RestoreStep,
            halo=config.restoration_halo,
            priority=4,
            nice=10,
            # The heaviest step, and its input stays when a photo is tried with other references.
            cacheable=True,
        ),
        Step(
            "tone",
            (FILLED_L, REPAIRED_L),
            (RESTORED_L, WORKING_L),
            system=NAME,
            config=config,
            module=ToneStep,
            # An error of the tone is one of the whole photo: no average makes it small.
            lowest_precision="fp32",
            priority=3,
            nice=7,
        ),
        Step(
            "similarity",
            (WORKING_L, REFERENCE_LAB),
            (*warped, *CONFIDENCE, SHARE),
            system=NAME,
            config=config,
            module=SimilarityStep,
            side_multiple=SIDE_MULTIPLE,
            lowest_precision="bf16",
            correlation=True,
            priority=2,
            nice=5,
        ),
        Step(
            "colorize",
            (WORKING_L, *warped, *CONFIDENCE),
            (AB,),
            system=NAME,
            config=config,
            module=ColorizeStep,
            side_multiple=SIDE_MULTIPLE,
        ),
    )


PYTHON_STEPS = (
    Model("decode_photo", (PHOTO, REFERENCE, MASK, OPTIONS), (PHOTO_L, REFERENCE_LAB, PHOTO_INFO)),
    Model(
        "encode_photo",
        (RESTORED_L, DAMAGE_MASK, AB, *CONFIDENCE, SHARE, PHOTO_INFO),
        (RESULT, REPORT),
    ),
)

_NETWORKS = ("damage", "restore", "tone", "similarity", "colorize")

ENSEMBLES = (
    Ensemble(TENSOR_MODEL, (PHOTO_L, REFERENCE_LAB), (RESTORED_L, AB), steps=_NETWORKS),
    Ensemble(
        PHOTO_MODEL,
        (PHOTO, REFERENCE, MASK, OPTIONS),
        (RESULT, REPORT),
        steps=("decode_photo", *_NETWORKS, "encode_photo"),
    ),
)
