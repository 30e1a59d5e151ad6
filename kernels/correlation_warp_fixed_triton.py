"""The warp's forward pass with a fixed offset in place of the running maximum.

Correlations end at 1, so exp((s - 1) / τ) never overflows, and what is known beforehand needs no
rescaling: products and sums simply add up, over key tiles and over splits of the keys. What a
single offset cannot do is hold rows whose best correlation is low: their weights would underflow.
Such rows are found by their maximum, and their tiles computed again by the online form.

The weights take the whole range of bfloat16, which is float32's; float16 has none of it.
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
    choose_splits,
    dot,
    dot_precision,
    forward_kernel,
    row_products,
)


@triton.jit
def _limits(scale, M):
    """The offset in powers of two, and the lowest correlation that a row's best may have.

    The weight of a correlation of 1 is 2^110, or less where the sum of M of them, times values
    up to 8, would leave float32. Below the bound, weights under 2^-126, which are lost, could add
    up to more than 2^-10 of the best one.
    """
    keys = tl.ceil(tl.log2(M.to(tl.float32)))
    offset = scale - tl.minimum(110.0, 124.0 - keys)
    return offset, (offset - 126.0 + 10.0 + keys) / scale


@triton.jit
def _accumulate(
    b_acc,  # [BLOCK_N, BLOCK_D] float32
    b_max,  # [BLOCK_N] float32, highest correlation so far
    b_sum,  # [BLOCK_N] float32
    b_query,  # [BLOCK_N, BLOCK_C], or unused where BLOCK_C < C
    p_query,  # [N, C] of one batch item
    p_key,  # [M, C]
    p_values,  # [M, D]
    p_mask,  # [M]
    first,
    last,
    o_n,
    o_d,
    N,
    M,
    scale,
    offset,
    C: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_MASK: tl.constexpr,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
    VALUE_PRECISION: tl.constexpr,
    WEIGHT: tl.constexpr,
):
    """Sums over the key tiles in [first, last), each independent of the others."""
    for start in tl.range(first, last, BLOCK_M):
        o_m = start + tl.arange(0, BLOCK_M)
        m_m = o_m < M if RAGGED else tl.full([BLOCK_M], True, dtype=tl.int1)
        b_score = row_products(
            b_query, p_query, o_n, o_n < N, p_key, o_m, m_m, C, BLOCK_C, PRECISION
        )
        if RAGGED:
            b_score = tl.where(m_m[None, :], b_score, float("-inf"))
        if HAS_MASK:
            b_kept = tl.load(p_mask + o_m, mask=m_m, other=0)
            b_score = tl.where(b_kept[None, :] != 0, b_score, float("-inf"))
        b_max = tl.maximum(b_max, tl.max(b_score, 1))
        b_weight = tl.exp2(b_score * scale - offset).to(WEIGHT)
        # The rounded weights are summed: what they have in common with the product cancels.
        b_sum += tl.sum(b_weight.to(tl.float32), 1)
        b_values = tl.load(
            p_values + o_m[:, None] * D + o_d[None, :],
            mask=m_m[:, None] & (o_d[None, :] < D),
            other=0.0,
        )
        b_acc = dot(b_weight, b_values, b_acc, VALUE_PRECISION)
    return b_acc, b_max, b_sum


@triton.jit(do_not_specialize=["B", "N", "M", "keys_per_split"])
def fixed_kernel(
    p_query,  # [B, N, C]
    p_key,  # [B, M, C]
    p_values,  # [B, M, D], in the type of the weights
    p_mask,  # [B, M] bool, or anything where HAS_MASK is false
    p_products,  # [S, B, N, D] float32
    p_confidence,  # [S, B, N] float32
    p_sums,  # [S, B, N] float32
    B,
    N,
    M,
    keys_per_split,  # a multiple of BLOCK_M
    scale,  # log2(e) / τ
    C: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_MASK: tl.constexpr,
    PRECISION: tl.constexpr,
    VALUE_PRECISION: tl.constexpr,
    WEIGHT: tl.constexpr,
):
    """Σ_j w_ij v_j, Σ_j w_ij and max_j s_ij of one query tile over one split of the keys.

    w = 2^(s · log2(e)/τ - offset): softmax(s / τ) is w over its sum, whatever the offset.
    """
    chunks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    i_chunk = tl.program_id(0) % chunks
    i_tile = tl.program_id(0) // chunks
    i_split = tl.program_id(1)
    i_batch = tl.program_id(2).to(tl.int64)
    o_n = i_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    o_c = tl.arange(0, BLOCK_C)
    o_d = i_chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    p_query += i_batch * N * C
    p_key += i_batch * M * C
    p_values += i_batch * M * D
    p_mask += i_batch * M
    if BLOCK_C >= C:
        b_query = tl.load(
            p_query + o_n[:, None] * C + o_c[None, :],
            mask=(o_n[:, None] < N) & (o_c[None, :] < C),
            other=0.0,
        )
    else:
        b_query = 0
    offset, _ = _limits(scale, M)
    b_acc = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    b_max = tl.full([BLOCK_N], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_N], dtype=tl.float32)
    first = i_split * keys_per_split
    last = tl.minimum(first + keys_per_split, M)
    whole = first + (tl.maximum(last - first, 0) // BLOCK_M) * BLOCK_M
    b_acc, b_max, b_sum = _accumulate(
        b_acc, b_max, b_sum, b_query, p_query, p_key, p_values, p_mask, first, whole,
        o_n, o_d, N, M, scale, offset, C, D, BLOCK_M, BLOCK_C, HAS_MASK, False,
        PRECISION, VALUE_PRECISION, WEIGHT,
    )  # fmt: skip
    b_acc, b_max, b_sum = _accumulate(
        b_acc, b_max, b_sum, b_query, p_query, p_key, p_values, p_mask, whole, last,
        o_n, o_d, N, M, scale, offset, C, D, BLOCK_M, BLOCK_C, HAS_MASK, True,
        PRECISION, VALUE_PRECISION, WEIGHT,
    )  # fmt: skip
    o_row = (i_split * B + i_batch) * N + o_n
    tl.store(
        p_products + o_row[:, None] * D + o_d[None, :],
        b_acc,
        mask=(o_n[:, None] < N) & (o_d[None, :] < D),
    )
    if i_chunk == 0:
        tl.store(p_confidence + o_row, b_max, mask=o_n < N)
        tl.store(p_sums + o_row, b_sum, mask=o_n < N)


@triton.jit(do_not_specialize=["R", "S", "M"])
def finish_kernel(
    p_products,  # [S, R, D] float32, R = B·N rows
    p_part_confidence,  # [S, R] float32
    p_sums,  # [S, R] float32
    p_warped,  # [R, D]
    p_confidence,  # [R] float32
    p_logsumexp,  # [R] float32
    R,
    S,
    M,
    scale,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Add the splits of the keys and divide."""
    i_rows = tl.program_id(0).to(tl.int64)
    o_r = i_rows * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_r = o_r < R
    m_out = m_r[:, None] & (o_d[None, :] < D)
    b_max = tl.full([BLOCK_R], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_R], dtype=tl.float32)
    b_acc = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for s in range(S):
        b_max = tl.maximum(b_max, tl.load(p_part_confidence + s * R + o_r, mask=m_r, other=0.0))
        b_sum += tl.load(p_sums + s * R + o_r, mask=m_r, other=0.0)
        p_part = p_products + (s * R + o_r[:, None]) * D + o_d[None, :]
        b_acc += tl.load(p_part, mask=m_out, other=0.0)
    b_any = b_sum > 0
    b_total = tl.where(b_any, b_sum, 1.0)
    tl.store(
        p_warped + o_r[:, None] * D + o_d[None, :],
        (b_acc / b_total[:, None]).to(p_warped.dtype.element_ty),
        mask=m_out,
    )
    if tl.program_id(1) == 0:
        offset, _ = _limits(scale, M)
        b_final = (tl.log2(b_total) + offset) * 0.6931471805599453
        tl.store(p_confidence + o_r, tl.where(b_max > float("-inf"), b_max, 0.0), mask=m_r)
        tl.store(p_logsumexp + o_r, tl.where(b_any, b_final, 0.0), mask=m_r)


