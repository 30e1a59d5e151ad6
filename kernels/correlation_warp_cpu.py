"""The CPU twin of the warp: PyTorch's own products over chunks of queries.

A chunk holds its rows of the N x M map and nothing else does, so memory is linear in N and M.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of the map that are held at a time: 8 MB of float32, which stays in the cache.
_CHUNK_ELEMENTS = 1 << 21


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunk_rows(queries: int, keys: int) -> int:
    return max(1, min(queries, _CHUNK_ELEMENTS // max(1, keys)))


def forward(
    query: Tensor, key: Tensor, values: Tensor, temperature: float, key_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Warped [B, N, D], confidence [B, N] and log-sum-exp [B, N]."""
    batch, queries, _ = query.shape
    dtype = _accumulator(query.dtype)
    warped = values.new_zeros(batch, queries, values.shape[2])
    confidence = query.new_zeros(batch, queries, dtype=dtype)
    logsumexp = query.new_zeros(batch, queries, dtype=dtype)
    for b in range(batch):
        k, v = key[b].to(dtype), values[b].to(dtype)
        if key_mask is not None:
            k, v = k[key_mask[b]], v[key_mask[b]]
        if k.shape[0] == 0:
            continue
        rows = _chunk_rows(queries, k.shape[0])
        for top in range(0, queries, rows):
            part = slice(top, top + rows)
            scores = query[b, part].to(dtype) @ k.T
            best = scores.amax(dim=1, keepdim=True)
            weights = scores.sub_(best).mul_(1 / temperature).exp_()
            total = weights.sum(dim=1, keepdim=True)
            warped[b, part] = (weights @ v).div_(total)
            confidence[b, part] = best[:, 0]
            logsumexp[b, part] = (best / temperature + total.log())[:, 0]
    return warped, confidence, logsumexp


def backward(
    grad_warped: Tensor,
    grad_confidence: Tensor,
    *,
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and values; the map is computed again, chunk by chunk."""
    queries = query.shape[1]
    dtype = _accumulator(query.dtype)
    grads = [
        torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (query, key, values)
    ]
    for b in range(query.shape[0]):
        k, v = key[b].to(dtype), values[b].to(dtype)
        if key_mask is not None:
            k, v = k[key_mask[b]], v[key_mask[b]]
        if k.shape[0] == 0:
            continue
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        rows = _chunk_rows(queries, k.shape[0])
        for top in range(0, queries, rows):
            part = slice(top, top + rows)
            q, grad_out = query[b, part].to(dtype), grad_warped[b, part].to(dtype)
            scores = q @ k.T
            best = scores.argmax(dim=1)
            weights = scores.mul_(1 / temperature).sub_(logsumexp[b, part, None]).exp_()
            grad_v.addmm_(weights.T, grad_out)
            grad_scores = grad_out @ v.T
            delta = (weights * grad_scores).sum(dim=1, keepdim=True)
            grad_scores.sub_(delta).mul_(weights).mul_(1 / temperature)
            peak = grad_confidence[b, part, None].to(dtype)
            grads[0][b, part] = (grad_scores @ k).add_(peak * k[best])
            grad_k.addmm_(grad_scores.T, q).index_add_(0, best, peak * q)
        if key_mask is None:
            grads[1][b], grads[2][b] = grad_k, grad_v
        else:
            grads[1][b, key_mask[b]] = grad_k.to(key.dtype)
            grads[2][b, key_mask[b]] = grad_v.to(values.dtype)
    return grads[0], grads[1], grads[2]
