"""ONNX translations of the operators, for ``torch.onnx.export(..., dynamo=True)``.

The table is chosen by the runtime that will execute the graph: on a CPU the N x M map is made and
used in blocks of queries, which stay in the caches and keep memory linear; a GPU has the products
over the whole map. ONNX Runtime's GPU providers may fuse the standard ``Attention`` operator;
TensorRT's takes neither a softmax in float32 nor values of another width than the keys.
"""

# Translations have the operators' own parameters.
# ruff: noqa: PLR0917
# The bodies of `Scan` are onnxscript, a language of its own in Python's clothes.
# mypy: disable-error-code="type-arg,misc,arg-type,no-any-return,type-var"

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op18
from onnxscript import opset23 as op23
from onnxscript.values import Opset

TranslationTable = dict[Callable[..., Any], Callable[..., Any]]

# The opset each runtime's table needs: pass it as ``opset_version`` to torch.onnx.export.
OPSETS = {"onnxruntime": 18, "onnxruntime-cuda": 18, "onnxruntime-gpu": 23, "tensorrt": 23}

# Elements of the map that are held at a time: 4 MB in float32.
_BLOCK_ELEMENTS = 1 << 20
# Fewer queries than this would read the keys from memory more often than compute with them.
_MIN_ROWS = 32

# Where functions with a body for `Scan` are until the exporter puts them in place.
_LOCAL = Opset("pikfix", 1)

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


def _widened(op: Any, warped: Any, fp32_output: bool) -> Any:
    return op.Cast(warped, to=1) if fp32_output else warped


def _matmul_chain(
    query: Any,
    key: Any,
    values: Any,
    temperature: float,
    key_mask: Any = None,
    fp32_output: bool = False,
) -> tuple[Any, Any, Any]:
    op: Any = op18
    scores = _scaled_scores(op, query, key, temperature, key_mask)
    weights = op.Softmax(scores, axis=-1)
    warped = op.MatMul(weights, _drop_masked(op, values, key_mask))
    best = _row_maximum(op, scores, key_mask)
    confidence = op.Mul(best, op.CastLike(op.Constant(value_float=temperature), best))
    return _widened(op, warped, fp32_output), confidence, _logsumexp(op, scores)


# The bodies take keys and values from outside, so that no block copies them.
@script(_LOCAL, default_opset=op18)
def _warp_blocks(blocks, key, values) -> tuple[FLOAT[...], FLOAT[...]]:  # type: ignore[no-untyped-def]
    @graph()
    def body(block):  # type: ignore[no-untyped-def]
        scores = op18.MatMul(block, key)
        warped = op18.MatMul(op18.Softmax(scores, axis=-1), values)
        best = op18.ReduceMax(scores, op18.Constant(value_ints=[-1]), keepdims=1)
        return warped, best

    warped, best = op18.Scan(blocks, body=body, num_scan_inputs=1)
    return warped, best


@script(_LOCAL, default_opset=op18)
def _logsumexp_blocks(blocks, key) -> FLOAT[...]:  # type: ignore[no-untyped-def]
    @graph()
    def body(block):  # type: ignore[no-untyped-def]
        scores = op18.MatMul(block, key)
        return op18.ReduceLogSumExp(scores, op18.Constant(value_ints=[-1]), keepdims=1)

    return op18.Scan(blocks, body=body, num_scan_inputs=1)


def _in_blocks(
    query: Any,
    key: Any,
    values: Any,
    temperature: float,
    key_mask: Any = None,
    fp32_output: bool = False,
) -> tuple[Any, Any, Any]:
    """The same numbers as `_matmul_chain`, in memory that is linear in queries and keys."""
    op: Any = op18
    scaled = op.Mul(query, op.CastLike(op.Constant(value_float=1 / temperature), query))
    if key_mask is not None:
        # One more channel: its product is 0 for a key that counts, and `_MASKED` for another.
        away = op.CastLike(op.Not(key_mask), key)
        away = op.Mul(away, op.CastLike(op.Constant(value_float=_MASKED), key))
        key = op.Concat(key, op.Unsqueeze(away, op.Constant(value_ints=[2])), axis=2)
        ones = op.Constant(value_ints=[0, 0, 0, 0, 0, 1])
        scaled = op.Pad(scaled, ones, op.CastLike(op.Constant(value_float=1.0), scaled))
    blocks, restore = _cut(op, scaled, key)
    turned = op.Transpose(key, perm=[0, 2, 1])
    warped, best = _warp_blocks(blocks, turned, _drop_masked(op, values, key_mask))
    logsumexp = restore(_logsumexp_blocks(blocks, turned))
    last = op.Constant(value_ints=[2])
    best = op.Squeeze(restore(best), last)
    if key_mask is not None:
        nothing = op.CastLike(op.Constant(value_float=0.0), best)
        best = op.Where(_any_key(op, key_mask), best, nothing)
    confidence = op.Mul(best, op.CastLike(op.Constant(value_float=temperature), best))
    return _widened(op, restore(warped), fp32_output), confidence, op.Squeeze(logsumexp, last)


