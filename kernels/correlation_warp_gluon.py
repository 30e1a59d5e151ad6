"""The warp's forward pass for sm_90 in Gluon: loads, products and softmax overlap by construction.

One warp issues bulk copies of keys and values into a ring of buffers; two warpgroups multiply, each
for half of the queries. They issue the correlations of the next key tile before the softmax of this
one, so that the matrix units work while exponentials are taken (FlashAttention-3, Shah et al.,
2024, sec. 3.2). The two meet at no barrier of their own: while one takes exponentials, the other
may multiply. Warpgroups that shared their tile took 7 to 24 % longer on an H200.

On an H200, in float16, it was right and faster than the Triton form in every problem measured
(``benchmarks/results/gpu-h200.md``); bfloat16 is compiled alike and has not run there. The tables'
"gluon" tiles say where it is used. The interpreter knows no Gluon.
"""

# Launches are by keyword; the compiler knows no keyword-only parameters.
# ruff: noqa: PLR0917
# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from pikfix.kernels import tiles
from pikfix.kernels.correlation_warp_triton import LOG2_E, choose_splits

NUM_WARPS = 4
"""Of the first multiplying partition; the other one and the copying warp come on top."""


@gluon.jit
def _tile_of(step, count):
    """The last key tile comes first: it alone may be ragged, and is masked outside of the loop."""
    return gl.where(step == 0, count - 1, step - 1)


