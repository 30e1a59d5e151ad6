"""GPU kernels of the prologue: one pass over the features after their mean is known."""

# Launches are by keyword; the compiler knows no keyword-only parameters.
# ruff: noqa: PLR0917
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pikfix.kernels import tiles

_TILE_ELEMENTS = 4096


@triton.jit(do_not_specialize=["N"])
def forward_kernel(
    p_features,  # [B, N, C]
    p_mean,  # [B, C] float32
    p_out,  # [B, N, C]
    N,
    eps,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(x - mean) / sqrt(|x - mean|² + eps²): Pik-Fix (Xu et al., WACV 2023), sec. 3.2."""
    i_batch = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C
    m_tile = (o_n[:, None] < N) & m_c[None, :]
    o_tile = (i_batch * N + o_n[:, None]) * C + o_c[None, :]
    b_mean = tl.load(p_mean + i_batch * C + o_c, mask=m_c, other=0.0)
    b_x = tl.load(p_features + o_tile, mask=m_tile, other=0.0).to(tl.float32) - b_mean[None, :]
    b_length = tl.sqrt(tl.sum(b_x * b_x, 1) + eps * eps)
    b_x = b_x / b_length[:, None]
    tl.store(p_out + o_tile, b_x.to(p_out.dtype.element_ty), mask=m_tile)


@triton.jit(do_not_specialize=["N"])
def backward_kernel(
    p_grad,  # [B, N, C]
    p_features,  # [B, N, C]
    p_mean,  # [B, C] float32
    p_out,  # [B, N, C] float32, gradient of the centred features
    N,
    eps,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """(g - y (y·g)) / length, with y the forward's result."""
    i_batch = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C
    m_tile = (o_n[:, None] < N) & m_c[None, :]
    o_tile = (i_batch * N + o_n[:, None]) * C + o_c[None, :]
    b_mean = tl.load(p_mean + i_batch * C + o_c, mask=m_c, other=0.0)
    b_x = tl.load(p_features + o_tile, mask=m_tile, other=0.0).to(tl.float32) - b_mean[None, :]
    b_length = tl.sqrt(tl.sum(b_x * b_x, 1) + eps * eps)
    b_unit = b_x / b_length[:, None]
    b_grad = tl.load(p_grad + o_tile, mask=m_tile, other=0.0).to(tl.float32)
    b_along = tl.sum(b_grad * b_unit, 1)
    b_grad = (b_grad - b_unit * b_along[:, None]) / b_length[:, None]
    tl.store(p_out + o_tile, b_grad, mask=m_tile)


def block_rows(channels: int) -> int:
    """Positions per program for that many channels."""
    return max(1, _TILE_ELEMENTS // tiles.padded(channels))


def forward(features: Tensor, eps: float, *, launcher: tiles.Launcher = tiles.direct) -> Tensor:
    """Launch the forward pass: [B, N, C] -> [B, N, C]."""
    features = features.contiguous()
    batch, positions, channels = features.shape
    out = torch.empty_like(features)
    rows = block_rows(channels)
    with tiles.on_device(features.device):
        launcher(forward_kernel)[(tiles.cdiv(positions, rows), batch)](
            p_features=features,
            p_mean=features.mean(dim=1, dtype=torch.float32),
            p_out=out,
            N=positions,
            eps=eps,
            C=channels,
            BLOCK_N=rows,
            BLOCK_C=tiles.padded(channels),
            num_warps=4,
        )
    return out


def backward(grad: Tensor, features: Tensor, eps: float) -> Tensor:
    """Launch the backward pass; the mean's gradient is subtracted at the end."""
    grad, features = grad.contiguous(), features.contiguous()
    batch, positions, channels = features.shape
    out = torch.empty_like(features, dtype=torch.float32)
    rows = block_rows(channels)
    with tiles.on_device(features.device):
        backward_kernel[(triton.cdiv(positions, rows), batch)](
            p_grad=grad,
            p_features=features,
            p_mean=features.mean(dim=1, dtype=torch.float32),
            p_out=out,
            N=positions,
            eps=eps,
            C=channels,
            BLOCK_N=rows,
            BLOCK_C=tiles.padded(channels),
            num_warps=4,
        )
    return out.sub_(out.mean(dim=1, keepdim=True)).to(features.dtype)