def _cut(op: Any, query: Any, key: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Queries [B, N, C] as blocks [n, B, rows, C], and what joins [n, B, rows, D] to [B, N, D]."""

    def number(value: int) -> Any:
        return op.Constant(value_ints=[value])

    def up(count: Any, by: Any) -> Any:
        return op.Div(op.Sub(op.Add(count, by), number(1)), by)

    batch, queries = op.Shape(query, start=0, end=1), op.Shape(query, start=1, end=2)
    held = op.Mul(batch, op.Shape(key, start=1, end=2))
    count = up(queries, op.Max(op.Div(number(_BLOCK_ELEMENTS), held), number(_MIN_ROWS)))
    rows = up(queries, count)
    missing = op.Sub(op.Mul(count, rows), queries)
    nothing = op.Constant(value_ints=[0, 0, 0, 0])
    padded = op.Pad(query, op.Concat(nothing, missing, number(0), axis=0))
    split = op.Reshape(padded, op.Concat(batch, count, rows, number(-1), axis=0))

    def join(blocks: Any) -> Any:
        whole = op.Transpose(blocks, perm=[1, 0, 2, 3])
        whole = op.Reshape(whole, op.Concat(batch, op.Mul(count, rows), number(-1), axis=0))
        return op.Slice(whole, number(0), queries, number(1))

    return op.Transpose(split, perm=[1, 0, 2, 3]), join


def _attention(
    query: Any,
    key: Any,
    values: Any,
    temperature: float,
    key_mask: Any = None,
    fp32_output: bool = False,
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
    warped = _widened(op, op.Squeeze(attended, axis), fp32_output)
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
    scaled, bins = _in_sigmas(op, ab, centres, sigma)
    distance = op.Sub(op.Unsqueeze(scaled, op.Constant(value_ints=[2])), bins)
    histogram = op.Softmax(op.Neg(op.Mul(distance, distance)), axis=2)
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


def _in_sigmas(op: Any, ab: Any, centres: Any, sigma: float) -> tuple[Any, Any]:
    """Colours, and centres [1, 2, K, 1, 1], in units in which -d^2 is the exponent."""
    inverse = op.CastLike(op.Constant(value_float=math.sqrt(0.5) / sigma), ab)
    bins = op.Unsqueeze(op.CastLike(centres, ab), op.Constant(value_ints=[0, 3, 4]))
    return op.Mul(ab, inverse), op.Mul(bins, inverse)


# One picture at a time: the bins of all pixels are K times as large as the picture.
@script(_LOCAL, default_opset=op18)
def _sphist_pictures(ab, bins, window: Sequence[int]) -> FLOAT[...]:  # type: ignore[no-untyped-def]
    @graph()
    def body(picture):  # type: ignore[no-untyped-def]
        distance = op18.Sub(op18.Unsqueeze(picture, op18.Constant(value_ints=[0, 2])), bins)
        histogram = op18.Softmax(op18.Neg(op18.Mul(distance, distance)), axis=2)
        size = op18.Shape(picture, start=1, end=3)
        shape = op18.Concat(op18.Constant(value_ints=[1, -1]), size, axis=0)
        flat = op18.Reshape(histogram, shape)
        pooled = op18.AveragePool(flat, kernel_shape=window, strides=window)
        return op18.Squeeze(pooled, op18.Constant(value_ints=[0]))

    return op18.Scan(ab, body=body, num_scan_inputs=1)


def _sphist_one_by_one(ab: Any, centres: Any, sigma: float, pool: int) -> Any:
    scaled, bins = _in_sigmas(op18, ab, centres, sigma)
    return _sphist_pictures(scaled, bins, window=[pool, pool])


def translation_table(runtime: str) -> TranslationTable:
    """Return the ``custom_translation_table`` of one runtime.

    Args:
        runtime: "onnxruntime" (CPU provider), "onnxruntime-cuda" (CUDA and TensorRT provider),
            "onnxruntime-gpu", which gets ``Attention``, or "tensorrt". Each needs
            ``opset_version=OPSETS[runtime]``.

    Returns:
        One translation for each operator of this package.

    Raises:
        ValueError: an unknown runtime.

    """
    if runtime not in OPSETS:
        raise ValueError(f"runtime must be one of {sorted(OPSETS)}; got {runtime!r}")
    warps = {"onnxruntime": _in_blocks, "onnxruntime-gpu": _attention}
    warp = warps.get(runtime, _matmul_chain)
    histogram = _sphist_one_by_one if runtime == "onnxruntime" else _sphist
    operators = torch.ops.pikfix
    return {
        operators.correlation_warp.default: warp,
        operators.center_normalize.default: _center_normalize,
        operators.sphist.default: histogram,
    }
