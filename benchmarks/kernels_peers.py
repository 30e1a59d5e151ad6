"""What the kernel benchmark compares: every implementation of the warp that can run here."""

# A library is imported where it is used: not every machine has every one.
# ruff: noqa: PLC0415

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pikfix.kernels import correlation_warp

Outputs = tuple[Tensor, Tensor | None]
TEMPERATURE = 0.005
SIGMA = 0.1


@dataclass(frozen=True)
class Problem:
    """Inputs in float32, and the centres that the values are histograms of."""

    features: str
    query: Tensor  # [1, N, C]
    key: Tensor  # [1, M, C]
    values: Tensor  # [1, M, 2K]
    centres: Tensor  # [K]

    @property
    def label(self) -> str:
        """The widths (C, D) and the kind of features."""
        return f"{self.query.shape[2]}, {self.values.shape[2]}, {self.features}"


@dataclass(frozen=True)
class Peer:
    """One implementation with its inputs bound.

    ``executed`` are the FLOPs per pair with padding; ``maximum`` says whether the row maximum
    is part of what is timed; ``tolerance`` bounds the relative error before it is timed.
    """

    name: str
    dtype: str
    run: Callable[[], Outputs]
    executed: int
    maximum: bool
    tolerance: float


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


_TOLERANCES = {torch.float32: 1e-3, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def _naive(query: Tensor, key: Tensor, values: Tensor) -> Outputs:
    scores = query @ key.transpose(1, 2)
    weights = torch.softmax(scores / TEMPERATURE, dim=-1)
    return weights @ values, scores.amax(dim=-1)


def _row_maximum(query: Tensor, key: Tensor) -> Tensor:
    """The pass that attention without a maximum is charged with, a block of rows at a time."""
    blocks = torch.split(query, 512, dim=1)
    return torch.cat([(block @ key.transpose(1, 2)).amax(dim=-1) for block in blocks], dim=1)


def _attention_peers(problem: Problem, dtype: torch.dtype) -> Iterator[Peer]:
    """PyTorch's fused attention on each backend, padded to equal widths, with a max pass."""
    query, key, values = (t.to(dtype) for t in (problem.query, problem.key, problem.values))
    width = max(query.shape[2], values.shape[2])
    unit = 8 if query.is_cuda else 32
    width = -(-width // unit) * unit
    padded = [F.pad(t, (0, width - t.shape[2]))[:, None] for t in (query, key, values)]
    backends = {"flash": SDPBackend.FLASH_ATTENTION}
    if query.is_cuda:
        backends["efficient"] = SDPBackend.EFFICIENT_ATTENTION
        backends["cudnn"] = SDPBackend.CUDNN_ATTENTION
    for name, backend in backends.items():
        for maximum in (True, False):

            def run(backend: SDPBackend = backend, maximum: bool = maximum) -> Outputs:
                # One backend allowed: another one taking over silently would be an error.
                with sdpa_kernel(backend):
                    warped = F.scaled_dot_product_attention(*padded, scale=1 / TEMPERATURE)
                warped = warped[:, 0, :, : values.shape[2]]
                return warped, _row_maximum(query, key) if maximum else None

            yield Peer(
                name=f"SDPA {name}, padded" + (", max pass" if maximum else ""),
                dtype=_short(dtype),
                run=run,
                executed=4 * width + (2 * query.shape[2] if maximum else 0),
                maximum=maximum,
                tolerance=_TOLERANCES[dtype],
            )


def _own_peers(problem: Problem, dtype: torch.dtype) -> Iterator[Peer]:
    tensors = [t.to(dtype) for t in (problem.query, problem.key, problem.values)]
    channels, width = tensors[0].shape[2], tensors[2].shape[2]
    tolerance = _TOLERANCES[dtype]
    yield Peer(
        name="pikfix correlation_warp",
        dtype=_short(dtype),
        run=lambda: correlation_warp(*tensors, TEMPERATURE),
        executed=2 * (channels + width),
        maximum=True,
        tolerance=tolerance,
    )


class _Warp(torch.nn.Module):
    def forward(self, query: Tensor, key: Tensor, values: Tensor) -> Outputs:
        return correlation_warp(query, key, values, TEMPERATURE)


def _onnx_peers(problem: Problem, threads: int) -> Iterator[Peer]:
    """ONNX Runtime on the CPU: this project's own exported chain, and standard Attention."""
    import onnxruntime

    from pikfix.kernels.onnx_translation import OPSETS, translation_table

    tensors = (problem.query, problem.key, problem.values)
    feed = {name: t.numpy() for name, t in zip(("query", "key", "values"), tensors, strict=True)}
    channels, width = tensors[0].shape[2], tensors[2].shape[2]
    for name, runtime, executed in (
        ("ORT MatMul-Softmax-MatMul", "onnxruntime", 2 * (channels + width)),
        ("ORT Attention-23", "onnxruntime-gpu", 2 * (2 * channels + width)),
    ):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "warp.onnx"
            torch.onnx.export(
                _Warp().eval(),
                tensors,
                path,
                dynamo=True,
                verbose=False,
                opset_version=OPSETS[runtime],
                custom_translation_table=translation_table(runtime),
            )
            session = onnxruntime.InferenceSession(path, options)

        def run(session: Any = session) -> Outputs:
            warped, confidence = session.run(None, feed)
            return torch.from_numpy(warped), torch.from_numpy(confidence)

        yield Peer(name, "fp32", run, executed, maximum=True, tolerance=1e-3)


def _flex_peers(problem: Problem, dtype: torch.dtype) -> Iterator[Peer]:
    """FlexAttention: the one peer that takes unequal widths and returns the maximum."""
    from torch.nn.attention import flex_attention as flex

    request = getattr(flex, "AuxRequest", None)
    if request is None:
        return
    # A variant that met the compiler's limit of recompilations would run uncompiled.
    torch._dynamo.reset()
    compiled = torch.compile(flex.flex_attention, dynamic=False)
    tensors = [t.to(dtype)[:, None] for t in (problem.query, problem.key, problem.values)]

    def run() -> Outputs:
        warped, aux = compiled(
            *tensors, scale=1 / TEMPERATURE, return_aux=request(lse=True, max_scores=True)
        )
        return warped[:, 0], aux.max_scores[:, 0] * TEMPERATURE

    executed = 2 * (tensors[0].shape[3] + tensors[2].shape[3])
    yield Peer("FlexAttention", _short(dtype), run, executed, True, _TOLERANCES[dtype])


def _flash_peers(problem: Problem, dtype: torch.dtype) -> Iterator[Peer]:
    """FlashAttention-3 or -4, where installed; padded to equal widths up to 256."""
    width = max(problem.query.shape[2], problem.values.shape[2])
    if width > 256:
        return
    sources = (problem.query, problem.key, problem.values)
    padded = [F.pad(t.to(dtype), (0, width - t.shape[2]))[:, :, None] for t in sources]
    for name, module in (
        ("FlashAttention-3", "flash_attn_interface"),
        ("FlashAttention-4", "flash_attn.cute"),
    ):
        if importlib.util.find_spec(module.split(".", maxsplit=1)[0]) is None:
            continue
        attend = importlib.import_module(module).flash_attn_func

        def run(attend: Any = attend) -> Outputs:
            result = attend(*padded, softmax_scale=1 / TEMPERATURE)
            warped = result[0] if isinstance(result, tuple) else result
            return warped[:, :, 0, : problem.values.shape[2]], None

        yield Peer(name, _short(dtype), run, 4 * width, False, _TOLERANCES[dtype])


def peers(problem: Problem, threads: int) -> Iterator[Callable[[], Iterator[Peer]]]:
    """Families of peers; building one may fail where its library cannot run."""
    cuda = problem.query.is_cuda
    dtypes = (torch.float16, torch.bfloat16) if cuda else (torch.float32, torch.bfloat16)

    def naive() -> Iterator[Peer]:
        tensors = (problem.query, problem.key, problem.values)
        executed = 2 * (problem.query.shape[2] + problem.values.shape[2])
        yield Peer(
            "matmul, softmax, matmul", "fp32", lambda: _naive(*tensors), executed, True, 1e-3
        )

    yield naive
    if not cuda:
        yield lambda: _onnx_peers(problem, threads)
    for dtype in dtypes:
        yield lambda dtype=dtype: _attention_peers(problem, dtype)
        if cuda:
            yield lambda dtype=dtype: _flex_peers(problem, dtype)
            yield lambda dtype=dtype: _flash_peers(problem, dtype)
        yield lambda dtype=dtype: _own_peers(problem, dtype)
