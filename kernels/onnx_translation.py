"""ONNX translations of the operators, for ``torch.onnx.export(..., dynamo=True)``.

The table is chosen by the runtime that will execute the graph: ONNX Runtime's CPU provider is
fastest with MatMul-Softmax-MatMul, a GPU runtime may fuse the standard ``Attention`` operator.
"""

# Translations have the operators' own parameters.
# ruff: noqa: PLR0917

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op18
from onnxscript import opset23 as op23

TranslationTable = dict[Callable[..., Any], Callable[..., Any]]

# The opset each runtime's table needs: pass it as ``opset_version`` to torch.onnx.export.
OPSETS = {"onnxruntime": 18, "onnxruntime-gpu": 23, "tensorrt": 23}

# Far below every correlation over τ, and finite, so that a row without keys stays finite.
_MASKED = -1e30


def _row_maximum(op: Any, scores: Any, key_mask: Any) -> Any:
    best = op.ReduceMax(scores, op.Constant(value_ints=[-1]), keepdims=0)
    if key_mask is None:
        return best
    return op.Where(_any_key(op, key_mask), best, op.CastLike(op.Constant(value_float=0.0), best))


def _any_key(op: Any, key_mask: Any) -> Any:
    counts = op.ReduceMax(op.Cast(key_mask, to=1), op.Constant(value_ints=[1]), keepdims=1)
    return op.Greater(counts, op.Constant(value_float=0.0))


def _drop_masked(op: Any, values: Any, key_mask: Any) -> Any:
    """Zero values of masked keys: then a row without keys gives zeros, not their mean."""
    if key_mask is None:
        return values
    return op.Mul(values, op.CastLike(op.Unsqueeze(key_mask, op.Constant(value_ints=[2])), values))


def _masked_scores(op: Any, scores: Any, key_mask: Any) -> Any:
    if key_mask is None:
        return scores
    fill = op.CastLike(op.Constant(value_float=_MASKED), scores)
    return op.Where(op.Unsqueeze(key_mask, op.Constant(value_ints=[1])), scores, fill)


def _logsumexp(op: Any, scores: Any) -> Any:
    return op.ReduceLogSumExp(scores, op.Constant(value_ints=[-1]), keepdims=0)


def _scaled_scores(op: Any, query: Any, key: Any, temperature: float, key_mask: Any) -> Any:
    # The smaller factor carries 1/τ: one pass over N x C instead of one over N x M.
    scaled = op.Mul(query, op.CastLike(op.Constant(value_float=1 / temperature), query))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 2, 1]))
    return _masked_scores(op, scores, key_mask)


def _widened(op: Any, warped: Any, wide: bool) -> Any:
    return op.Cast(warped, to=1) if wide else warped


def _matmul_chain(
    query: Any, key: Any, values: Any, temperature: float, key_mask: Any = None, wide: bool = False
) -> tuple[Any, Any, Any]:
    op: Any = op18
    scores = _scaled_scores(op, query, key, temperature, key_mask)
    weights = op.Softmax(scores, axis=-1)
    warped = op.MatMul(weights, _drop_masked(op, values, key_mask))
    best = _row_maximum(op, scores, key_mask)
    confidence = op.Mul(best, op.CastLike(op.Constant(value_float=temperature), best))
    return _widened(op, warped, wide), confidence, _logsumexp(op, scores)


def _attention(
    query: Any, key: Any, values: Any, temperature: float, key_mask: Any = None, wide: bool = False
) -> tuple[Any, Any, Any]:
    op: Any = op23
    axis = op.Constant(value_ints=[1])
    mask = None if key_mask is None else op.Unsqueeze(key_mask, op.Constant(value_ints=[1, 2]))
    if mask is not None:
        # A row without keys attends to all of them, whose values are zero.
        mask = op.Or(
            mask, op.Not(op.Unsqueeze(_any_key(op, key_mask), op.Constant(value_ints=[1, 2])))
        )
        rows = op.Shape(query, start=1, end=2)
        ones = op.Constant(value_ints=[1])
        columns = op.Shape(key, start=1, end=2)
        mask = op.Expand(mask, op.Concat(ones, ones, rows, columns, axis=0))
    attended, *_ = op.Attention(
        op.Unsqueeze(query, axis),
        op.Unsqueeze(key, axis),
        op.Unsqueeze(_drop_masked(op, values, key_mask), axis),
        mask,
        scale=1 / temperature,
        softmax_precision=1,
    )
    scores = _masked_scores(op, op.MatMul(query, op.Transpose(key, perm=[0, 2, 1])), key_mask)
    scaled = op.Div(scores, op.CastLike(op.Constant(value_float=temperature), scores))
    warped = _widened(op, op.Squeeze(attended, axis), wide)
    return warped, _row_maximum(op, scores, key_mask), _logsumexp(op, scaled)


def _center_normalize(features: Any, eps: float) -> Any:
    op: Any = op18
    centred = op.Sub(features, op.ReduceMean(features, op.Constant(value_ints=[1])))
    norm = op.ReduceL2(centred, op.Constant(value_ints=[-1]))
    # Not hypot's sum of squares: onnxscript's optimiser takes an added 1e-10 for a zero and drops
    # it, and a single position, whose centred features are zero, would give NaN.
    floor = op.CastLike(op.Constant(value_float=eps), norm)
    return op.Div(centred, op.Max(norm, floor))


def _sphist(ab: Any, centres: Any, sigma: float, pool: int) -> Any:
    op: Any = op18
    inverse = op.CastLike(op.Constant(value_float=1 / sigma), ab)
    bins = op.Unsqueeze(op.CastLike(centres, ab), op.Constant(value_ints=[0, 3, 4]))
    distance = op.Mul(op.Sub(op.Unsqueeze(ab, op.Constant(value_ints=[2])), bins), inverse)
    half = op.CastLike(op.Constant(value_float=-0.5), ab)
    histogram = op.Softmax(op.Mul(op.Mul(distance, distance), half), axis=2)
    # [B, 2, K, H, W] -> [B, 2K, H, W]
    shape = op.Concat(
        op.Shape(ab, start=0, end=1),
        op.Constant(value_ints=[-1]),
        op.Shape(ab, start=2, end=4),
        axis=0,
    )
    histogram = op.Reshape(histogram, shape)
    if pool == 1:
        return histogram
    return op.AveragePool(histogram, kernel_shape=[pool, pool], strides=[pool, pool])


def translation_table(runtime: str) -> TranslationTable:
    """Return the ``custom_translation_table`` of one runtime.

    Args:
        runtime: "onnxruntime" (CPU provider), "onnxruntime-gpu" or "tensorrt". The last two
            use ``Attention`` and need ``opset_version=OPSETS[runtime]``.

    Returns:
        One translation for each operator of this package.

    Raises:
        ValueError: an unknown runtime.

    """
    if runtime not in OPSETS:
        raise ValueError(f"runtime must be one of {sorted(OPSETS)}; got {runtime!r}")
    warp = _matmul_chain if runtime == "onnxruntime" else _attention
    operators = torch.ops.pikfix
    return {
        operators.correlation_warp.default: warp,
        operators.center_normalize.default: _center_normalize,
        operators.sphist.default: _sphist,
    }
