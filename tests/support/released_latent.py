"""Wan et al.'s networks for whole photos with the release's names, from its list of layers.

Nothing of the product is used: what the product computes is compared with these.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def normed(*layers: nn.Module) -> list[nn.Module]:
    return [*layers, nn.InstanceNorm2d(layers[-1].out_channels), nn.ReLU()]


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        convolutions = [[nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3)] for _ in range(2)]
        self.conv_block = nn.Sequential(
            *normed(*convolutions[0]), *convolutions[1], nn.InstanceNorm2d(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def residuals(channels: int, count: int) -> list[nn.Module]:
    return [Residual(channels) for _ in range(count)]


class ReleasedVae(nn.Module):
    """For sRGB in [-1, 1]."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        c = channels
        self.encoder = nn.Sequential(
            *normed(nn.ReflectionPad2d(3), nn.Conv2d(3, c, 7)),
            *normed(nn.Conv2d(c, c, 4, 2, 1)),
            *normed(nn.Conv2d(c, c, 4, 2, 1)),
            *residuals(c, 4),
        )
        self.decoder = nn.Sequential(
            *residuals(c, 4),
            *normed(nn.ConvTranspose2d(c, c, 4, 2, 1)),
            *normed(nn.ConvTranspose2d(c, c, 4, 2, 1)),
            nn.ReflectionPad2d(3),
            nn.Conv2d(c, 3, 7),
            nn.Tanh(),
        )


def widening(narrow: int, wide: int) -> list[nn.Module]:
    widths = [min(narrow << i, wide) for i in range(5)]
    layers = []
    for i in range(4):
        layers += normed(nn.Conv2d(widths[i], widths[i + 1], 3, padding=1))
    return layers


def narrowing(narrow: int, wide: int) -> list[nn.Module]:
    widths = [min(narrow << i, wide) for i in (4, 3, 2, 1, 0)]
    layers = []
    for i in range(3):
        layers += normed(nn.Conv2d(widths[i], widths[i + 1], 3, padding=1))
    return [*layers, nn.Conv2d(widths[3], widths[4], 3, padding=1)]


class ReleasedQuality(nn.Module):
    def __init__(self, narrow: int = 64, wide: int = 512) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *widening(narrow, wide), *residuals(wide, 6), *narrowing(narrow, wide)
        )

    def forward(self, latent: Tensor, hole: Tensor) -> Tensor:
        return self.model(latent)


class NonLocal(nn.Module):
    """Dense: softmax over all places, those in holes taken out, what is left normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("g", "W", "theta", "phi"):
            self.add_module(name, nn.Conv2d(channels, channels, 1))
        self.res_block = nn.Sequential(*residuals(channels, 3))

    def forward(self, x: Tensor, hole: Tensor) -> Tensor:
        query, key, value = (getattr(self, n)(x).flatten(2) for n in ("theta", "phi", "g"))
        weights = (query.transpose(1, 2) @ key).softmax(dim=2) * (1 - hole.flatten(1))[:, None]
        weights = F.normalize(weights, p=1, dim=2)
        seen = (weights @ value.transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        return (1 - hole) * x + hole * self.res_block(self.W(seen))


class ReleasedScratch(nn.Module):
    def __init__(self, narrow: int = 64, wide: int = 512) -> None:
        super().__init__()
        self.before_NL = nn.Sequential(*widening(narrow, wide))
        self.NL = NonLocal(wide)
        self.after_NL = nn.Sequential(*residuals(wide, 6), *narrowing(narrow, wide))

    def forward(self, latent: Tensor, hole: Tensor) -> Tensor:
        return self.after_NL(self.NL(self.before_NL(latent), hole))


class PatchAttention(nn.Module):
    """Every patch that is mostly hole becomes the most alike of the others, by cosine."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.F_Combine = nn.Conv2d(2 * channels + 1, channels, 3, padding=1)
        self.res_block = nn.Sequential(*residuals(channels, 1))

    def forward(self, z: Tensor, hole: Tensor) -> Tensor:
        x, side = self.res_block(z), self.side
        patches = F.unfold(x, side, stride=side)
        masked = F.unfold(hole, side, stride=side).mean(dim=1) > 0.6
        unit = F.normalize(patches, dim=1)
        alike = (unit.transpose(1, 2) @ unit).masked_fill(masked[:, None], -1e9)
        best = alike.argmax(dim=2)
        copied = torch.gather(patches, 2, best[:, None].expand_as(patches))
        composed = torch.where(masked[:, None], copied, patches)
        folded = F.fold(composed, x.shape[2:], side, stride=side)
        return self.F_Combine(torch.cat((z, folded, hole), dim=1))


class ReleasedPatch(nn.Module):
    def __init__(self, narrow: int = 64, wide: int = 512) -> None:
        super().__init__()
        self.before_NL = nn.Sequential(*widening(narrow, wide), *residuals(wide, 2))
        self.NL_scale_1 = PatchAttention(wide, 8)
        self.res_block_1 = nn.Sequential(*residuals(wide, 2))
        self.NL_scale_2 = PatchAttention(wide, 4)
        self.res_block_2 = nn.Sequential(*residuals(wide, 2))
        self.NL_scale_3 = PatchAttention(wide, 2)
        self.after_NL = nn.Sequential(*residuals(wide, 2), *narrowing(narrow, wide))

    def forward(self, latent: Tensor, hole: Tensor) -> Tensor:
        x = self.NL_scale_1(self.before_NL(latent), hole)
        x = self.NL_scale_2(self.res_block_1(x), hole)
        x = self.NL_scale_3(self.res_block_2(x), hole)
        return self.after_NL(x)
