"""From the latents of old photos to those of clean ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.kernels import correlation_warp
from pikfix.layers.blocks import Entry
from pikfix.systems.latent.networks.blocks import initialise, instance_norm, residual_blocks
from pikfix.systems.latent.networks.config import LatentConfig

PATCH_SIDES = (8, 4, 2)
"""Of the patches that the variant for large photos copies, in places of the latent."""
_PATCH_BLOCKS = 2
_MASKED_SHARE = 0.6  # of a patch, above which it is a hole
_COPY_TEMPERATURE = 1e-5
"""At which the softmax over cosines is the choice of the best: its memory is linear."""
_STEPS = 4


class Mapping(nn.Module):
    """`[B, C, h, w]` latents and `[B, 1, h, w]` holes in [0, 1] to latents of the same shape."""

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        wide = config.mapping_channels
        widths = [min(config.vae_channels << step, wide) for step in range(_STEPS)] + [wide]
        self.entry = Entry()
        self.widen = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, padding=1) for i in range(_STEPS)
        )
        self.nonlocal_block: PartialNonlocal | None = None
        self.patches: nn.ModuleList | None = None
        trunk = config.trunk_blocks
        if config.mapping == "scratch":
            self.nonlocal_block = PartialNonlocal(
                wide, config.attention_channels, config.context_blocks
            )
        elif config.mapping == "patch":
            self.patches = nn.ModuleList(PatchStage(wide, side) for side in PATCH_SIDES)
            trunk = _PATCH_BLOCKS
        self.trunk = residual_blocks(wide, trunk)
        self.narrow = nn.ModuleList(
            nn.Conv2d(widths[i + 1], widths[i], 3, padding=1) for i in reversed(range(_STEPS))
        )
        initialise(self)

    def forward(self, latent: Tensor, hole: Tensor) -> Tensor:
        x = self.entry(latent)
        for layer in self.widen:
            x = F.relu(instance_norm(layer(x)))
        hole = hole.to(x.dtype)
        if self.nonlocal_block is not None:
            x = self.nonlocal_block(x, hole)
        for stage in self.patches or ():
            x = stage(x, hole)
        x = self.trunk(x)
        for layer in self.narrow[:-1]:
            x = F.relu(instance_norm(layer(x)))
        mapped: Tensor = self.narrow[-1](x)
        return mapped


class PartialNonlocal(nn.Module):
    """Holes filled with what the rest of the photo has, which stays as it is (Wan et al., eq. 7).

    Every place attends to those outside of holes by the softmax of unscaled products.

    Args:
        channels: of the features.
        width: of queries, keys and values.
        blocks: residual blocks behind the attention.
    """

    def __init__(self, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Conv2d(channels, width, 1) for _ in range(3))
        self.output = nn.Conv2d(width, channels, 1)
        self.blocks = residual_blocks(channels, blocks)

    def forward(self, features: Tensor, hole: Tensor) -> Tensor:
        """Compute `[B, C, h, w]` of features and `[B, 1, h, w]` holes, 1 for a hole."""
        query, key, value = (_rows(f(features)) for f in (self.query, self.key, self.value))
        known = hole.flatten(1) < 0.5
        attended, _ = correlation_warp(query, key, value, temperature=1.0, key_mask=known)
        attended = attended.transpose(1, 2).unflatten(2, features.shape[-2:])
        filled: Tensor = self.blocks(self.output(attended))
        return features + hole * (filled - features)


class PatchStage(nn.Module):
    """Two residual blocks, then a copy of patches into holes, for one size of patches."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.blocks = residual_blocks(channels, _PATCH_BLOCKS)
        self.attention = PatchAttention(channels, side)

    def forward(self, features: Tensor, hole: Tensor) -> Tensor:
        copied: Tensor = self.attention(self.blocks(features), hole)
        return copied


class PatchAttention(nn.Module):
    """Patches in holes are replaced by the most similar ones outside (cosine).

    Args:
        channels: of the features.
        side: of the patches; divides both sides of the features.
    """

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.blocks = residual_blocks(channels, 1)
        self.combine = nn.Conv2d(2 * channels + 1, channels, 3, padding=1)

    def forward(self, features: Tensor, hole: Tensor) -> Tensor:
        """Compute `[B, C, h, w]` of features and `[B, 1, h, w]` holes, 1 for a hole."""
        x = self.blocks(features)
        patches = F.pixel_unshuffle(x, self.side)
        masked = F.avg_pool2d(hole, self.side) > _MASKED_SHARE
        rows = _rows(patches)
        unit = F.normalize(rows, dim=2)
        copied, _ = correlation_warp(
            unit, unit, rows, temperature=_COPY_TEMPERATURE, key_mask=~masked.flatten(1)
        )
        copied = copied.transpose(1, 2).unflatten(2, patches.shape[-2:])
        composed = F.pixel_shuffle(torch.where(masked, copied, patches), self.side)
        combined: Tensor = self.combine(torch.cat((features, composed, hole), dim=1))
        return combined


def _rows(features: Tensor) -> Tensor:
    """`[B, C, h, w]` as `[B, h w, C]`."""
    return features.flatten(2).transpose(1, 2)
