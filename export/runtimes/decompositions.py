"""This project's operators in operators that every compiler knows, for compilers of ATen graphs.

Like the naive twins they compute in float32 and round once, at the end.
"""

# torch calls these with the positional arguments of its own operators.
# ruff: noqa: PLR0917

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pikfix.kernels  # noqa: F401 - registers the operators
from pikfix.kernels import naive


def _correlation_warp(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None = None,
    fp32_output: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    correlation = query.float() @ key.float().transpose(1, 2)
    empty = None
    if key_mask is not None:
        correlation = correlation.masked_fill(~key_mask[:, None, :], -torch.inf)
        empty = ~key_mask.any(dim=1)[:, None]
    confidence = correlation.amax(dim=-1)
    scores = correlation / temperature
    weights, logsumexp = torch.softmax(scores, dim=-1), torch.logsumexp(scores, dim=-1)
    if empty is not None:
        weights = weights.masked_fill(empty[..., None], 0)
        confidence, logsumexp = (t.masked_fill(empty, 0) for t in (confidence, logsumexp))
    warped = weights @ values.float()
    return warped if fp32_output else warped.to(values.dtype), confidence, logsumexp


WARP: Any = torch.ops.pikfix.correlation_warp.default

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    WARP: _correlation_warp,
    torch.ops.pikfix.center_normalize.default: naive.center_normalize,
    torch.ops.pikfix.sphist.default: naive.sphist,
}
