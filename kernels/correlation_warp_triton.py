"""GPU kernels of the warp's forward pass: online softmax with a split over keys.

A fixed offset in place of the running maximum (correlations end at 1) was tried on an H200: it took
1.1 to 1.5 times as long in every problem, and was less exact.
"""

# Launches are by keyword; the compiler knows no keyword-only parameters.
# ruff: noqa: PLR0917
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from pikfix.kernels import tiles

LOG2_E = 1.4426950408889634


@triton.jit
def dot(b_left, b_right, b_acc, PRECISION: tl.constexpr):
    """b_acc + b_left b_right with float32 sums; "widened" multiplies float32 copies."""
    if PRECISION == "widened":
        return tl.dot(b_left.to(tl.float32), b_right.to(tl.float32), b_acc)
    return tl.dot(b_left, b_right, b_acc, input_precision=PRECISION)


@triton.jit
def row_products(
    b_left,  # [L, BLOCK], all of the left rows where BLOCK covers WIDTH; else unused
    p_left,  # [*, WIDTH], base of the left rows
    o_left,  # [L]
    m_left,  # [L]
    p_right,  # [*, WIDTH]
    o_right,  # [R]
    m_right,  # [R]
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Σ_w left[i, w] · right[j, w] of row tiles: [L, R] float32, BLOCK of WIDTH at a time."""
    o_w = tl.arange(0, BLOCK)
    if BLOCK >= WIDTH:
        b_right = tl.load(
            p_right + o_right[None, :] * WIDTH + o_w[:, None],
            mask=m_right[None, :] & (o_w[:, None] < WIDTH),
            other=0.0,
        )
        b_product = dot(b_left, b_right, None, PRECISION)
    else:
        b_product = tl.zeros([o_left.shape[0], o_right.shape[0]], dtype=tl.float32)
        for start in range(0, WIDTH, BLOCK):
            b_part = tl.load(
                p_left + o_left[:, None] * WIDTH + start + o_w[None, :],
                mask=m_left[:, None] & (start + o_w[None, :] < WIDTH),
                other=0.0,
            )
            b_right = tl.load(
                p_right + o_right[None, :] * WIDTH + start + o_w[:, None],
                mask=m_right[None, :] & (start + o_w[:, None] < WIDTH),
                other=0.0,
            )
            b_product = dot(b_part, b_right, b_product, PRECISION)
    return b_product


@triton.jit
def _attend(
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
    C: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_MASK: tl.constexpr,
    RAGGED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Online softmax over the key tiles in [first, last); RAGGED tiles may pass M."""
    if DESCRIPTORS:
        d_key = tl.make_tensor_descriptor(
            p_key, shape=[M, C], strides=[C, 1], block_shape=[BLOCK_M, BLOCK_C]
        )
        d_values = tl.make_tensor_descriptor(
            p_values, shape=[M, D], strides=[D, 1], block_shape=[BLOCK_M, BLOCK_D]
        )
    for start in tl.range(first, last, BLOCK_M):
        o_m = start + tl.arange(0, BLOCK_M)
        m_m = o_m < M if RAGGED else tl.full([BLOCK_M], True, dtype=tl.int1)
        if DESCRIPTORS:
            b_score = dot(b_query, d_key.load([start, 0]).T, None, PRECISION)
        else:
            b_score = row_products(
                b_query, p_query, o_n, o_n < N, p_key, o_m, m_m, C, BLOCK_C, PRECISION
            )
        if RAGGED:
            b_score = tl.where(m_m[None, :], b_score, float("-inf"))
        if HAS_MASK:
            b_kept = tl.load(p_mask + o_m, mask=m_m, other=0)
            b_score = tl.where(b_kept[None, :] != 0, b_score, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_score, 1))
        # A row without keys so far has no maximum to subtract.
        b_shift = tl.where(b_new == float("-inf"), 0.0, b_new) * scale
        b_weight = tl.exp2(b_score * scale - b_shift[:, None])
        b_decay = tl.exp2(b_max * scale - b_shift)
        b_sum = b_sum * b_decay + tl.sum(b_weight, 1)
        if DESCRIPTORS:
            b_values = d_values.load([start, tl.min(o_d, 0)])
        else:
            b_values = tl.load(
                p_values + o_m[:, None] * D + o_d[None, :],
                mask=m_m[:, None] & (o_d[None, :] < D),
                other=0.0,
            )
        b_acc = b_acc * b_decay[:, None]
        b_acc = dot(b_weight.to(b_values.dtype), b_values, b_acc, PRECISION)
        b_max = b_new
    return b_acc, b_max, b_sum


