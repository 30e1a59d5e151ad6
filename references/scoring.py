"""Texture and structure similarity of two pictures' deep features.

Pik-Fix (Xu et al., WACV 2023), sec. 3.5, with the terms of DISTS (Ding et al., TPAMI 2020): for
level i and channel j of the features of luminances x and y

    T_ij = (2 m_x m_y + c) / (m_x^2 + m_y^2 + c)        texture, m the mean over positions
    S_ij = (2 s_xy + c) / (s_x^2 + s_y^2 + c)           structure, s^2 variance, s_xy covariance
    score = sum_ij alpha_ij T_ij + beta_ij S_ij,        sum (alpha + beta) = 1

Every level weighs the same, whatever its number of channels. Structure is taken on maps averaged
to at most 4 x 4 positions, which rank candidates as 8 x 8 do (Spearman 0.96): two different
photos are never aligned more finely. A candidate then takes a quarter of its thumbnail's room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pikfix.references.errors import LibraryError

GRID = 4
"""Positions per side at which structure is compared."""
_STABILITY = 1e-6


@dataclass(frozen=True)
class Weights:
    """Shares of texture (alpha) and structure (beta) per level; the total is 1."""

    alpha: tuple[float, ...]
    beta: tuple[float, ...]

    def __post_init__(self) -> None:
        total = sum(self.alpha) + sum(self.beta)
        if len(self.alpha) != len(self.beta) or min(*self.alpha, *self.beta) < 0:
            raise LibraryError("the weights of texture and structure: one of each per level, >= 0")
        if abs(total - 1) > 1e-6:
            raise LibraryError(f"the weights of texture and structure sum to {total:g}, not to 1")

    @classmethod
    def even(cls, levels: int, structure: float = 0.5) -> Weights:
        """Equal shares for every level, `structure` of the whole for the structure terms."""
        return cls((((1 - structure) / levels),) * levels, ((structure / levels),) * levels)


@dataclass(frozen=True)
class Layout:
    """How the features of one picture lie in a row: per level, channels and positions per side."""

    levels: tuple[tuple[int, int], ...]

    @property
    def channels(self) -> int:
        """Length of a row of means."""
        return sum(channels for channels, _ in self.levels)

    @property
    def values(self) -> int:
        """Length of a row of maps."""
        return sum(channels * side * side for channels, side in self.levels)


def pool_features(features: Sequence[Tensor]) -> tuple[Layout, Tensor, Tensor]:
    """Reduce feature maps to what is stored and compared.

    Args:
        features: `[B, C_i, h_i, w_i]` per level.

    Returns:
        The layout; means `[B, sum C_i]` float32; maps `[B, sum C_i g_i^2]` float32, g_i at most 4.
    """
    means = torch.cat([level.float().mean(dim=(2, 3)) for level in features], dim=1)
    levels, pooled = [], []
    for level in features:
        side = min(GRID, level.shape[-1])
        pooled.append(F.adaptive_avg_pool2d(level.float(), side).flatten(1))
        levels.append((level.shape[1], side))
    return Layout(tuple(levels)), means, torch.cat(pooled, dim=1)


def texture(photo: Tensor, candidates: Tensor) -> Tensor:
    """T of means `[C]` with each of `[N, C]`: `[N, C]`, in (0, 1] for features that are >= 0."""
    both = photo.square() + candidates.square()
    return (2 * photo * candidates + _STABILITY) / (both + _STABILITY)


def structure(photo: Tensor, candidates: Tensor) -> Tensor:
    """S of maps `[C, P]` with each of `[N, C, P]` over P positions: `[N, C]`, in [-1, 1]."""
    photo = photo - photo.mean(dim=-1, keepdim=True)
    candidates = candidates - candidates.mean(dim=-1, keepdim=True)
    positions = photo.shape[-1]
    covariance = torch.einsum("cp,ncp->nc", photo, candidates) / positions
    variances = photo.square().mean(dim=-1) + candidates.square().mean(dim=-1)
    return (2 * covariance + _STABILITY) / (variances + _STABILITY)


def structure_vectors(layout: Layout, maps: Tensor) -> Tensor:
    """Centred maps at unit length, `[N, V]` of `[N, V]`: inner products are mean correlations."""
    parts, start = [], 0
    for channels, side in layout.levels:
        stop = start + channels * side * side
        level = maps[:, start:stop].float().view(len(maps), channels, -1)
        level = level - level.mean(dim=-1, keepdim=True)
        length = level.square().sum(dim=-1, keepdim=True).sqrt() + _STABILITY
        share = (1.0 / (channels * len(layout.levels))) ** 0.5
        parts.append((level / length * share).flatten(1))
        start = stop
    return torch.cat(parts, dim=1)


@torch.inference_mode()
def score(
    layout: Layout,
    weights: Weights,
    photo: tuple[Tensor, Tensor],
    candidates: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Weighted texture and structure of a photo with candidates; their sum is the score.

    Args:
        layout: of both.
        weights: alpha and beta.
        photo: means `[C]` and maps `[V]`.
        candidates: means `[N, C]` and maps `[N, V]`, any floating type.

    Returns:
        sum alpha T `[N]` and sum beta S `[N]`.
    """
    count = len(candidates[0])
    textures, structures = torch.zeros(count), torch.zeros(count)
    channel = value = 0
    for (channels, side), alpha, beta in zip(
        layout.levels, weights.alpha, weights.beta, strict=True
    ):
        own = slice(channel, channel + channels)
        textures += alpha * texture(photo[0][own], candidates[0][:, own].float()).mean(dim=1)
        maps = slice(value, value + channels * side * side)
        structures += beta * structure(
            photo[1][maps].view(channels, -1),
            candidates[1][:, maps].float().view(count, channels, -1),
        ).mean(dim=1)
        channel, value = own.stop, maps.stop
    return textures, structures
