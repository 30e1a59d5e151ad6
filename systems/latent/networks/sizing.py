"""From a photo's own size to the one at which it is translated, and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pikfix.layers.sizes import pad_to_multiple, resize_antialiased
from pikfix.systems.damage.networks import hole
from pikfix.systems.latent.networks.config import LatentConfig
from pikfix.systems.latent.networks.vae import REDUCTION

WHITE = 1.0
"""What holes are painted with before a photo is encoded."""

_SMALLEST = 12  # reflection wants more pixels than it pads with, of the latent too


class Sizing:
    """How a photo of any size becomes one that is translated, and what becomes of the result.

    Instance norms see the whole photo, so that tiles would differ from each other. A large photo is
    therefore translated whole, at a smaller size.

    Args:
        config: its limit and side multiple.
    """

    def __init__(self, config: LatentConfig) -> None:
        self.limit, self.multiple = config.limit, config.side_multiple

    def of(self, height: int, width: int) -> tuple[int, int]:
        """The size at which a photo is translated.

        Args:
            height: of the padded photo.
            width: of the padded photo.

        Returns:
            The same, or, where the long side is over the limit, multiples scaled down to it.
        """
        # Integers only, so that export turns the same formula into a shape computation.
        long_side = torch.sym_max(torch.sym_max(height, width), self.limit)

        def scale(side: int) -> int:
            rounded = (side * self.limit // long_side + self.multiple // 2) // self.multiple
            found: int = torch.sym_max(rounded, -(-_SMALLEST // self.multiple)) * self.multiple
            return found

        return scale(height), scale(width)

    def reduced(self, pictures: Tensor) -> Tensor:
        """`[B, C, H, W]` at the size at which they are translated."""
        padded = pad_to_multiple(pictures, self.multiple)
        return resize_antialiased(padded, self.of(padded.shape[-2], padded.shape[-1]))

    def painted(self, photo_rgb: Tensor, damage_mask: Tensor) -> tuple[Tensor, Tensor]:
        """What is encoded.

        Args:
            photo_rgb: `[B, 3, H, W]`, (sRGB - 0.5) / 0.5, any H and W.
            damage_mask: `[B, 1, H, W]` in [0, 1], above 0 where the photo is not itself.

        Returns:
            photo: `[B, 3, h, w]`, its holes painted white.
            latent_hole: `[B, 1, h/4, w/4]`, the highest of the holes of each place of the latent.
        """
        photo, holes = self.reduced(photo_rgb), hole(self.reduced(damage_mask))
        return photo + holes * (WHITE - photo), F.max_pool2d(holes, REDUCTION)

    def carried_over(self, decoded: Tensor, photo_rgb: Tensor, damage_mask: Tensor) -> Tensor:
        """What was decoded, at the photo's own size.

        A photo that was translated at its own size comes as it was decoded. Of a larger one, what
        was decoded is enlarged within holes, and outside of them the change is: the photo keeps
        the detail, and the grain, that are too fine for the smaller size.

        Args:
            decoded: `[B, 3, h, w]`.
            photo_rgb: `[B, 3, H, W]`, what was painted and encoded.
            damage_mask: `[B, 1, H, W]`, with what it was painted.

        Returns:
            restored_rgb: `[B, 3, H, W]` in [-1, 1].
        """
        height, width = photo_rgb.shape[-2:]
        decoded = decoded.to(photo_rgb.dtype)
        padded = pad_to_multiple(photo_rgb, self.multiple)
        seen = resize_antialiased(padded, (decoded.shape[-2], decoded.shape[-1]))
        enlarged = F.interpolate(
            torch.cat((decoded, seen), dim=1),
            (padded.shape[-2], padded.shape[-1]),
            mode="bilinear",
            align_corners=False,
        )[..., :height, :width]
        translated, rough = enlarged[:, :3], enlarged[:, 3:]
        sound = 1 - hole(damage_mask)
        return (translated + sound * (photo_rgb - rough)).clamp(-1, 1)
