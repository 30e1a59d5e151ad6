"""Similarity sub-net: which place of the reference each place of the photo resembles.

Pik-Fix, sec. 3.2 (multi-scale correlation) and sec. 3.3 (spatial-preserving colour histogram).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.kernels import center_normalize, correlation_warp, sphist
from pikfix.layers.blocks import InstanceNorm
from pikfix.layers.resnet import ResNetFeatures
from pikfix.systems.pikfix.networks.config import PYRAMID_LEVELS, PikFixConfig

_SINGLE_SCALE = 1
"""The scale of the single correlation of the ablation: 1/8, as in the published code."""
_SHARE_SCALE = 2
"""Where the references' shares are measured: at 1/16 that costs next to nothing."""


class Adapter(nn.Module):
    """Two convolutions with instance normalisation that bring a stage to the common width.

    The border is repeated, not reflected as published: a single position has nothing to reflect.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, padding_mode="replicate"),
            InstanceNorm(),
            nn.PReLU(channels),
            nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate"),
            InstanceNorm(),
            nn.PReLU(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class SPHist(nn.Module):
    """Spatial-preserving colour histogram: K Gaussian bins per ab channel at every position.

    h_k = exp(-(x - u_k)^2 / 2 sigma^2) / sum over k (Pik-Fix, sec. 3.3), with learnable centres u.
    Pixels are binned first and averaged afterwards: no colour is mixed before it is counted.
    """

    def __init__(self, bins: int, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        centres = -1 + 2 * torch.arange(bins, dtype=torch.float32) / bins
        self.centres = nn.Parameter(centres.repeat(2, 1))

    def forward(self, ab: Tensor, pool: int) -> Tensor:
        """`[B, 2, H, W]` in ab/110 to `[B, 2K, H/pool, W/pool]`; each K of a position sum to 1."""
        return sphist(ab, self.centres, self.sigma, pool)


Matches = tuple[Tensor, Tensor, tuple[int, int]]
"""Centred and normalised queries and keys of one scale, and the queries' height and width."""


def to_positions(features: Tensor) -> Tensor:
    """`[B, C, h, w]` to `[B, h*w, C]`."""
    return features.flatten(2).transpose(1, 2)


