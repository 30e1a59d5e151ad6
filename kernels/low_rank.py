"""The low-rank form of the histogram warp: carry a few coefficients instead of all bins.

With a wide kernel the histogram of a colour is a smooth function of it, and every histogram
lies near a subspace of few dimensions. The warp is linear in its values, so it may carry the
coordinates in that subspace and expand the result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pikfix.kernels import checks
from pikfix.kernels.correlation_warp import correlation_warp

# Colours per σ at which the histogram is sampled, and the range of a/110 and b/110.
_SAMPLES_PER_SIGMA = 8
_RANGE = 1.0
# Ranks are rounded up to a multiple of this: matrix units work on such widths.
_RANK_STEP = 8
# A basis that keeps more than this share of the bins does not pay for its expansion.
_WORTHWHILE = 0.75


def _histograms(centres: Tensor, sigma: float) -> Tensor:
    """Histograms of evenly spaced colours: [S, K] float64."""
    count = int(2 * _RANGE / sigma * _SAMPLES_PER_SIGMA) + 2
    colours = torch.linspace(-_RANGE, _RANGE, count, dtype=torch.float64, device=centres.device)
    distance = (colours[:, None] - centres) / sigma
    return torch.softmax(-0.5 * distance.square(), dim=1)


def histogram_basis(centres: Tensor, sigma: float, tolerance: float = 1e-3) -> Tensor | None:
    """Orthonormal basis of the histograms of all colours, as small as the tolerance allows.

    The rank is the smallest multiple of 8 for which no colour in [-1, 1] has a histogram that
    loses more than ``tolerance`` of its L2 norm, in a or in b.

    Args:
        centres: [K], shared by a and b, or [2, K]; as for :func:`pikfix.kernels.sphist`.
        sigma: σ > 0 of the histogram.
        tolerance: relative error in (0, 1).

    Returns:
        [2, K, r] float32, for a and for b; None where r would exceed three quarters of K and
        the full form is the better one (a narrow σ).

    Raises:
        ValueError: a wrong shape or dtype, or a sigma or tolerance out of range.
    """
    name = "histogram_basis"
    if not (checks.is_tensor(centres, 1) or checks.is_tensor(centres, 2)):
        checks.fail(name, "centres [K] or [2, K]", centres=centres)
    if centres.dtype not in checks.FLOAT_DTYPES or (centres.dim() == 2 and centres.shape[0] != 2):
        checks.fail(name, "centres [K] or [2, K] of floats", centres=centres)
    if checks.is_empty(centres):
        checks.fail(name, "at least one centre", centres=centres)
    if not checks.is_positive(sigma):
        checks.fail(name, "sigma > 0", sigma=sigma)
    if not checks.is_positive(tolerance) or tolerance >= 1:
        checks.fail(name, "tolerance in (0, 1)", tolerance=tolerance)
    with torch.no_grad():
        both = centres.detach().double().expand(2, centres.shape[-1])
        bins = both.shape[1]
        bases, ranks = [], []
        for channel in both:
            histograms = _histograms(channel, sigma)
            # Equal weight for every colour: flat and peaked histograms have unequal norms.
            unit = histograms / torch.linalg.vector_norm(histograms, dim=1, keepdim=True)
            directions = torch.linalg.svd(unit, full_matrices=False).Vh
            kept = (unit @ directions.T).square().cumsum(dim=1)
            worst = (1 - kept).clamp_min_(0).sqrt_().amax(dim=0)
            ranks.append(int((worst > tolerance).sum()) + 1)
            bases.append(directions)
        rank = -(-max(ranks) // _RANK_STEP) * _RANK_STEP
        if rank > _WORTHWHILE * bins or any(rank > basis.shape[0] for basis in bases):
            return None
        return torch.stack([basis[:rank].T for basis in bases]).float().contiguous()


def compress(histogram: Tensor, basis: Tensor) -> Tensor:
    """Coordinates of histograms in the basis: [B, M, 2K] -> [B, M, 2r]."""
    split = histogram.view(*histogram.shape[:-1], 2, basis.shape[1])
    coordinates = torch.einsum("bmck,ckr->bmcr", split, basis.to(histogram.dtype))
    return coordinates.flatten(-2)


def expand(coordinates: Tensor, basis: Tensor) -> Tensor:
    """Histograms of coordinates in the basis: [B, N, 2r] -> [B, N, 2K]."""
    split = coordinates.view(*coordinates.shape[:-1], 2, basis.shape[2])
    return torch.einsum("bncr,ckr->bnck", split, basis.to(coordinates.dtype)).flatten(-2)


def histogram_warp(
    query: Tensor,
    key: Tensor,
    histogram: Tensor,
    basis: Tensor | None,
    temperature: float,
    *,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Warp histograms through their low-rank form.

    The same as :func:`pikfix.kernels.correlation_warp` within the tolerance of the basis, for
    2r instead of 2K values per position; bins may dip below zero by the tolerance.

    Args:
        query: [B, N, C], as for correlation_warp.
        key: [B, M, C], as for correlation_warp.
        histogram: [B, M, 2K], K bins of a and then K of b, of the centres of the basis.
        basis: [2, K, r] of :func:`histogram_basis`; None warps the bins themselves.
        temperature: τ > 0.
        key_mask: [B, M] bool, as for correlation_warp.

    Returns:
        warped [B, N, 2K] and confidence [B, N].

    Raises:
        ValueError: as correlation_warp, or a basis that does not fit the histogram.
    """
    if basis is None:
        return correlation_warp(query, key, histogram, temperature, key_mask)
    name = "histogram_warp"
    if not checks.is_tensor(basis, 3) or basis.shape[0] != 2:
        checks.fail(name, "basis [2, K, r]", basis=basis)
    if not checks.is_tensor(histogram, 3) or checks.differ(histogram.shape[2], 2 * basis.shape[1]):
        checks.fail(
            name, "histogram [B, M, 2K] as basis [2, K, r]", histogram=histogram, basis=basis
        )
    warped, confidence = correlation_warp(
        query, key, compress(histogram, basis), temperature, key_mask
    )
    return expand(warped, basis), confidence
