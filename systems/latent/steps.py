"""The steps of latent translation: every tensor between them, and the modules that compute them.

Translation is three steps, not one: what encodes and decodes are plain convolutions, which every
runtime has kernels for, and what lies between holds the attention, which a server may want to run
on the fused kernel. What passes between them is 1.3 times a photo at its working size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pikfix.protocol.names import PHOTO_MODELS
from pikfix.systems.base import Ensemble, Model, Step, TensorSpec
from pikfix.systems.damage.networks import Damage
from pikfix.systems.damage.steps import DAMAGE_MASK, PHOTO_L
from pikfix.systems.files import MASK, OPTIONS, PHOTO, PHOTO_INFO, REPORT, RESULT
from pikfix.systems.latent.networks import Latent, LatentConfig

NAME = "latent"

PHOTO_RGB = TensorSpec("photo_rgb", (3, "H", "W"))
MARKED_MASK = TensorSpec("marked_mask", (1, "H", "W"))
"""What the request's own mask says."""
RESTORED_RGB = TensorSpec("restored_rgb", (3, "H", "W"))
LATENT_HOLE = TensorSpec("latent_hole", (1, "h/4", "w/4"))


class DamageStep(nn.Module):
    """photo_l and marked_mask to damage_mask: what was found and what was marked."""

    def __init__(self, damage: Damage | None) -> None:
        super().__init__()
        self.damage = damage

    def forward(self, photo_l: Tensor, marked_mask: Tensor) -> Tensor:
        found = torch.zeros_like(photo_l)
        if self.damage is not None:
            _, found = self.damage(photo_l)
        return found.maximum(marked_mask.clamp(0, 1))


class EncodeStep(nn.Module):
    """photo_rgb and damage_mask to latent and latent_hole."""

    def __init__(self, model: Latent) -> None:
        super().__init__()
        self.size = model.size
        self.encoder = model.vae_old.encoder

    def forward(self, photo_rgb: Tensor, damage_mask: Tensor) -> tuple[Tensor, Tensor]:
        painted, latent_hole = self.size.painted(photo_rgb, damage_mask)
        return self.encoder(painted), latent_hole


class DecodeStep(nn.Module):
    """photo_rgb, damage_mask and mapped_latent to restored_rgb."""

    def __init__(self, model: Latent) -> None:
        super().__init__()
        self.size = model.size
        self.decoder = model.vae_clean.decoder

    def forward(self, photo_rgb: Tensor, damage_mask: Tensor, mapped_latent: Tensor) -> Tensor:
        return self.size.carried_over(self.decoder(mapped_latent), photo_rgb, damage_mask)


def steps(config: LatentConfig) -> tuple[Step, ...]:
    """The steps of a configuration, which sets the channels of the latents."""
    shape = (config.vae_channels, "h/4", "w/4")
    latent, mapped = TensorSpec("latent", shape), TensorSpec("mapped_latent", shape)
    return (
        Step(
            "latent_damage",
            (PHOTO_L, MARKED_MASK),
            (DAMAGE_MASK,),
            system=NAME,
            config=config,
            module=lambda model: DamageStep(model.damage),
            # A sound pixel leaves as it came, to the last bit.
            lowest_precision="fp32",
            priority=5,
            nice=12,
            cacheable=True,
        ),
        Step(
            "latent_encode",
            (PHOTO_RGB, DAMAGE_MASK),
            (latent, LATENT_HOLE),
            system=NAME,
            config=config,
            module=EncodeStep,
            lowest_precision="bf16",
            working_limit=config.limit,
            priority=4,
            nice=10,
        ),
        Step(
            "latent_map",
            (latent, LATENT_HOLE),
            (mapped,),
            system=NAME,
            config=config,
            module=lambda model: model.mapping,
            lowest_precision="bf16",
            working_limit=config.limit,
            correlation=True,
            priority=3,
            nice=7,
        ),
        Step(
            "latent_decode",
            (PHOTO_RGB, DAMAGE_MASK, mapped),
            (RESTORED_RGB,),
            system=NAME,
            config=config,
            module=DecodeStep,
            lowest_precision="bf16",
            working_limit=config.limit,
            priority=2,
            nice=5,
        ),
    )


PYTHON_STEPS = (
    Model("decode_photo", (PHOTO, MASK, OPTIONS), (PHOTO_L, PHOTO_RGB, MARKED_MASK, PHOTO_INFO)),
    Model("encode_photo", (RESTORED_RGB, DAMAGE_MASK, PHOTO_INFO), (RESULT, REPORT)),
)

_TRANSLATION = ("latent_encode", "latent_map", "latent_decode")

ENSEMBLES = (
    Ensemble(NAME, (PHOTO_RGB, DAMAGE_MASK), (RESTORED_RGB,), steps=_TRANSLATION),
    Ensemble(
        PHOTO_MODELS[NAME],
        (PHOTO, MASK, OPTIONS),
        (RESULT, REPORT),
        steps=("decode_photo", "latent_damage", *_TRANSLATION, "encode_photo"),
    ),
)