@gluon.jit
def _copy(
    d_key,  # [B·M, C] in boxes of [BLOCK_M, C]
    d_values,  # [B·M, D] in boxes of [BLOCK_M, BLOCK_D]
    s_key,  # [STAGES, BLOCK_M, C]
    s_values,  # [STAGES, BLOCK_M, BLOCK_D]
    key_full,  # [STAGES, 1] barriers
    key_free,
    values_full,
    values_free,
    first,  # row of the batch item's first key
    column,  # of the values
    count,
    BLOCK_M: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The copying warp: keys and values of `count` tiles through the ring."""
    for step in range(count):
        slot = step % STAGES
        turn = (step // STAGES) & 1
        row = first + _tile_of(step, count) * BLOCK_M
        mbarrier.wait(key_free.index(slot), turn ^ 1)
        mbarrier.expect(key_full.index(slot), d_key.block_type.nbytes)
        tma.async_copy_global_to_shared(d_key, [row, 0], key_full.index(slot), s_key.index(slot))
        mbarrier.wait(values_free.index(slot), turn ^ 1)
        mbarrier.expect(values_full.index(slot), d_values.block_type.nbytes)
        tma.async_copy_global_to_shared(
            d_values, [row, column], values_full.index(slot), s_values.index(slot)
        )


@gluon.jit
def _attend(
    p_query,  # [B·N, C]
    p_warped,  # [B·N, D]
    p_confidence,  # [B·N] float32
    p_logsumexp,  # [B·N] float32
    s_key,
    s_values,
    key_full,
    key_free,
    values_full,
    values_free,
    first,  # of its rows
    i_chunk,
    i_batch,
    N,
    M,
    count,
    scale,
    C: gl.constexpr,
    D: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_D: gl.constexpr,
    STAGES: gl.constexpr,
):
    """What multiplies: online softmax of BLOCK_N rows of queries over all keys."""
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_M, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [gl.num_warps(), 1], [16, BLOCK_D, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, scores, 2)
    weights: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    rows: gl.constexpr = gl.SliceLayout(1, scores)
    # Eight elements of a row per thread: one 16-byte load.
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])

    o_n = first + gl.arange(0, BLOCK_N, gl.SliceLayout(1, wide))
    o_c = gl.arange(0, C, gl.SliceLayout(0, wide))
    b_query = gl.load(
        p_query + (i_batch * N + o_n)[:, None] * C + o_c[None, :], mask=o_n[:, None] < N, other=0.0
    )
    # The queries stay in registers: no shared memory for them, and none read from it.
    b_query = gl.convert_layout(b_query, left)

    b_zero = gl.zeros([BLOCK_N, BLOCK_M], gl.float32, scores)
    b_acc = gl.zeros([BLOCK_N, BLOCK_D], gl.float32, sums)
    b_max = gl.full([BLOCK_N], float("-inf"), gl.float32, rows)
    b_sum = gl.zeros([BLOCK_N], gl.float32, rows)

    mbarrier.wait(key_full.index(0), 0)
    b_score = warpgroup_mma(b_query, s_key.index(0).permute((1, 0)), b_zero, use_acc=False)
    mbarrier.arrive(key_free.index(0), count=1)
    o_m = (count - 1) * BLOCK_M + gl.arange(0, BLOCK_M, gl.SliceLayout(0, scores))
    b_score = gl.where(o_m[None, :] < M, b_score, float("-inf"))

    for step in range(count - 1):
        slot = step % STAGES
        after = (step + 1) % STAGES
        mbarrier.wait(key_full.index(after), ((step + 1) // STAGES) & 1)
        b_next = warpgroup_mma(
            b_query, s_key.index(after).permute((1, 0)), b_zero, use_acc=False, is_async=True
        )
        b_weight, b_max, b_sum, b_decay = _softmax(b_score, b_max, b_sum, scale)
        b_acc = b_acc * gl.convert_layout(b_decay, gl.SliceLayout(1, sums))[:, None]
        b_weight = gl.convert_layout(b_weight.to(s_values.dtype), weights)
        mbarrier.wait(values_full.index(slot), (step // STAGES) & 1)
        b_acc = warpgroup_mma(b_weight, s_values.index(slot), b_acc, is_async=True)
        b_score, b_acc = warpgroup_mma_wait(0, deps=[b_next, b_acc])
        mbarrier.arrive(key_free.index(after), count=1)
        mbarrier.arrive(values_free.index(slot), count=1)

    last = (count - 1) % STAGES
    b_weight, b_max, b_sum, b_decay = _softmax(b_score, b_max, b_sum, scale)
    b_acc = b_acc * gl.convert_layout(b_decay, gl.SliceLayout(1, sums))[:, None]
    b_weight = gl.convert_layout(b_weight.to(s_values.dtype), weights)
    mbarrier.wait(values_full.index(last), ((count - 1) // STAGES) & 1)
    b_acc = warpgroup_mma(b_weight, s_values.index(last), b_acc)

    b_total = gl.convert_layout(b_sum, gl.SliceLayout(1, sums))
    o_n = first + gl.arange(0, BLOCK_N, gl.SliceLayout(1, sums))
    o_d = i_chunk * BLOCK_D + gl.arange(0, BLOCK_D, gl.SliceLayout(0, sums))
    gl.store(
        p_warped + (i_batch * N + o_n)[:, None] * D + o_d[None, :],
        (b_acc / b_total[:, None]).to(p_warped.dtype.element_ty),
        mask=(o_n[:, None] < N) & (o_d[None, :] < D),
    )
    if i_chunk == 0:
        o_row = first + gl.arange(0, BLOCK_N, rows)
        b_logsumexp = (b_max * scale + gl.log2(b_sum)) * 0.6931471805599453
        gl.store(p_confidence + i_batch * N + o_row, b_max, mask=o_row < N)
        gl.store(p_logsumexp + i_batch * N + o_row, b_logsumexp, mask=o_row < N)


@gluon.jit
def _softmax(b_score, b_max, b_sum, scale):
    """One step of the online softmax: weights, maximum, sum, and the decay of what came before."""
    b_new = gl.maximum(b_max, gl.max(b_score, 1))
    b_weight = gl.exp2(b_score * scale - (b_new * scale)[:, None])
    b_decay = gl.exp2((b_max - b_new) * scale)
    return b_weight, b_new, b_sum * b_decay + gl.sum(b_weight, 1), b_decay


@gluon.jit(do_not_specialize=["N", "M"])
def warp_kernel(
    p_query,  # [B, N, C]
    d_key,  # [B·M, C] in boxes of [BLOCK_M, C]
    d_values,  # [B·M, D] in boxes of [BLOCK_M, BLOCK_D]
    p_warped,  # [B, N, D]
    p_confidence,  # [B, N] float32
    p_logsumexp,  # [B, N] float32
    N,
    M,
    scale,  # log2(e) / τ
    C: gl.constexpr,
    D: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_D: gl.constexpr,
    STAGES: gl.constexpr,
):
    """softmax(Q Kᵀ / τ) V of one query tile over all keys.

    Boxes may pass the end of a batch item: those keys have no weight.
    """
    rows: gl.constexpr = BLOCK_N // 2  # of a multiplying partition
    chunks: gl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    i_chunk = gl.program_id(0) % chunks
    i_tile = gl.program_id(0) // chunks
    i_batch = gl.program_id(1)
    count = (M + BLOCK_M - 1) // BLOCK_M
    s_key = gl.allocate_shared_memory(d_key.dtype, [STAGES, BLOCK_M, C], d_key.layout)
    s_values = gl.allocate_shared_memory(
        d_values.dtype, [STAGES, BLOCK_M, BLOCK_D], d_values.layout
    )
    key_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    key_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    values_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    values_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(key_full.index(slot), count=1)
        mbarrier.init(key_free.index(slot), count=2)
        mbarrier.init(values_full.index(slot), count=1)
        mbarrier.init(values_free.index(slot), count=2)
    fence_async_shared()
    first = i_tile * BLOCK_N
    # Constants would not stay constant in a tuple that has a name.
    gl.warp_specialize(
        [
            (
                _attend,
                (
                    p_query, p_warped, p_confidence, p_logsumexp, s_key, s_values,
                    key_full, key_free, values_full, values_free, first, i_chunk, i_batch,
                    N, M, count, scale, C, D, rows, BLOCK_M, BLOCK_D, STAGES,
                ),
            ),
            (
                _attend,
                (
                    p_query, p_warped, p_confidence, p_logsumexp, s_key, s_values,
                    key_full, key_free, values_full, values_free, first + rows, i_chunk,
                    i_batch, N, M, count, scale, C, D, rows, BLOCK_M, BLOCK_D, STAGES,
                ),
            ),
            (
                _copy,
                (
                    d_key, d_values, s_key, s_values, key_full, key_free, values_full,
                    values_free, i_batch * M, i_chunk * BLOCK_D, count, BLOCK_M, STAGES,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


def tile_for(
    query: Tensor, key: Tensor, values: Tensor, key_mask: Tensor | None, table: tiles.Table
) -> tiles.Tile | None:
    """The tile of a problem that this form takes, and fills the GPU with; None for others.

    Half precision on Hopper, without a mask, C a power of two and D a multiple of 16.
    """
    channels, width = query.shape[2], values.shape[2]
    if not (
        table.capability == 90
        and query.is_cuda
        and query.dtype in {torch.float16, torch.bfloat16}
        and key_mask is None
        and channels >= 16
        and channels.bit_count() == 1
        and width % 16 == 0
        and max(t.numel() for t in (query, key, values)) < 2**31
    ):
        return None
    try:
        tile = table.find("gluon", channels, width, query.element_size())
    except ValueError:  # too wide for it
        return None
    batch, queries, _ = query.shape
    programs = tiles.cdiv(queries, tile.rows) * tiles.cdiv(width, tile.chunk) * batch
    return tile if choose_splits(programs, key.shape[1], tile, table.multiprocessors) == 1 else None


def layouts(element: gl.dtype, block_m: int, channels: int, block_d: int):
    """Shared-memory layouts of a key box and of a value box."""
    return tuple(
        gl.NVMMASharedLayout.get_default_for([block_m, width], element)
        for width in (channels, block_d)
    )


def forward(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    *,
    tile: tiles.Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch on contiguous tensors in half precision, C a power of two and D a multiple of 16.

    Returns:
        As :func:`pikfix.kernels.correlation_warp_triton.forward`.
    """
    batch, queries, channels = query.shape
    keys, width = values.shape[1:]
    block_d = min(tiles.padded(width), tile.chunk)
    element = gl.float16 if query.dtype == torch.float16 else gl.bfloat16
    boxes = layouts(element, tile.columns, channels, block_d)
    warped = query.new_empty(batch, queries, width)
    confidence, logsumexp = (query.new_empty(batch, queries, dtype=torch.float32) for _ in range(2))
    descriptors = (
        TensorDescriptor.from_tensor(tensor.flatten(0, 1), [tile.columns, columns], box)
        for tensor, columns, box in zip((key, values), (channels, block_d), boxes, strict=True)
    )
    d_key, d_values = descriptors
    grid = (tiles.cdiv(queries, tile.rows) * tiles.cdiv(width, block_d), batch)
    with tiles.on_device(query.device):
        warp_kernel[grid](
            p_query=query,
            d_key=d_key,
            d_values=d_values,
            p_warped=warped,
            p_confidence=confidence,
            p_logsumexp=logsumexp,
            N=queries,
            M=keys,
            scale=LOG2_E / temperature,
            C=channels,
            D=width,
            BLOCK_N=tile.rows,
            BLOCK_M=tile.columns,
            BLOCK_D=block_d,
            STAGES=tile.num_stages,
            num_warps=NUM_WARPS,
        )
    return warped, confidence, logsumexp
