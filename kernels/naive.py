"""Naive twins: what every operation of this package computes, written to be read.

They work in float32 (float64 for float64 inputs), round once at the end, and write the whole
N x M map. Tests and benchmarks use them as the reference; nothing else should.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _upcast(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def correlation_warp(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(Q Kᵀ / τ) V, and the highest correlation of each query.

    Pik-Fix (Xu et al., WACV 2023), sec. 3.2; the confidence follows the released code.

    Args:
        query: [B, N, C], centred and of unit L2 norm over C.
        key: [B, M, C], likewise.
        values: [B, M, D].
        temperature: τ > 0.
        key_mask: [B, M] bool, True = the key takes part. A row without any key gives zeros.

    Returns:
        warped [B, N, D] in the dtype of values; confidence [B, N] in float32 (or float64).

    """
    correlation = _upcast(query) @ _upcast(key).transpose(1, 2)
    if key_mask is not None:
        correlation = correlation.masked_fill(~key_mask[:, None, :], -torch.inf)
    confidence = correlation.max(dim=-1).values
    if key_mask is not None:
        confidence = confidence.masked_fill(~key_mask.any(dim=1, keepdim=True), 0)
    weights = torch.exp((correlation - confidence.detach()[..., None]) / temperature)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1e-30)
    return (weights @ _upcast(values)).to(values.dtype), confidence


def center_normalize(features: Tensor, eps: float = 1e-5) -> Tensor:
    """Subtract the mean over positions, then divide by the L2 norm over channels.

    Args:
        features: [B, N, C].
        eps: length in quadrature with the norm; a zero-norm position gives zeros.

    Returns:
        [B, N, C] in the dtype of features.

    """
    x = _upcast(features)
    x = x - x.mean(dim=1, keepdim=True)
    return (x / torch.sqrt((x * x).sum(dim=-1, keepdim=True) + eps * eps)).to(features.dtype)


def sphist(ab: Tensor, centres: Tensor, sigma: float, pool: int = 1) -> Tensor:
    """Normalised Gaussian histogram of every pixel's a and b, then average pooling.

    Pik-Fix (Xu et al., WACV 2023), sec. 3.3: h_k ∝ exp(-(x - u_k)² / 2σ²), Σ_k h_k = 1.

    Args:
        ab: [B, 2, H, W], a/110 and b/110.
        centres: [K] (shared by a and b) or [2, K].
        sigma: σ > 0, in the unit of ab.
        pool: side of the pooling window; divides H and W.

    Returns:
        [B, 2K, H/pool, W/pool] in the dtype of ab: K bins of a, then K of b.

    """
    batch, _, height, width = ab.shape
    u = _upcast(centres).expand(2, centres.shape[-1])
    distance = _upcast(ab)[:, :, None] - u[None, :, :, None, None]
    gauss = torch.exp(
        (distance.square().amin(dim=2, keepdim=True) - distance.square()) / (2 * sigma * sigma)
    )
    histogram = (gauss / gauss.sum(dim=2, keepdim=True)).reshape(batch, -1, height, width)
    return torch.nn.functional.avg_pool2d(histogram, pool).to(ab.dtype)
