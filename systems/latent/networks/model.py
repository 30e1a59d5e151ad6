"""The whole: damage, both VAEs, and the mapping between their latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.layers.sizes import pad_to_multiple, resize_antialiased
from pikfix.systems.damage.networks import Damage, hole
from pikfix.systems.latent.networks.config import LatentConfig
from pikfix.systems.latent.networks.mapping import Mapping
from pikfix.systems.latent.networks.vae import REDUCTION, Vae

WHITE = 1.0
"""What holes are painted with before a photo is encoded."""


class Latent(nn.Module):
    """Old photos to restored ones by translation of their latents (Wan et al., 2020).

    Args:
        config: what it is made of.
    """

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.config = config
        self.damage = None if config.damage is None else Damage(config.damage)
        self.vae_old = Vae(config.vae_channels, config.vae_blocks)
        self.vae_clean = Vae(config.vae_channels, config.vae_blocks)
        self.mapping = Mapping(config)

    def encode(self, photo_rgb: Tensor, damage_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a photo at the size at which it is translated.

        Args:
            photo_rgb: `[B, 3, H, W]`, (sRGB - 0.5) / 0.5, any H and W.
            damage_mask: `[B, 1, H, W]` in [0, 1], above 0 where the photo is not itself.

        Returns:
            latent: `[B, C, h/4, w/4]`, of the photo with its holes painted white.
            latent_hole: `[B, 1, h/4, w/4]`, the highest of each place's pixels.
        """
        photo, holes = self.reduced(photo_rgb), hole(self.reduced(damage_mask))
        painted = photo + holes * (WHITE - photo)
        return self.vae_old.encoder(painted), F.max_pool2d(holes, REDUCTION)

    def decode(self, latent: Tensor, photo_rgb: Tensor, damage_mask: Tensor) -> Tensor:
        """Decode a mapped latent, at the photo's own size.

        A photo that was translated at its own size comes as it was decoded. Of a larger one, what
        is decoded is enlarged within holes, and outside of them the change is: the photo keeps its
        detail there.

        Args:
            latent: `[B, C, h/4, w/4]`.
            photo_rgb: what was encoded.
            damage_mask: with what was encoded.

        Returns:
            restored_rgb: `[B, 3, H, W]` in [-1, 1].
        """
        height, width = photo_rgb.shape[-2:]
        restored = self.vae_clean.decoder(latent).to(photo_rgb.dtype)
        padded = pad_to_multiple(photo_rgb, self.config.side_multiple)
        reduced = resize_antialiased(padded, (restored.shape[-2], restored.shape[-1]))
        # The photo at the detail that was translated: what it has beyond that stays.
        rough = F.interpolate(
            torch.cat((restored, reduced), dim=1),
            (padded.shape[-2], padded.shape[-1]),
            mode="bilinear",
            align_corners=False,
        )[..., :height, :width]
        translated, seen = rough[:, :3], rough[:, 3:]
        sound = 1 - hole(damage_mask)
        return (translated + sound * (photo_rgb - seen)).clamp(-1, 1)

    def reduced(self, pictures: Tensor) -> Tensor:
        """Pictures at the size at which they are translated."""
        padded = pad_to_multiple(pictures, self.config.side_multiple)
        height, width = padded.shape[-2:]
        return resize_antialiased(padded, translation_size(height, width, self.config))

    def forward(self, photo_rgb: Tensor, damage_mask: Tensor) -> Tensor:
        """Restore `[B, 3, H, W]` with a mask `[B, 1, H, W]`; see `encode` and `decode`."""
        latent, latent_hole = self.encode(photo_rgb, damage_mask)
        return self.decode(self.mapping(latent, latent_hole), photo_rgb, damage_mask)


def translation_size(height: int, width: int, config: LatentConfig) -> tuple[int, int]:
    """The size at which a photo is translated.

    Args:
        height: of the padded photo.
        width: of the padded photo.
        config: its side multiple and limit.

    Returns:
        The same, or, where the long side is over the limit, multiples scaled down to it.
    """
    multiple, limit = config.side_multiple, config.limit
    # Integers only, so that export turns the same formula into a shape computation.
    long_side = torch.sym_max(torch.sym_max(height, width), limit)

    def scale(side: int) -> int:
        rounded = (side * limit // long_side + multiple // 2) // multiple
        # Reflection wants more pixels than it pads with.
        found: int = torch.sym_max(rounded, -(-12 // multiple)) * multiple
        return found

    return scale(height), scale(width)
