"""The CPU twin of the warp: PyTorch's own products over chunks of queries.

A chunk holds its rows of the N x M map and nothing else does, so memory is linear in N and M.
Three forms, chosen by dtype and by what the processor has:

- float32 (float64): products and softmax in that precision.
- bfloat16 with AVX512-BF16 but no tiles: PyTorch's fused attention has no bfloat16 products
  there, plain products do, but they round their result. So each row is shifted by an estimate
  of its maximum *inside* the product (one more channel), where the sum is still float32: what
  is rounded is the distance to the maximum, which is small where the weight is not.
- bfloat16 or float16 with tiles (AMX): PyTorch's fused attention, padded to equal widths
  (unequal ones fall back to the unfused path).

A screen in int8 (a quarter of the float32 product's time) estimates the maximum and bounds
every correlation from above; keys that no query of the chunk can give weight to are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pikfix.kernels import cpu

# Elements of the map that are held at a time: 2 to 4 MB, which stays in the caches.
_CHUNK_ELEMENTS = 1 << 20
# Fewer rows than this would read the keys from memory more often than compute with them.
_MIN_ROWS = 32
# Queries that are screened together: more would share fewer useless keys.
_SCREEN_ROWS = 128
# Rows that are quantised at a time.
_QUANTISED_ROWS = 512
# Below this many keys the screen, and bfloat16 with it, costs more than it saves.
_SCREEN_KEYS = 512
# Key counts are rounded up to one of so many: every new size compiles new products.
_SIZES = 16
# Weights the screen may drop, as a share of a row's sum.
_DROPPED = {torch.float32: 1e-6, torch.bfloat16: 1e-4}
# exp(-70) / 65536 is still a normal float32: subnormal weights slow the product tenfold on
# some processors.
_FLOOR = 70.0


def reduced_form(dtype: torch.dtype) -> str:
    """How this processor runs a dtype: "attention", "shifted" or "float32"."""
    if dtype == torch.bfloat16 and cpu.has_bfloat16_tiles():
        return "attention"
    if dtype == torch.float16 and cpu.has_float16_tiles():
        return "attention"
    if dtype == torch.bfloat16 and cpu.multiplies_bfloat16() and cpu.multiplies_bytes():
        return "shifted"
    return "float32"


def _compute_dtype(query: Tensor) -> torch.dtype:
    """Bfloat16 for float32 inputs too, where the user allowed it for matrix products."""
    if query.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
        return torch.bfloat16
    return query.dtype


def _chunk_rows(keys: int) -> int:
    return max(_MIN_ROWS, _CHUNK_ELEMENTS // keys)


@dataclass
class _Quantised:
    """Rows in int8, and what bounds the error of their products: lengths are [n, 1]."""

    rows: Tensor  # [n, C] int8
    scale: Tensor  # [n, 1], or one number for all
    error: Tensor  # length of row - scale * int8 row
    length: Tensor  # length of row

    @staticmethod
    def of(rows: Tensor, per_row: bool) -> _Quantised:
        n = rows.shape[0]
        low, high = torch.aminmax(rows, dim=1, keepdim=True) if per_row else torch.aminmax(rows)
        scale = torch.maximum(-low, high).float().clamp_min_(1e-30) / 127
        made = _Quantised(
            torch.empty(rows.shape, dtype=torch.int8),
            scale,
            torch.empty(n, 1),
            torch.empty(n, 1),
        )
        # Blocks that stay in the cache: over the whole, every operation would go through memory.
        for top in range(0, n, _QUANTISED_ROWS):
            block = slice(top, top + _QUANTISED_ROWS)
            values = rows[block].float()
            unit = scale[block] if per_row else scale
            made.length[block] = _lengths(values)
            rounded = (values / unit).round_()
            made.rows[block] = rounded
            made.error[block] = _lengths(values.addcmul(rounded, unit, value=-1))
        return made


def _lengths(rows: Tensor) -> Tensor:
    # Three times as fast as linalg.vector_norm over short rows.
    return rows.square().sum(dim=1, keepdim=True).sqrt_()


def _survivors(reach: Tensor) -> Tensor | None:
    """Indices of the keys that reach into some row; None where they are most of the keys.

    Others fill the count up to a round size, since every new size compiles new products.
    """
    alive = reach >= 0
    step = -(-reach.shape[0] // _SIZES)
    kept = alive.nonzero()[:, 0]
    count = -(-kept.shape[0] // step) * step
    # None are left where the inputs are not numbers: those then show in the result.
    if count == 0 or count > 0.7 * reach.shape[0]:
        return None
    filling = alive.logical_not_().nonzero()[: count - kept.shape[0], 0]
    return torch.cat([kept, filling])


def _margin(keys: int, temperature: float, dtype: torch.dtype) -> float:
    """Distance below the maximum at which all the keys together have a negligible weight."""
    return temperature * math.log(keys / _DROPPED[dtype])


def _float_rows(
    query: Tensor, key: Tensor, values: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Warped, confidence and log-sum-exp of some queries in float32 or float64."""
    scores = query @ key.T
    best = scores.amax(dim=1, keepdim=True)
    torch.clamp(scores, min=best - _FLOOR * temperature, out=scores)
    weights = torch.softmax(scores.mul_(1 / temperature), dim=1)
    logsumexp = best / temperature - weights.amax(dim=1, keepdim=True).log()
    return weights @ values, best, logsumexp


