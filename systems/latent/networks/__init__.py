"""The networks of latent translation: VAEs, mapping, discriminators."""

from pikfix.systems.latent.networks.config import PRESETS, LatentConfig
from pikfix.systems.latent.networks.discriminators import PatchDiscriminator, TwoScaleDiscriminator
from pikfix.systems.latent.networks.mapping import Mapping, PartialNonlocal, PatchAttention
from pikfix.systems.latent.networks.model import Latent
from pikfix.systems.latent.networks.sizing import Sizing
from pikfix.systems.latent.networks.vae import Decoder, Encoder, Vae

__all__ = [
    "PRESETS",
    "Decoder",
    "Encoder",
    "Latent",
    "LatentConfig",
    "Mapping",
    "PartialNonlocal",
    "PatchAttention",
    "PatchDiscriminator",
    "Sizing",
    "TwoScaleDiscriminator",
    "Vae",
]