class Similarity(nn.Module):
    """Warps the reference's colour histograms to the places of the photo they match.

    At each of four scales, features M_i = W * concat_j(resize_i(A_ij f_j)) of photo and reference,
    f_j being the adapted stages of the backbone, A a learnable 4 x 4 matrix and W a shared filter,
    are centred, normalised and correlated; a softmax over all positions of all references weighs
    the reference's histograms. `temperature` may be changed between calls.
    """

    def __init__(self, config: PikFixConfig) -> None:
        super().__init__()
        self.mode = config.similarity
        self.temperature = config.temperature
        self.histogram = SPHist(config.bins, config.sigma) if config.histogram_fusion else None
        self.backbone_frozen = config.backbone_frozen
        if self.mode == "none":
            return
        self.backbone = ResNetFeatures(config.backbone_blocks, config.backbone_width)
        self.backbone.requires_grad_(not config.backbone_frozen)
        channels = config.adapter_channels
        self.adapters = nn.ModuleList(Adapter(stage, channels) for stage in self.backbone.channels)
        self.coefficients = nn.Parameter(torch.ones(PYRAMID_LEVELS, PYRAMID_LEVELS))
        self.filter = nn.Conv2d(PYRAMID_LEVELS * channels, config.feature_channels, 3, padding=1)

    def train(self, mode: bool = True) -> Similarity:
        """As in `nn.Module`, but a frozen backbone keeps its batch statistics."""
        super().train(mode)
        if self.backbone_frozen and self.mode != "none":
            self.backbone.eval()
        return self

    def forward(
        self, working_l: Tensor, reference_lab: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Match a batch of photos with their references.

        Args:
            working_l: `[B, 1, h, w]`, L/50 - 1, sides multiples of 32.
            reference_lab: `[B, R, 3, H_r, W_r]`, L/50 - 1, a/110, b/110, sides multiples of 32.

        Returns:
            warped_1..4 `[B, 2K, h/2^(i+1), w/2^(i+1)]`, each K of a position summing to 1 (or, in
            the ab ablations, `[B, 2, ...]`), and confidence_1..4 `[B, 1, ...]`, the highest
            correlation of each position, in [-1, 1].
        """
        if self.mode == "none":
            return self._unaligned(working_l, reference_lab)
        return self._warp(reference_lab, self._matches(working_l, reference_lab))

    def with_share(
        self, working_l: Tensor, reference_lab: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """The same, and how much of the photo's colour comes from each reference.

        Returns:
            warped_1..4, confidence_1..4 and share `[B, R]`, the softmax's mass on each reference,
            averaged over the photo's positions; in [0, 1], each row sums to 1.
        """
        batch, references = reference_lab.shape[:2]
        if self.mode == "none":
            share = reference_lab.new_ones(batch, references) / references
            return (*self._unaligned(working_l, reference_lab), share)
        matches = self._matches(working_l, reference_lab)
        warped, confidence = self._warp(reference_lab, matches)
        query, key, _ = matches[_SHARE_SCALE if self.mode == "multi" else 0]
        index = torch.arange(references, device=key.device)
        # What each position carries is the reference it belongs to.
        owner = (index[:, None] == index).to(key.dtype)[:, None, :]
        owner = owner.expand(-1, key.shape[1] // references, -1).reshape(1, key.shape[1], -1)
        mass, _ = correlation_warp(query, key, owner.expand(batch, -1, -1), self.temperature)
        return warped, confidence, mass.float().mean(dim=1)

    def _matches(self, working_l: Tensor, reference_lab: Tensor) -> list[Matches]:
        """What is to be correlated, by scale."""
        batch = working_l.shape[0]
        photo_features = self._features(working_l)
        reference_features = self._features(reference_lab[:, :, :1].flatten(0, 1))
        matches = []
        for scale in range(PYRAMID_LEVELS) if self.mode == "multi" else (_SINGLE_SCALE,):
            query = self._match_features(photo_features, scale)
            key = self._match_features(reference_features, scale)
            # The positions of all references are the keys of one softmax.
            keys = to_positions(key).reshape(batch, -1, query.shape[1])
            size = (query.shape[2], query.shape[3])
            matches.append((center_normalize(to_positions(query)), center_normalize(keys), size))
        return matches

    def _warp(
        self, reference_lab: Tensor, matches: list[Matches]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        colours = self._colour_pyramid(reference_lab[:, :, 1:].flatten(0, 1))
        if self.mode == "single":
            colours = [colours[_SINGLE_SCALE]]
        warped, confidence = [], []
        for (query, key, size), carried in zip(matches, colours, strict=True):
            values = to_positions(carried).reshape(*key.shape[:2], carried.shape[1]).to(key.dtype)
            out, best = correlation_warp(query, key, values, self.temperature)
            warped.append(out.transpose(1, 2).unflatten(2, size))
            confidence.append(best.unsqueeze(1).unflatten(2, size))
        if self.mode == "single":
            scales = range(PYRAMID_LEVELS)
            warped = [change_scale(warped[0], _SINGLE_SCALE, i) for i in scales]
            confidence = [change_scale(confidence[0], _SINGLE_SCALE, i) for i in scales]
        return tuple(warped), tuple(confidence)

    def _features(self, luminance: Tensor) -> list[Tensor]:
        stages = self.backbone(luminance)
        return [adapter(stage) for adapter, stage in zip(self.adapters, stages, strict=True)]

    def _match_features(self, features: list[Tensor], scale: int) -> Tensor:
        parts = [
            change_scale(self.coefficients[scale, stage] * feature, stage, scale)
            for stage, feature in enumerate(features)
        ]
        matched: Tensor = self.filter(torch.cat(parts, dim=1))
        return matched

    def _colour_pyramid(self, reference_ab: Tensor) -> list[Tensor]:
        """What the warp carries, at 1/4 to 1/32; each scale is the mean of the finer one."""
        if self.histogram is None:
            colours = [F.avg_pool2d(reference_ab, 4)]
        else:
            colours = [self.histogram(reference_ab, 4)]
        while len(colours) < PYRAMID_LEVELS:
            colours.append(F.avg_pool2d(colours[-1], 2))
        return colours

    def _unaligned(
        self, working_l: Tensor, reference_lab: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The ablation without similarity: the reference's colours stay where they are."""
        batch, _, height, width = working_l.shape
        sizes = [(height // (4 << i), width // (4 << i)) for i in range(PYRAMID_LEVELS)]
        reference_ab = reference_lab[:, :, 1:].flatten(0, 1)
        warped = []
        for colours, size in zip(self._colour_pyramid(reference_ab), sizes, strict=True):
            mean = colours.unflatten(0, (batch, -1)).mean(dim=1)
            warped.append(F.interpolate(mean, size=size, mode="bilinear", align_corners=False))
        confidence = [mean.new_zeros(batch, 1, *size) for size in sizes]
        return tuple(warped), tuple(confidence)


def change_scale(x: Tensor, source: int, target: int) -> Tensor:
    """Bring a map from pyramid scale `source` to `target`, each step being a factor of two.

    Averages on the way down, interpolates bilinearly on the way up.
    """
    if source < target:
        return F.avg_pool2d(x, 1 << target - source)
    if source > target:
        factor = 1 << source - target
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return x