def _shifted_rows(
    query: Tensor, key: Tensor, values: Tensor, temperature: float, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same in bfloat16; key has a last channel of ones, shift is near the row maximum."""
    shift = shift.to(query.dtype)
    scores = torch.cat([query, -shift], dim=1) @ key.T
    weights = scores.mul_(1 / temperature).exp_()
    # Non-negative bfloat16 numbers are ordered as their bits are, and integers compare faster.
    largest = weights.view(torch.int16).amax(dim=1, keepdim=True).view(torch.bfloat16).float()
    total = weights.sum(dim=1, keepdim=True, dtype=torch.float32)
    best = shift.float() + largest.log() * temperature
    logsumexp = shift.float() / temperature + total.log()
    return (weights @ values).float().div_(total), best, logsumexp


def _screened(
    query: Tensor, key: Tensor, values: Tensor, temperature: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of one batch item, each on the keys that the int8 screen leaves over."""
    few, many = _Quantised.of(query, per_row=True), _Quantised.of(key, per_row=False)
    unit = few.scale * many.scale
    # |q·k - unit (int8 product)| <= |q| |error of k| + |error of q| (|k| + |error of k|)
    bound = few.length * many.error.amax() + few.error * (many.length + many.error).amax()
    margin = _margin(key.shape[0], temperature, query.dtype)
    lowest = ((2 * bound + margin) / unit).ceil_().clamp_max_(2**30).int()
    shifted = query.dtype == torch.bfloat16
    if shifted:
        key = F.pad(key, (0, 1), value=1)
    screen_keys, rows = many.rows.T, min(_SCREEN_ROWS, _chunk_rows(key.shape[0]))
    for top in range(0, query.shape[0], rows):
        part = slice(top, top + rows)
        scores = torch._int_mm(few.rows[part], screen_keys)
        best = scores.amax(dim=1, keepdim=True)
        estimate = best * unit[part]
        kept = _survivors(scores.sub_(best.sub_(lowest[part])).amax(dim=0))
        k, v = key, values
        if kept is not None:
            k, v = k.index_select(0, kept), v.index_select(0, kept)
        if shifted:
            yield _shifted_rows(query[part], k, v, temperature, estimate)
        else:
            yield _float_rows(query[part], k, v, temperature)


def _row_maximum(query: Tensor, key: Tensor) -> Tensor:
    """Row maximum of Q Kᵀ from reduced products, exact to float32 sums: [N, 1] float32.

    A first product gives an estimate; a second one, shifted to just below it in its own sum,
    rounds next to nothing. Both maxima are above zero, so their bits compare as integers.
    """
    key = torch.cat([key, key.new_ones(key.shape[0], 1)], dim=1).T
    reach = torch.linalg.vector_norm(query.float(), dim=1, keepdim=True) * float(
        torch.linalg.vector_norm(key[:-1].float(), dim=0).amax()
    )
    lift = (2 * reach).clamp_min_(1e-6).to(query.dtype)
    for _ in range(2):
        scores = (torch.cat([query, lift], dim=1) @ key).view(torch.int16)
        best: Tensor = scores.amax(dim=1, keepdim=True).view(query.dtype).float() - lift.float()
        lift = (0.05 * reach - best).to(query.dtype)
    return best


def _attention(
    query: Tensor, key: Tensor, values: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One batch item through PyTorch's fused attention, and the maximum beside it."""
    width = -(-max(query.shape[1], values.shape[1]) // 32) * 32
    padded = [F.pad(t, (0, width - t.shape[1]))[None, None] for t in (query, key, values)]
    # The public function would give the same, without the log-sum-exp.
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    warped, logsumexp = fused(*padded, scale=1 / temperature)
    parts = torch.split(query, _chunk_rows(key.shape[0]))
    best = torch.cat([_row_maximum(part, key) for part in parts])
    return warped[0, 0, :, : values.shape[1]], best, logsumexp.reshape(-1, 1)


def _one_item(
    query: Tensor, key: Tensor, values: Tensor, temperature: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of (warped [n, D], maximum [n, 1], log-sum-exp [n, 1]) of one batch item.

    One at a time: results that were kept between the chunks' large temporary tensors would
    split the heap, and memory would grow with the number of chunks.
    """
    form = reduced_form(query.dtype)
    if form == "attention":
        yield _attention(query, key, values, temperature)
        return
    if key.shape[0] < _SCREEN_KEYS:
        form = "float32"
    if form == "float32" and query.dtype != torch.float64:
        query, key, values = query.float(), key.float(), values.float()
    if form == "shifted" or _worth_a_screen(query, key, temperature):
        yield from _screened(query, key, values, temperature)
        return
    for part in torch.split(query, _chunk_rows(key.shape[0])):
        yield _float_rows(part, key, values, temperature)


def _worth_a_screen(query: Tensor, key: Tensor, temperature: float) -> bool:
    """Whether a screen could leave out keys of a float32 product."""
    if query.dtype != torch.float32 or key.shape[0] < _SCREEN_KEYS or not cpu.multiplies_bytes():
        return False
    reach = float(_lengths(query).amax()) * float(_lengths(key).amax())
    return _margin(key.shape[0], temperature, torch.float32) < 0.5 * reach


def forward(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    *,
    fp32_output: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Warped [B, N, D] (float32 if fp32_output), confidence [B, N] and log-sum-exp [B, N]."""
    batch, queries, _ = query.shape
    statistics = torch.float64 if query.dtype == torch.float64 else torch.float32
    out_dtype = torch.float32 if fp32_output else values.dtype
    warped = values.new_zeros(batch, queries, values.shape[2], dtype=out_dtype)
    confidence = query.new_zeros(batch, queries, dtype=statistics)
    logsumexp = query.new_zeros(batch, queries, dtype=statistics)
    dtype = _compute_dtype(query)
    for b in range(batch):
        kept = slice(None) if key_mask is None else key_mask[b]
        k, v = key[b][kept].to(dtype), values[b][kept].to(dtype)
        if k.shape[0] == 0:
            continue
        top = 0
        for part, best, total in _one_item(query[b].to(dtype), k, v, temperature):
            rows = slice(top, top + part.shape[0])
            top = rows.stop
            warped[b, rows], confidence[b, rows], logsumexp[b, rows] = part, best[:, 0], total[:, 0]
    return warped, confidence, logsumexp


def backward(
    grad_warped: Tensor,
    grad_confidence: Tensor | None,
    *,
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and values; the map is computed again, chunk by chunk.

    Scores, weights and their gradient are float32 whatever the inputs are: the difference
    dP - Δ cancels, and rounded factors would leave little of it. The three products that
    follow run in bfloat16 where the inputs are bfloat16 and the processor gains from it.
    """
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    narrow = query.dtype if reduced_form(query.dtype) != "float32" else wide
    contiguous = torch.contiguous_format
    grads = [torch.zeros_like(t, memory_format=contiguous) for t in (query, key, values)]
    for b in range(query.shape[0]):
        kept = slice(None) if key_mask is None else key_mask[b]
        k, v = key[b][kept].to(wide), values[b][kept].to(wide)
        if k.shape[0] == 0:
            continue
        narrow_k = k.to(narrow)
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        rows = _chunk_rows(k.shape[0])
        for top in range(0, query.shape[1], rows):
            part = slice(top, top + rows)
            q, grad_out = query[b, part].to(wide), grad_warped[b, part].to(wide)
            scores = q @ k.T
            best = scores.argmax(dim=1) if grad_confidence is not None else None
            weights = torch.softmax(scores.mul_(1 / temperature), dim=1)
            flow = grad_out @ v.T
            flow.sub_((weights * flow).sum(dim=1, keepdim=True)).mul_(weights)
            flow = flow.mul_(1 / temperature).to(narrow)
            grad_q = (flow @ narrow_k).to(wide)
            grad_k.add_(flow.T @ q.to(narrow))
            if needs[2]:
                grad_v.add_(weights.to(narrow).T @ grad_out.to(narrow))
            if grad_confidence is not None and best is not None:
                peak = grad_confidence[b, part, None].to(wide)
                grad_q.add_(peak * k[best])
                grad_k.index_add_(0, best, peak * q)
            grads[0][b, part] = grad_q
        grads[1][b, kept], grads[2][b, kept] = grad_k.to(key.dtype), grad_v.to(values.dtype)
    return grads[0], grads[1], grads[2]
