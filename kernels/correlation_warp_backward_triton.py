"""GPU kernels of the warp's backward pass: the map is computed again, tile by tile.

With P the weights, O the warped values and dO their gradient:
Δ = rowsum(dO ∘ O), dP = dO Vᵀ, dS = P ∘ (dP - Δ) / τ, dQ = dS K, dK = dSᵀ Q, dV = Pᵀ dO
(FlashAttention, Dao et al., 2022, appendix B.4). O enters in float32: rounded, the difference
dP - Δ would lose several percent of dQ. The maximum passes its gradient to its own key.
"""

# Launches are by keyword; the compiler knows no keyword-only parameters.
# ruff: noqa: PLR0917
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pikfix.kernels import tiles
from pikfix.kernels.correlation_warp_triton import LOG2_E, dot, dot_precision


@triton.jit
def query_kernel(
    p_query,  # [B, N, C]
    p_key,  # [B, M, C]
    p_values,  # [B, M, D]
    p_mask,  # [B, M] bool, or anything where HAS_MASK is false
    p_grad,  # [B, N, D], gradient of the warped values
    p_logsumexp,  # [B, N] float32
    p_delta,  # [B, N] float32
    p_grad_query,  # [B, N, C] float32, without the factor 1/τ
    p_best,  # [B, N] int32, position of the maximum
    N,
    M,
    scale,  # log2(e) / τ
    C: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_MASK: tl.constexpr,
    FIND_BEST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of one query tile: a loop over the keys."""
    i_batch = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_c = tl.arange(0, BLOCK_C)
    o_d = tl.arange(0, BLOCK_D)
    m_n = o_n < N
    o_row = i_batch * N + o_n
    m_query = m_n[:, None] & (o_c[None, :] < C)
    b_query = tl.load(p_query + o_row[:, None] * C + o_c[None, :], mask=m_query, other=0.0)
    b_grad = tl.load(
        p_grad + o_row[:, None] * D + o_d[None, :],
        mask=m_n[:, None] & (o_d[None, :] < D),
        other=0.0,
    )
    b_logsumexp = tl.load(p_logsumexp + o_row, mask=m_n, other=0.0) * 1.4426950408889634
    b_delta = tl.load(p_delta + o_row, mask=m_n, other=0.0)
    b_acc = tl.zeros([BLOCK_N, BLOCK_C], dtype=tl.float32)
    b_max = tl.full([BLOCK_N], float("-inf"), dtype=tl.float32)
    b_best = tl.zeros([BLOCK_N], dtype=tl.int32)
    for start in range(0, M, BLOCK_M):
        o_m = start + tl.arange(0, BLOCK_M)
        m_m = o_m < M
        o_key = i_batch * M + o_m
        b_key = tl.load(
            p_key + o_key[:, None] * C + o_c[None, :],
            mask=m_m[:, None] & (o_c[None, :] < C),
            other=0.0,
        )
        b_values = tl.load(
            p_values + o_key[None, :] * D + o_d[:, None],
            mask=m_m[None, :] & (o_d[:, None] < D),
            other=0.0,
        )
        b_score = dot(b_query, tl.trans(b_key), None, PRECISION)
        m_kept = m_m
        if HAS_MASK:
            m_kept = m_kept & (tl.load(p_mask + o_key, mask=m_m, other=0) != 0)
        b_score = tl.where(m_kept[None, :], b_score, float("-inf"))
        if FIND_BEST:
            b_top, b_where = tl.max(b_score, 1, return_indices=True)
            b_best = tl.where(b_top > b_max, start + b_where, b_best)
            b_max = tl.maximum(b_top, b_max)
        b_weight = tl.exp2(b_score * scale - b_logsumexp[:, None])
        b_flow = b_weight * (dot(b_grad, b_values, None, PRECISION) - b_delta[:, None])
        b_acc = dot(b_flow.to(b_key.dtype), b_key, b_acc, PRECISION)
    tl.store(p_grad_query + o_row[:, None] * C + o_c[None, :], b_acc, mask=m_query)
    if FIND_BEST:
        tl.store(p_best + o_row, b_best, mask=m_n)


@triton.jit
def key_kernel(
    p_query,  # [B, N, C]
    p_key,  # [B, M, C]
    p_values,  # [B, M, D]
    p_mask,  # [B, M] bool, or anything where HAS_MASK is false
    p_grad,  # [B, N, D], gradient of the warped values
    p_logsumexp,  # [B, N] float32
    p_delta,  # [B, N] float32
    p_grad_key,  # [B, M, C] float32, without the factor 1/τ
    N,
    M,
    scale,  # log2(e) / τ
    C: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of one key tile: a loop over the queries, with transposed scores."""
    i_batch = tl.program_id(1).to(tl.int64)
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_c = tl.arange(0, BLOCK_C)
    o_d = tl.arange(0, BLOCK_D)
    m_m = o_m < M
    o_key = i_batch * M + o_m
    m_key = m_m[:, None] & (o_c[None, :] < C)
    b_key = tl.load(p_key + o_key[:, None] * C + o_c[None, :], mask=m_key, other=0.0)
    b_values = tl.load(
        p_values + o_key[:, None] * D + o_d[None, :],
        mask=m_m[:, None] & (o_d[None, :] < D),
        other=0.0,
    )
    m_kept = m_m
    if HAS_MASK:
        m_kept = m_kept & (tl.load(p_mask + o_key, mask=m_m, other=0) != 0)
    b_acc = tl.zeros([BLOCK_M, BLOCK_C], dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < N
        o_row = i_batch * N + o_n
        b_query = tl.load(
            p_query + o_row[:, None] * C + o_c[None, :],
            mask=m_n[:, None] & (o_c[None, :] < C),
            other=0.0,
        )
        b_grad = tl.load(
            p_grad + o_row[None, :] * D + o_d[:, None],
            mask=m_n[None, :] & (o_d[:, None] < D),
            other=0.0,
        )
        b_logsumexp = tl.load(p_logsumexp + o_row, mask=m_n, other=0.0) * 1.4426950408889634
        b_delta = tl.load(p_delta + o_row, mask=m_n, other=0.0)
        b_score = dot(b_key, tl.trans(b_query), None, PRECISION)
        b_weight = tl.exp2(b_score * scale - b_logsumexp[None, :])
        b_weight = tl.where(m_kept[:, None] & m_n[None, :], b_weight, 0.0)
        b_flow = b_weight * (dot(b_values, b_grad, None, PRECISION) - b_delta[None, :])
        b_acc = dot(b_flow.to(b_query.dtype), b_query, b_acc, PRECISION)
    tl.store(p_grad_key + o_key[:, None] * C + o_c[None, :], b_acc, mask=m_key)


@triton.jit
def values_kernel(
    p_query,  # [B, N, C]
    p_key,  # [B, M, C]
    p_mask,  # [B, M] bool, or anything where HAS_MASK is false
    p_grad,  # [B, N, D], gradient of the warped values
    p_logsumexp,  # [B, N] float32
    p_grad_values,  # [B, M, D] float32
    N,
    M,
    scale,  # log2(e) / τ
    C: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the values of one key tile, BLOCK_D of them at a time."""
    chunks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    i_batch = tl.program_id(1).to(tl.int64)
    o_m = tl.program_id(0) // chunks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_d = tl.program_id(0) % chunks * BLOCK_D + tl.arange(0, BLOCK_D)
    o_c = tl.arange(0, BLOCK_C)
    m_m = o_m < M
    o_key = i_batch * M + o_m
    b_key = tl.load(
        p_key + o_key[:, None] * C + o_c[None, :],
        mask=m_m[:, None] & (o_c[None, :] < C),
        other=0.0,
    )
    m_kept = m_m
    if HAS_MASK:
        m_kept = m_kept & (tl.load(p_mask + o_key, mask=m_m, other=0) != 0)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < N
        o_row = i_batch * N + o_n
        b_query = tl.load(
            p_query + o_row[None, :] * C + o_c[:, None],
            mask=m_n[None, :] & (o_c[:, None] < C),
            other=0.0,
        )
        b_grad = tl.load(
            p_grad + o_row[:, None] * D + o_d[None, :],
            mask=m_n[:, None] & (o_d[None, :] < D),
            other=0.0,
        )
        b_logsumexp = tl.load(p_logsumexp + o_row, mask=m_n, other=0.0) * 1.4426950408889634
        b_weight = tl.exp2(dot(b_key, b_query, None, PRECISION) * scale - b_logsumexp[None, :])
        b_weight = tl.where(m_kept[:, None] & m_n[None, :], b_weight, 0.0)
        b_acc = dot(b_weight.to(b_grad.dtype), b_grad, b_acc, PRECISION)
    tl.store(
        p_grad_values + o_key[:, None] * D + o_d[None, :],
        b_acc,
        mask=m_m[:, None] & (o_d[None, :] < D),
    )


def _power_of_two_scale(grad: Tensor) -> Tensor:
    """A power of two that brings the largest gradient to about 1: float16 ends at 6e-8."""
    largest = grad.abs().amax().float().clamp_min(1e-30)
    return torch.exp2(-torch.floor(torch.log2(largest)))


def backward(
    grad_warped: Tensor,
    grad_confidence: Tensor | None,
    *,
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    warped: Tensor,
    logsumexp: Tensor,
    needs: tuple[bool, bool, bool] = (True, True, True),
    tile: tiles.Tile | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Launch the backward pass; None for each gradient that is not needed.

    ``warped`` and ``logsumexp`` are the forward's, the first one best in float32.
    """
    query, key, values = (tensor.contiguous() for tensor in (query, key, values))
    batch, queries, channels = query.shape
    keys, width = values.shape[1:]
    table = tiles.table_for(query.device)
    if tile is None:
        tile = table.find("backward", channels, width, query.element_size())
    factor = _power_of_two_scale(grad_warped)
    delta = (grad_warped.float() * warped.float()).sum(dim=2) * factor
    common = {
        "p_query": query,
        "p_key": key,
        "p_mask": key_mask.contiguous().view(torch.uint8) if key_mask is not None else query,
        "p_grad": (grad_warped.float() * factor).to(query.dtype).contiguous(),
        "p_logsumexp": logsumexp.contiguous(),
        "N": queries,
        "M": keys,
        "scale": LOG2_E / temperature,
        "C": channels,
        "D": width,
        "BLOCK_N": tile.block_n,
        "BLOCK_M": tile.block_m,
        "BLOCK_C": tiles.padded(channels),
        "HAS_MASK": key_mask is not None,
        "PRECISION": dot_precision(query.dtype),
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    flow = {"p_values": values, "p_delta": delta.contiguous(), "BLOCK_D": tiles.padded(width)}
    query_tiles, key_tiles = triton.cdiv(queries, tile.block_n), triton.cdiv(keys, tile.block_m)
    grad_query = grad_key = grad_values = None
    best = query.new_empty(batch, queries, dtype=torch.int32)
    with tiles.on_device(query.device):
        if needs[0] or grad_confidence is not None:
            grad_query = query.new_empty(batch, queries, channels, dtype=torch.float32)
            query_kernel[(query_tiles, batch)](
                p_grad_query=grad_query,
                p_best=best,
                FIND_BEST=grad_confidence is not None,
                **common,
                **flow,
            )
        if needs[1]:
            grad_key = query.new_empty(batch, keys, channels, dtype=torch.float32)
            key_kernel[(key_tiles, batch)](p_grad_key=grad_key, **common, **flow)
        if needs[2]:
            grad_values = query.new_empty(batch, keys, width, dtype=torch.float32)
            block_d = min(tiles.padded(width), 128)
            values_kernel[(key_tiles * triton.cdiv(width, block_d), batch)](
                p_grad_values=grad_values, BLOCK_D=block_d, **common
            )
            grad_values = grad_values.div_(factor).to(values.dtype)
    undo = 1 / (temperature * factor)
    grad_query = grad_query.mul_(undo) if needs[0] and grad_query is not None else None
    grad_key = grad_key.mul_(undo) if grad_key is not None else None
    if grad_confidence is not None:
        peak = grad_confidence.float()[..., None]
        if key_mask is not None:
            peak = peak * key_mask.any(dim=1)[:, None, None]
        _add_peak(grad_query, grad_key, query, key, peak, best)
    return (
        grad_query.to(query.dtype) if grad_query is not None else None,
        grad_key.to(key.dtype) if grad_key is not None else None,
        grad_values,
    )


def _add_peak(
    grad_query: Tensor | None,
    grad_key: Tensor | None,
    query: Tensor,
    key: Tensor,
    peak: Tensor,
    best: Tensor,
) -> None:
    """Add the gradient of the maximum: a correlation of each query with one key."""
    batch, keys, channels = key.shape
    rows = (best.long() + torch.arange(batch, device=best.device)[:, None] * keys).flatten()
    if grad_query is not None:
        grad_query.add_(peak * key.view(-1, channels)[rows].view(query.shape).float())
    if grad_key is not None:
        flow = (peak * query.float()).flatten(0, 1)
        grad_key.view(-1, channels).index_add_(0, rows, flow)
