"""The correlation-softmax warp: one operator that never writes the N x M map."""

# torch.library wants the tensors of an operator positional.
# ruff: noqa: PLR0917

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pikfix.kernels import checks, correlation_warp_cpu


def _statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.custom_op("pikfix::correlation_warp", mutates_args=(), device_types="cpu")
def _op(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None = None,
    fp32_output: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    # Autocast would turn the float32 products inside into bfloat16 ones.
    with torch.autocast("cpu", enabled=False):
        return correlation_warp_cpu.forward(
            query, key, values, temperature, key_mask, fp32_output=fp32_output
        )


@_op.register_kernel("cuda")
def _cuda(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None = None,
    fp32_output: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    # Triton is imported where a GPU needs it: the CPU does without.
    from pikfix.kernels import correlation_warp_triton  # noqa: PLC0415

    return correlation_warp_triton.forward(
        query, key, values, temperature, key_mask, fp32_output=fp32_output
    )


@_op.register_fake
def _fake(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None = None,
    fp32_output: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, _ = query.shape
    statistics = _statistics_dtype(query.dtype)
    warped_dtype = torch.float32 if fp32_output else values.dtype
    return (
        values.new_empty(batch, queries, values.shape[2], dtype=warped_dtype),
        query.new_empty(batch, queries, dtype=statistics),
        query.new_empty(batch, queries, dtype=statistics),
    )


# Gradients that `needs` does not ask for come back empty.
@torch.library.custom_op("pikfix::correlation_warp_backward", mutates_args=(), device_types="cpu")
def _backward_op(
    grad_warped: Tensor,
    grad_confidence: Tensor | None,
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    warped: Tensor,
    logsumexp: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast("cpu", enabled=False):
        grads = correlation_warp_cpu.backward(
            grad_warped,
            grad_confidence,
            query=query,
            key=key,
            values=values,
            temperature=temperature,
            key_mask=key_mask,
            needs=(needs[0], needs[1], needs[2]),
        )
    return _asked_for(grads, needs, query)


@_backward_op.register_kernel("cuda")
def _cuda_backward(
    grad_warped: Tensor,
    grad_confidence: Tensor | None,
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    warped: Tensor,
    logsumexp: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    from pikfix.kernels import correlation_warp_backward_triton  # noqa: PLC0415

    grads = correlation_warp_backward_triton.backward(
        grad_warped,
        grad_confidence,
        query=query,
        key=key,
        values=values,
        temperature=temperature,
        key_mask=key_mask,
        warped=warped,
        logsumexp=logsumexp,
        needs=(needs[0], needs[1], needs[2]),
    )
    return _asked_for(grads, needs, query)


def _asked_for(
    grads: tuple[Tensor | None, ...], needs: list[bool], query: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (
        grad if asked and grad is not None else query.new_empty(0)
        for grad, asked in zip(grads, needs, strict=True)
    )
    return first, second, third


@_backward_op.register_fake
def _backward_fake(
    grad_warped: Tensor,
    grad_confidence: Tensor | None,
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None,
    warped: Tensor,
    logsumexp: Tensor,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grads = tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (query, key, values)
    )
    return _asked_for(grads, needs, query)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, values, ctx.temperature, key_mask, _ = inputs
    warped, _, logsumexp = output
    ctx.mark_non_differentiable(logsumexp)
    # None instead of zeros where an output has no gradient: the maximum often has none.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, values, key_mask, warped, logsumexp)


def _backward(
    ctx: Any,
    grad_warped: Tensor | None,
    grad_confidence: Tensor | None,
    _grad_logsumexp: Tensor | None,
) -> tuple[Tensor | None, ...]:
    query, key, values, key_mask, warped, logsumexp = ctx.saved_tensors
    if grad_warped is None:
        grad_warped = torch.zeros_like(warped)
    needs = list(ctx.needs_input_grad[:3])
    grads = _backward_op(
        grad_warped,
        grad_confidence,
        query,
        key,
        values,
        ctx.temperature,
        key_mask,
        warped,
        logsumexp,
        needs,
    )
    asked = (grad if need else None for grad, need in zip(grads, needs, strict=True))
    return (*asked, None, None, None)


_op.register_autograd(_backward, setup_context=_setup_context)


_NAME = "correlation_warp"


def _check_tensors(query: Tensor, key: Tensor, values: Tensor) -> None:
    tensors = {"query": query, "key": key, "values": values}
    if not all(checks.is_tensor(tensor, 3) for tensor in tensors.values()):
        checks.fail(_NAME, "query [B, N, C], key [B, M, C], values [B, M, D]", **tensors)
    if any(tensor.dtype not in checks.FLOAT_DTYPES for tensor in tensors.values()):
        checks.fail(_NAME, "tensors of floats", **tensors)
    if not query.device == key.device == values.device:
        checks.fail(_NAME, "tensors on one device", **tensors)
    if any(checks.is_empty(tensor) for tensor in tensors.values()):
        checks.fail(_NAME, "at least one batch item, position and channel", **tensors)
    if checks.differ(query.shape[2], key.shape[2]):
        checks.fail(_NAME, "query and key of one channel count C", query=query, key=key)
    if checks.differ(key.shape[1], values.shape[1]):
        checks.fail(_NAME, "key and values of one position count M", key=key, values=values)
    if any(checks.differ(query.shape[0], tensor.shape[0]) for tensor in (key, values)):
        checks.fail(_NAME, "tensors of one batch size B", **tensors)


def _check_mask(key_mask: Tensor, key: Tensor) -> None:
    if not checks.is_tensor(key_mask, 2) or key_mask.dtype != torch.bool:
        checks.fail(_NAME, "key_mask [B, M] of bool", key_mask=key_mask)
    if any(checks.differ(*sizes) for sizes in zip(key_mask.shape, key.shape[:2], strict=True)):
        checks.fail(_NAME, "key_mask [B, M] as key [B, M, C]", key_mask=key_mask, key=key)
    if key_mask.device != key.device:
        checks.fail(_NAME, "key_mask on the device of key", key_mask=key_mask, key=key)


def correlation_warp(
    query: Tensor,
    key: Tensor,
    values: Tensor,
    temperature: float,
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Warp values by the softmax of the correlation, without writing the N x M map.

    warped = softmax(Q Kᵀ / τ) V and confidence = max_j (Q Kᵀ)_ij: Pik-Fix (Xu et al., WACV
    2023), sec. 3.2; the confidence follows the released code. Memory is linear in N and M in
    both directions. Gradients reach query, key and values from both outputs; the gradient of
    the maximum goes to one key where several share it. Under autocast the tensors are cast as
    they are for a matrix product.

    Args:
        query: [B, N, C], centred over positions and of unit L2 norm over C
            (:func:`pikfix.kernels.center_normalize`).
        key: [B, M, C], likewise.
        values: [B, M, D].
        temperature: τ > 0; 0.005 to 0.01 in the paper's line of work.
        key_mask: [B, M] bool, True = the key takes part. None: all do.

    Returns:
        warped [B, N, D] in the dtype of values; confidence [B, N] in float32 (float64 for
        float64 inputs), in [-1, 1]. Both are zero where no key takes part.

    Raises:
        ValueError: a wrong shape, dtype or device, an empty tensor, or a temperature that is
            not positive.

    """
    _check_tensors(query, key, values)
    if not checks.is_positive(temperature):
        checks.fail(_NAME, "temperature > 0", temperature=temperature)
    if key_mask is not None:
        _check_mask(key_mask, key)
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, values = (
            tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
            for tensor in (query, key, values)
        )
    if not query.dtype == key.dtype == values.dtype:
        checks.fail(
            _NAME, "query, key and values of one dtype", query=query, key=key, values=values
        )
    # The backward pass cancels with the warped values: it keeps them in float32.
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, values))
    fp32_output = learning and query.dtype in (torch.float16, torch.bfloat16)
    warped, confidence, _ = torch.ops.pikfix.correlation_warp(
        query, key, values, float(temperature), key_mask, fp32_output
    )
    return warped.to(values.dtype), confidence