@triton.jit(do_not_specialize=["B", "N", "M"])
def repair_kernel(
    p_query,  # [B, N, C]
    p_key,  # [B, M, C]
    p_values,  # [B, M, D]
    p_mask,  # [B, M] bool, or anything where HAS_MASK is false
    p_warped,  # [B, N, D]
    p_confidence,  # [B, N] float32
    p_logsumexp,  # [B, N] float32
    B,
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
    """The online form for tiles with a row whose best correlation is under the bound.

    Rows without any key have the confidence 0, and are at worst computed again for nothing.
    """
    chunks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    o_n = tl.program_id(0) // chunks * BLOCK_N + tl.arange(0, BLOCK_N)
    o_row = tl.program_id(2).to(tl.int64) * N + o_n
    b_best = tl.load(p_confidence + o_row, mask=o_n < N, other=1.0)
    _, bound = _limits(scale, M)
    if tl.min(b_best, 0) < bound:
        forward_kernel(
            p_query, p_key, p_values, p_mask, p_warped, p_confidence, p_logsumexp,
            B, N, M, M, scale, C, D, BLOCK_N, BLOCK_M, BLOCK_C, BLOCK_D,
            HAS_MASK, False, False, PRECISION,
        )  # fmt: skip


def forward(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    *,
    tile: tiles.Tile,
    table: tiles.Table,
    fp32_output: bool = False,
    splits: int | None = None,
    launcher: tiles.Launcher = tiles.direct,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the three kernels on contiguous tensors; values are at most 8 in size.

    Returns:
        As :func:`pikfix.kernels.correlation_warp_triton.forward`.
    """
    batch, queries, channels = query.shape
    keys, width = values.shape[1:]
    block_d = min(tiles.padded(width), tile.chunk)
    grid_n = tiles.cdiv(queries, tile.rows) * tiles.cdiv(width, block_d)
    if splits is None:
        splits = choose_splits(grid_n * batch, keys, tile, table.multiprocessors)
    per_split = tiles.cdiv(tiles.cdiv(keys, splits), tile.columns) * tile.columns
    splits = tiles.cdiv(keys, per_split)
    products = query.new_empty(splits, batch, queries, width, dtype=torch.float32)
    best, sums = (query.new_empty(splits, batch, queries, dtype=torch.float32) for _ in range(2))
    out_dtype = torch.float32 if fp32_output else values.dtype
    warped = query.new_empty(batch, queries, width, dtype=out_dtype)
    confidence, logsumexp = (query.new_empty(batch, queries, dtype=torch.float32) for _ in range(2))
    half = query.dtype != torch.float32
    weight = torch.bfloat16 if half else torch.float32
    common = {
        "p_query": query,
        "p_key": key,
        "p_mask": key_mask.contiguous().view(torch.uint8) if key_mask is not None else query,
        "B": batch,
        "N": queries,
        "M": keys,
        "scale": LOG2_E / temperature,
        "C": channels,
        "D": width,
        "BLOCK_N": tile.rows,
        "BLOCK_M": tile.columns,
        "BLOCK_C": min(tiles.padded(channels), tile.slice),
        "BLOCK_D": block_d,
        "HAS_MASK": key_mask is not None,
        "PRECISION": dot_precision(query.dtype),
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    rows = batch * queries
    finish_d = min(tiles.padded(width), 128)
    with tiles.on_device(query.device):
        launcher(fixed_kernel)[(grid_n, splits, batch)](
            p_values=values.to(weight),
            p_products=products,
            p_confidence=best,
            p_sums=sums,
            keys_per_split=per_split,
            VALUE_PRECISION=dot_precision(weight),
            WEIGHT=tl.bfloat16 if half else tl.float32,
            **common,
        )
        launcher(finish_kernel)[(tiles.cdiv(rows, 32), tiles.cdiv(width, finish_d))](
            p_products=products,
            p_part_confidence=best,
            p_sums=sums,
            p_warped=warped,
            p_confidence=confidence,
            p_logsumexp=logsumexp,
            R=rows,
            S=splits,
            M=keys,
            scale=LOG2_E / temperature,
            D=width,
            BLOCK_R=32,
            BLOCK_D=finish_d,
            num_warps=4,
        )
        launcher(repair_kernel)[(grid_n, 1, batch)](
            p_values=values,
            p_warped=warped,
            p_confidence=confidence,
            p_logsumexp=logsumexp,
            **common,
        )
    return warped, confidence, logsumexp
