"""The prologue of the warp: centre features over positions, scale them to unit length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pikfix.kernels import checks


@torch.library.custom_op("pikfix::center_normalize", mutates_args=(), device_types="cpu")
def _op(features: Tensor, eps: float) -> Tensor:
    x = features if features.dtype == torch.float64 else features.float()
    x = x - x.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.div_(torch.hypot(norm, norm.new_tensor(eps))).to(features.dtype)


@_op.register_kernel("cuda")
def _cuda(features: Tensor, eps: float) -> Tensor:
    # Triton is imported where a GPU needs it: the CPU does without.
    from pikfix.kernels import center_normalize_triton  # noqa: PLC0415

    return center_normalize_triton.forward(features, eps)


@_op.register_fake
def _fake(features: Tensor, eps: float) -> Tensor:
    return torch.empty_like(features, memory_format=torch.contiguous_format)


@torch.library.custom_op("pikfix::center_normalize_backward", mutates_args=(), device_types="cpu")
def _backward_op(grad: Tensor, features: Tensor, eps: float) -> Tensor:
    x = features if features.dtype == torch.float64 else features.float()
    x = x - x.mean(dim=1, keepdim=True)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    length = torch.hypot(norm, norm.new_tensor(eps))
    unit = x.div_(length)
    grad = grad.to(unit.dtype)
    grad = (grad - unit * (grad * unit).sum(dim=-1, keepdim=True)).div_(length)
    return (grad - grad.mean(dim=1, keepdim=True)).to(features.dtype)


@_backward_op.register_kernel("cuda")
def _cuda_backward(grad: Tensor, features: Tensor, eps: float) -> Tensor:
    from pikfix.kernels import center_normalize_triton  # noqa: PLC0415

    return center_normalize_triton.backward(grad, features, eps)


@_backward_op.register_fake
def _backward_fake(grad: Tensor, features: Tensor, eps: float) -> Tensor:
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, eps = inputs
    ctx.save_for_backward(features)
    ctx.eps = eps


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (features,) = ctx.saved_tensors
    return _backward_op(grad, features, ctx.eps), None


_op.register_autograd(_backward, setup_context=_setup_context)


def center_normalize(features: Tensor, eps: float = 1e-5) -> Tensor:
    """Subtract the mean over positions per channel, then divide by the L2 norm over channels.

    Pik-Fix (Xu et al., WACV 2023), sec. 3.2. Sums are taken in float32.

    Args:
        features: [B, N, C], float16, bfloat16, float32 or float64.
        eps: a length that is added in quadrature to the norm, so that a zero-norm position
            gives zeros and its gradient stays finite.

    Returns:
        [B, N, C] in the dtype of features.

    Raises:
        ValueError: features are not a non-empty [B, N, C] of floats, or eps is not positive.

    """
    name = "center_normalize"
    if not checks.is_tensor(features, 3) or features.dtype not in checks.FLOAT_DTYPES:
        checks.fail(name, "features [B, N, C] of floats", features=features)
    if checks.is_empty(features):
        checks.fail(name, "at least one batch item, position and channel", features=features)
    if not checks.is_positive(eps):
        checks.fail(name, "eps > 0", eps=eps)
    result: Tensor = torch.ops.pikfix.center_normalize(features, float(eps))
    return result
