import collections
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch.export import Dim

from pikfix.kernels import center_normalize, correlation_warp, naive, onnx_translation, sphist
from pikfix.kernels.onnx_translation import OPSETS, translation_table

CHANNELS = 8


class Warp(torch.nn.Module):
    """The similarity sub-net's use of the operators, with a parameter before each."""

    def __init__(self, operations, masked):
        super().__init__()
        self.operations = operations
        self.masked = masked
        self.embed = torch.nn.Parameter(torch.eye(CHANNELS) + 0.1)
        self.centres = torch.nn.Parameter(torch.linspace(-1, 1, 6))

    def forward(self, query, key, ab, key_mask):
        ops = self.operations
        query = ops.center_normalize(query @ self.embed)
        key = ops.center_normalize(key @ self.embed)
        values = ops.sphist(ab, self.centres, 0.1, 2).flatten(2).transpose(1, 2)
        return ops.correlation_warp(query, key, values, 0.01, key_mask if self.masked else None)


class Fused:
    center_normalize = staticmethod(center_normalize)
    correlation_warp = staticmethod(correlation_warp)
    sphist = staticmethod(sphist)


def inputs(batch, queries, height, width):
    keys = height * width // 4
    key_mask = torch.rand(batch, keys) > 0.3
    key_mask[0] = False
    return (
        torch.randn(batch, queries, CHANNELS),
        torch.randn(batch, keys, CHANNELS),
        torch.rand(batch, 2, height, width) * 2 - 1,
        key_mask,
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("runtime", sorted(OPSETS))
def test_exported_graph_matches_the_naive_twin_at_other_sizes(runtime, masked):
    torch.manual_seed(1)
    session = session_of(runtime, masked)
    for sizes in ((2, 12, 6, 8), (3, 7, 4, 10), (1, 33, 2, 4)):
        agrees(session, masked, inputs(*sizes))


def program(runtime, *, masked):
    auto = Dim.AUTO
    program = torch.onnx.export(
        Warp(Fused, masked).eval(),
        inputs(2, 12, 6, 8),
        dynamo=True,
        verbose=False,
        opset_version=OPSETS[runtime],
        custom_translation_table=translation_table(runtime),
        dynamic_shapes=(
            {0: auto, 1: auto},
            {0: auto, 1: auto},
            {0: auto, 2: auto, 3: auto},
            {0: auto, 1: auto},
        ),
    )
    graph = program.model_proto.graph
    kinds = collections.Counter(node.op_type for node in graph.node)
    assert kinds["Attention"] == (1 if runtime == "onnxruntime-gpu" else 0)
    assert kinds["ReduceLogSumExp"] == 0, "the statistics of the backward pass are dead code"
    assert not {node.domain for node in graph.node} - {"", "ai.onnx"}
    return program.model_proto.SerializeToString()


def session_of(runtime, masked):
    return onnxruntime.InferenceSession(program(runtime, masked=masked))


def agrees(session, masked, arguments):
    """The session's answers are those of the plain twin."""
    with torch.no_grad():
        expected = Warp(naive, masked)(*arguments)
    names = [i.name for i in session.get_inputs()]
    feed = {i: a.numpy() for i, a in zip(names, arguments, strict=False)}
    for got, want in zip(session.run(None, feed), expected, strict=True):
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=5e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_queries_join_to_the_whole(monkeypatch, masked):
    # Six blocks of 5 rows and one of 3, with both photos of a batch in each.
    monkeypatch.setattr(onnx_translation, "_BLOCK_ELEMENTS", 2 * 10 * 5)
    monkeypatch.setattr(onnx_translation, "_MIN_ROWS", 1)
    torch.manual_seed(2)
    session = session_of("onnxruntime", masked)
    agrees(session, masked, inputs(2, 33, 4, 10))


def test_memory_is_linear_in_queries_and_keys(tmp_path):
    """The map of 8192 queries and keys would take 256 MB, and its softmax as much again."""
    path = tmp_path / "warp.onnx"
    path.write_bytes(program("onnxruntime", masked=False))
    code = (
        "import resource, sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "names = [i.name for i in session.get_inputs()]\n"
        "values = [numpy.ones((1, 8192, 8), 'f'), numpy.ones((1, 8192, 8), 'f'),"
        " numpy.ones((1, 2, 128, 256), 'f'), numpy.ones((1, 8192), bool)]\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "session.run(None, dict(zip(names, values)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(answer.stdout) < 100_000, "kilobytes"


def test_an_unknown_runtime_is_refused():
    with pytest.raises(ValueError, match="'coreml'"):
        translation_table("coreml")
