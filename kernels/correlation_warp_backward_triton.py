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
from pikfix.kernels.correlation_warp_triton import (
    LOG2_E,
    dot,
    dot_precision,
    row_products,
)


@triton.jit
def _own_rows(p_rows, o_rows, m_rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """All columns of a program's own rows, to stay loaded; nothing where BLOCK < WIDTH."""
    if BLOCK >= WIDTH:
        o_w = tl.arange(0, BLOCK)
        b_rows = tl.load(
            p_rows + o_rows[:, None] * WIDTH + o_w[None, :],
            mask=m_rows[:, None] & (o_w[None, :] < WIDTH),
            other=0.0,
        )
    else:
        b_rows = 0
    return b_rows


@triton.jit(do_not_specialize=["N", "M"])
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
    CHUNK: tl.constexpr,
    HAS_MASK: tl.constexpr,
    FIND_BEST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of CHUNK channels of one query tile: a loop over the keys."""
    chunks: tl.constexpr = (C + CHUNK - 1) // CHUNK
    i_chunk = tl.program_id(0) % chunks
    i_batch = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) // chunks * BLOCK_N + tl.arange(0, BLOCK_N)
    o_out = i_chunk * CHUNK + tl.arange(0, CHUNK)
    m_n, m_out = o_n < N, o_out < C
    p_query += i_batch * N * C
    p_grad += i_batch * N * D
    p_key += i_batch * M * C
    p_values += i_batch * M * D
    o_row = i_batch * N + o_n
    b_query = _own_rows(p_query, o_n, m_n, C, BLOCK_C)
    b_grad = _own_rows(p_grad, o_n, m_n, D, BLOCK_D)
    b_logsumexp = tl.load(p_logsumexp + o_row, mask=m_n, other=0.0) * 1.4426950408889634
    b_delta = tl.load(p_delta + o_row, mask=m_n, other=0.0)
    b_acc = tl.zeros([BLOCK_N, CHUNK], dtype=tl.float32)
    b_max = tl.full([BLOCK_N], float("-inf"), dtype=tl.float32)
    b_best = tl.zeros([BLOCK_N], dtype=tl.int32)
    for start in range(0, M, BLOCK_M):
        o_m = start + tl.arange(0, BLOCK_M)
        m_m = o_m < M
        b_score = row_products(b_query, p_query, o_n, m_n, p_key, o_m, m_m, C, BLOCK_C, PRECISION)
        m_kept = m_m
        if HAS_MASK:
            m_kept = m_kept & (tl.load(p_mask + i_batch * M + o_m, mask=m_m, other=0) != 0)
        b_score = tl.where(m_kept[None, :], b_score, float("-inf"))
        if FIND_BEST:
            b_top, b_where = tl.max(b_score, 1, return_indices=True)
            b_best = tl.where(b_top > b_max, start + b_where, b_best)
            b_max = tl.maximum(b_top, b_max)
        b_weight = tl.exp2(b_score * scale - b_logsumexp[:, None])
        b_flow = row_products(b_grad, p_grad, o_n, m_n, p_values, o_m, m_m, D, BLOCK_D, PRECISION)
        b_flow = b_weight * (b_flow - b_delta[:, None])
        b_key = tl.load(
            p_key + o_m[:, None] * C + o_out[None, :],
            mask=m_m[:, None] & m_out[None, :],
            other=0.0,
        )
        b_acc = dot(b_flow.to(b_key.dtype), b_key, b_acc, PRECISION)
    tl.store(
        p_grad_query + o_row[:, None] * C + o_out[None, :],
        b_acc,
        mask=m_n[:, None] & m_out[None, :],
    )
    if FIND_BEST and i_chunk == 0:
        tl.store(p_best + o_row, b_best, mask=m_n)


@triton.jit(do_not_specialize=["N", "M"])
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
    CHUNK: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of CHUNK channels of one key tile: a loop over the queries, scores transposed."""
    chunks: tl.constexpr = (C + CHUNK - 1) // CHUNK
    i_batch = tl.program_id(1).to(tl.int64)
    o_m = tl.program_id(0) // chunks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_out = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)
    m_m, m_out = o_m < M, o_out < C
    p_query += i_batch * N * C
    p_grad += i_batch * N * D
    p_key += i_batch * M * C
    p_values += i_batch * M * D
    b_key = _own_rows(p_key, o_m, m_m, C, BLOCK_C)
    b_values = _own_rows(p_values, o_m, m_m, D, BLOCK_D)
    m_kept = m_m
    if HAS_MASK:
        m_kept = m_kept & (tl.load(p_mask + i_batch * M + o_m, mask=m_m, other=0) != 0)
    b_acc = tl.zeros([BLOCK_M, CHUNK], dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < N
        o_row = i_batch * N + o_n
        b_logsumexp = tl.load(p_logsumexp + o_row, mask=m_n, other=0.0) * 1.4426950408889634
        b_delta = tl.load(p_delta + o_row, mask=m_n, other=0.0)
        b_score = row_products(b_key, p_key, o_m, m_m, p_query, o_n, m_n, C, BLOCK_C, PRECISION)
        b_weight = tl.exp2(b_score * scale - b_logsumexp[None, :])
        b_weight = tl.where(m_kept[:, None] & m_n[None, :], b_weight, 0.0)
        b_flow = row_products(b_values, p_values, o_m, m_m, p_grad, o_n, m_n, D, BLOCK_D, PRECISION)
        b_flow = b_weight * (b_flow - b_delta[None, :])
        b_query = tl.load(
            p_query + o_n[:, None] * C + o_out[None, :],
            mask=m_n[:, None] & m_out[None, :],
            other=0.0,
        )
        b_acc = dot(b_flow.to(b_query.dtype), b_query, b_acc, PRECISION)
    tl.store(
        p_grad_key + (i_batch * M + o_m[:, None]) * C + o_out[None, :],
        b_acc,
        mask=m_m[:, None] & m_out[None, :],
    )


@triton.jit(do_not_specialize=["N", "M"])
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
    CHUNK: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of CHUNK values of one key tile: a loop over the queries."""
    chunks: tl.constexpr = (D + CHUNK - 1) // CHUNK
    i_batch = tl.program_id(1).to(tl.int64)
    o_m = tl.program_id(0) // chunks * BLOCK_M + tl.arange(0, BLOCK_M)
    o_out = tl.program_id(0) % chunks * CHUNK + tl.arange(0, CHUNK)
    m_m, m_out = o_m < M, o_out < D
    p_query += i_batch * N * C
    p_grad += i_batch * N * D
    p_key += i_batch * M * C
    b_key = _own_rows(p_key, o_m, m_m, C, BLOCK_C)
    m_kept = m_m
    if HAS_MASK:
        m_kept = m_kept & (tl.load(p_mask + i_batch * M + o_m, mask=m_m, other=0) != 0)
    b_acc = tl.zeros([BLOCK_M, CHUNK], dtype=tl.float32)
    for start in range(0, N, BLOCK_N):
        o_n = start + tl.arange(0, BLOCK_N)
        m_n = o_n < N
        b_logsumexp = tl.load(p_logsumexp + i_batch * N + o_n, mask=m_n, other=0.0)
        b_score = row_products(b_key, p_key, o_m, m_m, p_query, o_n, m_n, C, BLOCK_C, PRECISION)
        b_weight = tl.exp2(b_score * scale - b_logsumexp[None, :] * 1.4426950408889634)
        b_weight = tl.where(m_kept[:, None] & m_n[None, :], b_weight, 0.0)
        b_grad = tl.load(
            p_grad + o_n[:, None] * D + o_out[None, :],
            mask=m_n[:, None] & m_out[None, :],
            other=0.0,
        )
        b_acc = dot(b_weight.to(b_grad.dtype), b_grad, b_acc, PRECISION)
    tl.store(
        p_grad_values + (i_batch * M + o_m[:, None]) * D + o_out[None, :],
        b_acc,
        mask=m_m[:, None] & m_out[None, :],
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
        "BLOCK_C": min(tiles.padded(channels), tile.slice),
        "HAS_MASK": key_mask is not None,
        "PRECISION": dot_precision(query.dtype),
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    chunk_c, chunk_d = (min(tiles.padded(size), tile.chunk) for size in (channels, width))
    flow = {
        "p_values": values,
        "p_delta": delta.contiguous(),
        "BLOCK_D": min(tiles.padded(width), tile.slice),
        "CHUNK": chunk_c,
    }
    by_query = {"BLOCK_N": tile.rows, "BLOCK_M": tile.columns}
    by_key = {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns}
    query_tiles, key_tiles = triton.cdiv(queries, tile.rows), triton.cdiv(keys, tile.rows)
    chunks = triton.cdiv(channels, chunk_c)
    grad_query = grad_key = grad_values = None
    best = query.new_empty(batch, queries, dtype=torch.int32)
    with tiles.on_device(query.device):
        if needs[0] or grad_confidence is not None:
            grad_query = query.new_empty(batch, queries, channels, dtype=torch.float32)
            query_kernel[(query_tiles * chunks, batch)](
                p_grad_query=grad_query,
                p_best=best,
                FIND_BEST=grad_confidence is not None,
                **common,
                **flow,
                **by_query,
            )
        if needs[1]:
            grad_key = query.new_empty(batch, keys, channels, dtype=torch.float32)
            key_kernel[(key_tiles * chunks, batch)](p_grad_key=grad_key, **common, **flow, **by_key)
        if needs[2]:
            grad_values = query.new_empty(batch, keys, width, dtype=torch.float32)
            values_kernel[(key_tiles * triton.cdiv(width, chunk_d), batch)](
                p_grad_values=grad_values, CHUNK=chunk_d, **common, **by_key
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
