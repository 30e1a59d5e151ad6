"""GPU kernels of SPHist: bins and pooling in one pass, forward and backward."""

# Launches are by keyword; the compiler knows no keyword-only parameters.
# ruff: noqa: PLR0917
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pikfix.kernels import tiles

# Elements of one [bins, pixels] tile: 32 registers of each of 128 threads per operand.
_TILE_ELEMENTS = 4096


@triton.jit
def _histogram(b_colour, b_centre, m_bin, inverse):
    """Distances in units of σ and normalised bins: both [BLOCK_K, BLOCK_P] float32."""
    b_distance = (b_colour[None, :] - b_centre[:, None]) * inverse
    b_power = tl.where(m_bin[:, None], -0.5 * b_distance * b_distance, float("-inf"))
    # The nearest centre has the power 0: a colour far outside all centres keeps a histogram.
    b_bin = tl.exp(b_power - tl.max(b_power, 0)[None, :])
    return b_distance, b_bin / tl.sum(b_bin, 0)[None, :]


@triton.jit(do_not_specialize=["W", "pooled_width", "pooled"])
def forward_kernel(
    p_ab,  # [B, 2, H, W]
    p_centres,  # [2, K]
    p_out,  # [B, 2K, H/POOL, W/POOL]
    W,
    pooled_width,
    pooled,  # H/POOL · W/POOL
    inverse,  # 1/σ
    K: tl.constexpr,
    POOL: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """h_k = exp(-(x - u_k)² / 2σ²) / Σ_k, averaged over POOL x POOL pixels.

    Pik-Fix (Xu et al., WACV 2023), sec. 3.3.
    """
    i_image = tl.program_id(1).to(tl.int64)  # batch item and channel
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_k = tl.arange(0, BLOCK_K)
    m_p, m_k = o_p < pooled, o_k < K
    b_centre = tl.load(p_centres + (i_image % 2) * K + o_k, mask=m_k, other=0.0).to(tl.float32)
    o_corner = (o_p // pooled_width) * POOL * W + (o_p % pooled_width) * POOL
    p_image = p_ab + i_image * pooled * POOL * POOL
    b_sum = tl.zeros([BLOCK_K, BLOCK_P], dtype=tl.float32)
    for step in range(POOL * POOL):
        o_pixel = o_corner + (step // POOL) * W + step % POOL
        b_colour = tl.load(p_image + o_pixel, mask=m_p, other=0.0).to(tl.float32)
        _, b_bin = _histogram(b_colour, b_centre, m_k, inverse)
        b_sum += b_bin
    tl.store(
        p_out + (i_image * K + o_k[:, None]) * pooled + o_p[None, :],
        (b_sum * (1.0 / (POOL * POOL))).to(p_out.dtype.element_ty),
        mask=m_k[:, None] & m_p[None, :],
    )


@triton.jit(do_not_specialize=["W", "pooled_width", "pooled"])
def backward_kernel(
    p_grad,  # [B, 2K, H/POOL, W/POOL]
    p_ab,  # [B, 2, H, W]
    p_centres,  # [2, K]
    p_grad_ab,  # [B, 2, H, W]
    p_grad_centres,  # [2B, programs, K] float32, one part per program
    W,
    pooled_width,
    pooled,
    inverse,
    K: tl.constexpr,
    POOL: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dL/dx = -Σ_k h_k (g_k - Σ h g) (x - u_k) / σ², and the opposite terms for u_k."""
    i_image = tl.program_id(1).to(tl.int64)
    o_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    o_k = tl.arange(0, BLOCK_K)
    m_p, m_k = o_p < pooled, o_k < K
    b_centre = tl.load(p_centres + (i_image % 2) * K + o_k, mask=m_k, other=0.0).to(tl.float32)
    b_grad = tl.load(
        p_grad + (i_image * K + o_k[:, None]) * pooled + o_p[None, :],
        mask=m_k[:, None] & m_p[None, :],
        other=0.0,
    ).to(tl.float32) * (1.0 / (POOL * POOL))
    o_corner = (o_p // pooled_width) * POOL * W + (o_p % pooled_width) * POOL
    o_image = i_image * pooled * POOL * POOL
    b_grad_centre = tl.zeros([BLOCK_K], dtype=tl.float32)
    for step in range(POOL * POOL):
        o_pixel = o_image + o_corner + (step // POOL) * W + step % POOL
        b_colour = tl.load(p_ab + o_pixel, mask=m_p, other=0.0).to(tl.float32)
        b_distance, b_bin = _histogram(b_colour, b_centre, m_k, inverse)
        b_mean = tl.sum(b_bin * b_grad, 0)
        b_flow = b_bin * (b_grad - b_mean[None, :]) * b_distance * inverse
        b_flow = tl.where(m_p[None, :], b_flow, 0.0)
        b_pixel = -tl.sum(b_flow, 0)
        tl.store(p_grad_ab + o_pixel, b_pixel.to(p_grad_ab.dtype.element_ty), mask=m_p)
        b_grad_centre += tl.sum(b_flow, 1)
    o_part = i_image * tl.num_programs(0) + tl.program_id(0)
    tl.store(p_grad_centres + o_part * K + o_k, b_grad_centre, mask=m_k)


def block_pixels(bins: int) -> int:
    """Pooled pixels per program for that many bins."""
    return max(1, min(128, _TILE_ELEMENTS // tiles.padded(bins)))


def forward(
    ab: Tensor,
    centres: Tensor,
    sigma: float,
    pool: int,
    *,
    launcher: tiles.Launcher = tiles.direct,
) -> Tensor:
    """Launch the forward pass: [B, 2, H, W] and [2, K] -> [B, 2K, H/pool, W/pool]."""
    ab, centres = ab.contiguous(), centres.contiguous()
    batch, _, height, width = ab.shape
    bins = centres.shape[1]
    rows, columns = height // pool, width // pool
    out = ab.new_empty(batch, 2 * bins, rows, columns)
    block_p = block_pixels(bins)
    with tiles.on_device(ab.device):
        launcher(forward_kernel)[(tiles.cdiv(rows * columns, block_p), 2 * batch)](
            p_ab=ab,
            p_centres=centres,
            p_out=out,
            W=width,
            pooled_width=columns,
            pooled=rows * columns,
            inverse=1 / sigma,
            K=bins,
            POOL=pool,
            BLOCK_K=tiles.padded(bins),
            BLOCK_P=block_p,
            num_warps=4,
        )
    return out


def backward(
    grad: Tensor, ab: Tensor, centres: Tensor, sigma: float, pool: int
) -> tuple[Tensor, Tensor]:
    """Launch the backward pass; the parts of the centres' gradient are summed in order."""
    grad, ab, centres = grad.contiguous(), ab.contiguous(), centres.contiguous()
    batch, _, height, width = ab.shape
    bins = centres.shape[1]
    rows, columns = height // pool, width // pool
    block_p = block_pixels(bins)
    programs = triton.cdiv(rows * columns, block_p)
    grad_ab = torch.empty_like(ab)
    parts = ab.new_empty(batch, 2, programs, bins, dtype=torch.float32)
    with tiles.on_device(ab.device):
        backward_kernel[(programs, 2 * batch)](
            p_grad=grad,
            p_ab=ab,
            p_centres=centres,
            p_grad_ab=grad_ab,
            p_grad_centres=parts,
            W=width,
            pooled_width=columns,
            pooled=rows * columns,
            inverse=1 / sigma,
            K=bins,
            POOL=pool,
            BLOCK_K=tiles.padded(bins),
            BLOCK_P=block_p,
            num_warps=4,
        )
    return grad_ab, parts.sum(dim=(0, 2)).to(centres.dtype)
