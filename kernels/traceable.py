"""The forward operators as programs of kernels, for compilers that build the kernels in.

The operators of the other modules are opaque: a compiled program calls them by name, and needs
this package where it runs. `torch.library.triton_op` shows the compiler the launches instead, and
Inductor compiles them into what it writes. Sizes may be symbolic.
"""

# torch.library wants the tensors of an operator positional.
# ruff: noqa: PLR0917

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op, wrap_triton

import pikfix.kernels  # noqa: F401 - registers the operators
from pikfix.kernels import center_normalize_triton, correlation_warp_triton, sphist_triton


@triton_op("pikfix::correlation_warp_traceable", mutates_args=())
def _correlation_warp(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None = None,
    fp32_output: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    return correlation_warp_triton.forward(
        query, key, values, temperature, key_mask, fp32_output=fp32_output, launcher=wrap_triton
    )


@triton_op("pikfix::center_normalize_traceable", mutates_args=())
def _center_normalize(features: Tensor, eps: float) -> Tensor:
    return center_normalize_triton.forward(features, eps, launcher=wrap_triton)


@triton_op("pikfix::sphist_traceable", mutates_args=())
def _sphist(ab: Tensor, centres: Tensor, sigma: float, pool: int) -> Tensor:
    return sphist_triton.forward(ab, centres, sigma, pool, launcher=wrap_triton)


TRACEABLE: dict[Any, Any] = {
    torch.ops.pikfix.correlation_warp.default: torch.ops.pikfix.correlation_warp_traceable.default,
    torch.ops.pikfix.center_normalize.default: torch.ops.pikfix.center_normalize_traceable.default,
    torch.ops.pikfix.sphist.default: torch.ops.pikfix.sphist_traceable.default,
}
"""The traceable form of each operator, with the same arguments."""