@triton.jit(do_not_specialize=["B", "N", "M", "keys_per_split"])
def forward_kernel(
    p_query,  # [B, N, C]
    p_key,  # [B, M, C]
    p_values,  # [B, M, D]
    p_mask,  # [B, M] bool, or anything where HAS_MASK is false
    p_warped,  # [S, B, N, D]
    p_confidence,  # [S, B, N] float32
    p_logsumexp,  # [S, B, N] float32
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
    PARTIAL: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """softmax(Q Kᵀ / τ) V of one query tile over one split of the keys.

    Online softmax (Milakov and Gimelshein, 2018) as FlashAttention-2 tiles it (Dao, 2023); the
    running maximum stays in units of correlation, so that it is the confidence. PARTIAL
    results keep -inf as the log-sum-exp of a row without keys; final ones are zero there.
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
    b_acc = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    b_max = tl.full([BLOCK_N], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BLOCK_N], dtype=tl.float32)
    first = i_split * keys_per_split
    last = tl.minimum(first + keys_per_split, M)
    whole = first + (tl.maximum(last - first, 0) // BLOCK_M) * BLOCK_M
    b_acc, b_max, b_sum = _attend(
        b_acc, b_max, b_sum, b_query, p_query, p_key, p_values, p_mask, first, whole,
        o_n, o_d, N, M, scale, C, D, BLOCK_M, BLOCK_C, BLOCK_D, HAS_MASK, False,
        DESCRIPTORS, PRECISION,
    )  # fmt: skip
    b_acc, b_max, b_sum = _attend(
        b_acc, b_max, b_sum, b_query, p_query, p_key, p_values, p_mask, whole, last,
        o_n, o_d, N, M, scale, C, D, BLOCK_M, BLOCK_C, BLOCK_D, HAS_MASK, True,
        DESCRIPTORS, PRECISION,
    )  # fmt: skip
    b_any = b_sum > 0
    b_total = tl.where(b_any, b_sum, 1.0)
    o_row = (i_split * B + i_batch) * N + o_n
    tl.store(
        p_warped + o_row[:, None] * D + o_d[None, :],
        (b_acc / b_total[:, None]).to(p_warped.dtype.element_ty),
        mask=(o_n[:, None] < N) & (o_d[None, :] < D),
    )
    if i_chunk == 0:
        b_logsumexp = b_max * (scale * 0.6931471805599453) + tl.log(b_total)
        empty = float("-inf") if PARTIAL else 0.0
        tl.store(p_confidence + o_row, tl.where(b_any, b_max, empty), mask=o_n < N)
        tl.store(p_logsumexp + o_row, tl.where(b_any, b_logsumexp, empty), mask=o_n < N)


@triton.jit(do_not_specialize=["R", "S"])
def merge_kernel(
    p_parts,  # [S, R, D] float32, R = B·N rows
    p_part_confidence,  # [S, R] float32
    p_part_logsumexp,  # [S, R] float32
    p_warped,  # [R, D]
    p_confidence,  # [R] float32
    p_logsumexp,  # [R] float32
    R,
    S,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Weigh the splits of the keys by exp(log-sum-exp), and take their highest maximum."""
    i_rows = tl.program_id(0).to(tl.int64)
    o_r = i_rows * BLOCK_R + tl.arange(0, BLOCK_R)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_r = o_r < R
    m_out = m_r[:, None] & (o_d[None, :] < D)
    b_top = tl.full([BLOCK_R], float("-inf"), dtype=tl.float32)
    b_max = tl.full([BLOCK_R], float("-inf"), dtype=tl.float32)
    for s in range(S):
        b_top = tl.maximum(b_top, tl.load(p_part_logsumexp + s * R + o_r, mask=m_r, other=0.0))
        b_max = tl.maximum(b_max, tl.load(p_part_confidence + s * R + o_r, mask=m_r, other=0.0))
    b_any = b_top > float("-inf")
    b_top = tl.where(b_any, b_top, 0.0)
    b_sum = tl.zeros([BLOCK_R], dtype=tl.float32)
    b_acc = tl.zeros([BLOCK_R, BLOCK_D], dtype=tl.float32)
    for s in range(S):
        b_logsumexp = tl.load(p_part_logsumexp + s * R + o_r, mask=m_r, other=0.0)
        b_weight = tl.exp(b_logsumexp - b_top)
        b_sum += b_weight
        p_part = p_parts + (s * R + o_r[:, None]) * D + o_d[None, :]
        b_acc += b_weight[:, None] * tl.load(p_part, mask=m_out, other=0.0)
    b_total = tl.where(b_any, b_sum, 1.0)
    tl.store(
        p_warped + o_r[:, None] * D + o_d[None, :],
        (b_acc / b_total[:, None]).to(p_warped.dtype.element_ty),
        mask=m_out,
    )
    if tl.program_id(1) == 0:
        tl.store(p_confidence + o_r, tl.where(b_any, b_max, 0.0), mask=m_r)
        b_final = tl.where(b_any, b_top + tl.log(b_total), 0.0)
        tl.store(p_logsumexp + o_r, b_final, mask=m_r)


def dot_precision(dtype: torch.dtype) -> str:
    """How operands are multiplied: float32 as PyTorch's switch for matrix products says."""
    if dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        return "widened"  # the interpreter would multiply their bit patterns
    if dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def choose_splits(programs: int, keys: int, tile: tiles.Tile, multiprocessors: int) -> int:
    """How many programs share the keys of one query tile, so that the GPU is full.

    A split gets at least four key tiles: less work than that does not pay for the merge.
    """
    most = torch.sym_max(1, keys // (4 * tile.columns))
    splits: int = torch.sym_max(1, torch.sym_min(multiprocessors // programs, most))
    return splits


def forward(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    *,
    fp32_output: bool = False,
    tile: tiles.Tile | None = None,
    splits: int | None = None,
    launcher: tiles.Launcher = tiles.direct,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward pass; tile and splits default to the table of the GPU.

    Nothing here looks at what a tensor holds: launches can be captured in a CUDA graph, and
    traced with symbolic sizes by a launcher that records them.

    Returns:
        warped [B, N, D] in the dtype of values (float32 if fp32_output), confidence and log-sum-exp
        [B, N] in float32. Each in memory of its own: an operator's outputs may not overlap.
    """
    width: int | torch.SymInt = values.shape[2]
    if not isinstance(width, int):
        return _in_chunks(
            query,
            key,
            values,
            temperature,
            key_mask,
            fp32_output=fp32_output,
            tile=tile,
            launcher=launcher,
        )
    # The width is compiled in. Rounded up, few kernels serve all widths.
    padding = -width % tiles.WIDTH_STEP
    if padding:
        values = F.pad(values, (0, padding))
    warped, confidence, logsumexp = _forward(
        query, key, values, temperature, key_mask, fp32_output, tile, splits, launcher
    )
    return warped[..., :width].contiguous(), confidence, logsumexp


def _in_chunks(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    *,
    fp32_output: bool,
    tile: tiles.Tile | None,
    launcher: tiles.Launcher,
) -> tuple[Tensor, Tensor, Tensor]:
    """The warp of values whose width is not known yet: chunks of it are items of a batch."""
    batch, queries, _ = query.shape
    keys, width = values.shape[1:]
    step = tiles.WIDTH_STEP
    chunks = (width + step - 1) // step
    padded = F.pad(values, (0, chunks * step - width))
    folded = padded.view(batch, keys, chunks, step).transpose(1, 2).reshape(-1, keys, step)

    def repeated(tensor: Tensor) -> Tensor:
        sizes = (batch, chunks, *tensor.shape[1:])
        return tensor[:, None].expand(sizes).reshape(-1, *tensor.shape[1:])

    warped, confidence, logsumexp = _forward(
        repeated(query),
        repeated(key),
        folded,
        temperature,
        None if key_mask is None else repeated(key_mask),
        fp32_output,
        tile,
        None,
        launcher,
    )
    warped = warped.view(batch, chunks, queries, step).transpose(1, 2)
    whole = warped.reshape(batch, queries, chunks * step)[..., :width]
    confidence, logsumexp = (
        tensor.view(batch, chunks, queries)[:, 0].clone() for tensor in (confidence, logsumexp)
    )
    return whole.contiguous(), confidence, logsumexp


def _forward(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    fp32_output: bool,
    tile: tiles.Tile | None,
    splits: int | None,
    launcher: tiles.Launcher,
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, values = (tensor.contiguous() for tensor in (query, key, values))
    batch, queries, channels = query.shape
    keys, width = values.shape[1:]
    table = tiles.table_for(query.device)
    if tile is None and splits is None and not fp32_output and launcher is tiles.direct:
        # Built on this module's parts; and only Hopper's compiler knows it.
        from pikfix.kernels import correlation_warp_gluon  # noqa: PLC0415

        found = correlation_warp_gluon.tile_for(query, key, values, key_mask, table)
        if found is not None:
            return correlation_warp_gluon.forward(query, key, values, temperature, tile=found)
    if tile is None:
        tile = table.find("forward", channels, width, query.element_size())
    block_d = min(tiles.padded(width), tile.chunk)
    grid_n = tiles.cdiv(queries, tile.rows) * tiles.cdiv(width, block_d)
    if splits is None:
        splits = choose_splits(grid_n * batch, keys, tile, table.multiprocessors)
    per_split = tiles.cdiv(tiles.cdiv(keys, splits), tile.columns) * tile.columns
    splits = tiles.cdiv(keys, per_split)
    # A count that is not known yet has the general form, in which one split is also merged.
    partial = not isinstance(splits, int) or splits > 1
    out_dtype = torch.float32 if fp32_output else values.dtype
    confidence, logsumexp = (
        query.new_empty(splits, batch, queries, dtype=torch.float32) for _ in range(2)
    )
    parts = query.new_empty(
        splits, batch, queries, width, dtype=torch.float32 if partial else out_dtype
    )
    # The bulk-copy engine wants rows of whole 16-byte units.
    aligned = all(t.shape[2] * t.element_size() % 16 == 0 for t in (key, values))
    descriptors = tile.descriptors and aligned and tile.slice >= channels
    if descriptors:
        tiles.provide_scratch()
    mask = key_mask.contiguous().view(torch.uint8) if key_mask is not None else query
    with tiles.on_device(query.device):
        launcher(forward_kernel)[(grid_n, splits, batch)](
            p_query=query,
            p_key=key,
            p_values=values,
            p_mask=mask,
            p_warped=parts,
            p_confidence=confidence,
            p_logsumexp=logsumexp,
            B=batch,
            N=queries,
            M=keys,
            keys_per_split=per_split,
            scale=LOG2_E / temperature,
            C=channels,
            D=width,
            BLOCK_N=tile.rows,
            BLOCK_M=tile.columns,
            BLOCK_C=min(tiles.padded(channels), tile.slice),
            BLOCK_D=block_d,
            HAS_MASK=key_mask is not None,
            PARTIAL=partial,
            DESCRIPTORS=descriptors,
            PRECISION=dot_precision(query.dtype),
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        if not partial:
            return parts[0], confidence[0], logsumexp[0]
        warped = query.new_empty(batch, queries, width, dtype=out_dtype)
        highest, total = (query.new_empty(batch, queries, dtype=torch.float32) for _ in range(2))
        block_d = min(tiles.padded(width), 128)
        launcher(merge_kernel)[(tiles.cdiv(batch * queries, 32), tiles.cdiv(width, block_d))](
            p_parts=parts,
            p_part_confidence=confidence,
            p_part_logsumexp=logsumexp,
            p_warped=warped,
            p_confidence=highest,
            p_logsumexp=total,
            R=batch * queries,
            S=splits,
            D=width,
            BLOCK_R=32,
            BLOCK_D=block_d,
            num_warps=4,
        )
    return warped, highest, total
