"""The whole: damage, both VAEs, and the mapping between their latents."""

from __future__ import annotations

from torch import Tensor, nn

from pikfix.systems.damage.networks import Damage
from pikfix.systems.latent.networks.config import LatentConfig
from pikfix.systems.latent.networks.mapping import Mapping
from pikfix.systems.latent.networks.sizing import Sizing
from pikfix.systems.latent.networks.vae import Vae


class Latent(nn.Module):
    """Old photos to restored ones by translation of their latents (Wan et al., 2020).

    Args:
        config: what it is made of.
    """

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.config = config
        self.size = Sizing(config)
        self.damage = None if config.damage is None else Damage(config.damage)
        self.vae_old = Vae(config.vae_channels, config.vae_blocks)
        self.vae_clean = Vae(config.vae_channels, config.vae_blocks)
        self.mapping = Mapping(config)

    def forward(self, photo_rgb: Tensor, damage_mask: Tensor) -> Tensor:
        """Translate a photo.

        Args:
            photo_rgb: `[B, 3, H, W]`, (sRGB - 0.5) / 0.5, any H and W.
            damage_mask: `[B, 1, H, W]` in [0, 1], above 0 where the photo is not itself.

        Returns:
            restored_rgb: `[B, 3, H, W]` in [-1, 1].
        """
        painted, latent_hole = self.size.painted(photo_rgb, damage_mask)
        mapped = self.mapping(self.vae_old.encoder(painted), latent_hole)
        return self.size.carried_over(self.vae_clean.decoder(mapped), photo_rgb, damage_mask)
