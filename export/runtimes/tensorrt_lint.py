"""What TensorRT's ONNX parser refuses, said before TensorRT is asked.

The rules are those of onnx-tensorrt's importers, as far as a network of this project may come
upon them, and one of its arithmetic. The tests hold each to TensorRT's own parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, helper, shape_inference

OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant
    ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div
    Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements
    GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
    GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish Hardmax
    Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean
    MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or
    PRelu Pad Pow QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike
    RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
    Reshape Resize ReverseSequence RoiAlign RotaryEmbedding Round STFT Scan ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
    SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose
    Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905 - 140 names read better as text
)
"""ONNX's operators that have an importer."""

_TYPES = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "FLOAT16",
    TensorProto.BFLOAT16: "BFLOAT16",
    TensorProto.DOUBLE: "DOUBLE",
    TensorProto.INT32: "INT32",
    TensorProto.INT64: "INT64",
    TensorProto.INT8: "INT8",
    TensorProto.BOOL: "BOOL",
}
_MOST_DIMENSIONS = 8
_OLDEST_OPSET = 7


@dataclass
class _Graph:
    """What the rules ask about: the types and ranks of values, and the nodes that make them."""

    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, list[int | None]] = field(default_factory=dict)
    makers: dict[str, NodeProto] = field(default_factory=dict)

    def last(self, name: str) -> int | None:
        """The last dimension of a value, if it is known."""
        shape = self.shapes.get(name)
        return shape[-1] if shape else None


Rule = Callable[[NodeProto, Mapping[str, Any], _Graph], Iterator[str]]


def _resize(node: NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> Iterator[str]:
    if attributes.get("antialias"):
        yield "antialias is not supported"
    if attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        yield "keep_aspect_ratio_policy must be stretch"
    mode = attributes.get("coordinate_transformation_mode", b"half_pixel")
    if mode in (b"half_pixel_symmetric", b"tf_crop_and_resize"):
        yield f"coordinate_transformation_mode {mode.decode()} is not supported"


def _attention(node: NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> Iterator[str]:
    if "softmax_precision" in attributes:
        yield "softmax_precision is not supported"
    if attributes.get("softcap"):
        yield "softcap is not supported"
    if sum(bool(name) for name in node.output) > 1:
        yield "only one output is supported"
    if any(node.input[4:6]):
        yield "past_key and past_value are not supported"
    widths = {graph.last(name) for name in node.input[:3]}
    if len(widths) > 1:
        yield f"query, key and values must have one width, which must be known; got {widths}"


def _batch_normalization(
    node: NodeProto, attributes: Mapping[str, Any], graph: _Graph
) -> Iterator[str]:
    if attributes.get("training_mode"):
        yield "training_mode is not supported"


def _scatter(node: NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> Iterator[str]:
    if attributes.get("reduction", b"none") != b"none":
        yield "reduction is not supported"


def _constant(node: NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> Iterator[str]:
    for name in ("sparse_value", "value_string", "value_strings"):
        if name in attributes:
            yield f"{name} is not supported"


def _mod(node: NodeProto, attributes: Mapping[str, Any], graph: _Graph) -> Iterator[str]:
    maker = graph.makers.get(node.input[0])
    if maker is not None and maker.op_type == "Neg" and not attributes.get("fmod"):
        yield "the remainder of a negative number is negative on TensorRT, unlike ONNX's"


_RULES: dict[str, Rule] = {
    "Attention": _attention,
    "BatchNormalization": _batch_normalization,
    "Constant": _constant,
    "Mod": _mod,
    "Resize": _resize,
    "ScatterND": _scatter,
}


def refusals(path: Path) -> list[str]:
    """Why TensorRT would refuse an ONNX file, or compute something else with it.

    Args:
        path: of the file.

    Returns:
        A line for each reason, with node and rule; empty where there is none.
    """
    model = onnx.load(path)
    lines = [
        f"opset {opset.version} is older than {_OLDEST_OPSET}"
        for opset in model.opset_import
        if opset.domain in ("", "ai.onnx") and opset.version < _OLDEST_OPSET
    ]
    graph = _known(model)
    for node in _nodes(model.graph):
        where = f"{node.op_type} {node.name or '/'.join(node.output)}"
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            lines.append(f"{where}: TensorRT has no such operator")
            continue
        if node.op_type in _RULES:
            lines += [f"{where}: {rule}" for rule in _RULES[node.op_type](node, attributes, graph)]
        lines += [f"{where}: {rule}" for rule in _values(node, graph)]
    return lines


def _values(node: NodeProto, graph: _Graph) -> Iterator[str]:
    """Types and ranks, of what a node makes and of constants that it takes."""
    for name in (*node.input, *node.output):
        if name in node.input and name in graph.makers:
            continue  # said of its maker
        kind = graph.types.get(name)
        if kind and kind not in _TYPES:
            yield f"{name} is {TensorProto.DataType.Name(kind)}, which is not supported"
        shape = graph.shapes.get(name)
        if shape is not None and len(shape) > _MOST_DIMENSIONS:
            yield f"{name} has {len(shape)} dimensions, {_MOST_DIMENSIONS} is the most"


def _nodes(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """All nodes, those of branches and loops included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _known(model: onnx.ModelProto) -> _Graph:
    # Of a copy without weights: inference wants names, types and shapes only.
    inferred = shape_inference.infer_shapes(model, data_prop=False).graph
    known = _Graph()
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        kind = value.type.tensor_type
        known.types[value.name] = kind.elem_type
        if kind.HasField("shape"):
            known.shapes[value.name] = [
                d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim
            ]
    for initializer in model.graph.initializer:
        known.types[initializer.name] = initializer.data_type
        known.shapes[initializer.name] = list(initializer.dims)
    for node in _nodes(model.graph):
        known.makers.update(dict.fromkeys(node.output, node))
    return known
