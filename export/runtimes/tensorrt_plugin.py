"""The correlation warp as a TensorRT plugin: its own kernel, as PTX inside the engine.

A "quickly deployable" plugin, compiled ahead of time: running the engine needs neither Python nor
Triton, and Triton's tensorrt backend serves it as any other. Needs TensorRT 10.15 or newer.

TensorRT compares the annotations of these functions with types, so they must not be text: this
module has no `from __future__ import annotations`.
"""

# TensorRT passes a plugin its tensors and numbers one by one.
# ruff: noqa: PLR0917

import functools
from dataclasses import replace
from typing import Any, Tuple, Union  # noqa: UP035 - the forms that TensorRT's check knows

import numpy as np
import tensorrt as trt  # type: ignore[import-not-found,unused-ignore]
import tensorrt.plugin as trtp  # type: ignore[import-not-found,import-untyped,unused-ignore]
import torch
from torch_tensorrt.dynamo.conversion.plugins import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    generate_plugin_converter,
)

from pikfix.export.errors import ExportError
from pikfix.export.runtimes.engines import EngineOptions
from pikfix.export.runtimes.programs import ENGINE_WARP_NAME, use_engine_warp
from pikfix.kernels.correlation_warp_ptx import compile_warp

Temperature = np.ndarray[Any, np.dtype[np.float64]]
"""How torch-tensorrt passes a number to a plugin: an array of one."""

Outputs = Tuple[trtp.TensorDesc, trtp.TensorDesc, trtp.TensorDesc]  # noqa: UP006
Kernel = Tuple[  # noqa: UP006
    Union[str, bytes], Union[str, bytes], trtp.KernelLaunchParams, trtp.SymExprs  # noqa: UP007
]


def prepare(
    program: torch.export.ExportedProgram, options: EngineOptions
) -> tuple[torch.export.ExportedProgram, EngineOptions]:
    """Give a program's warps to the plugin.

    Args:
        program: from `trace_by_name` with `keep_warp`.
        options: how to build.

    Returns:
        The program, and the options without those that would let another GPU or version load a
        kernel that was compiled for this one.
    """
    register()
    compatible = replace(options, version_compatible=False, hardware_compatible=False)
    return use_engine_warp(program), compatible


@functools.cache
def register() -> None:
    """Register plugin and converter, once in a process.

    No `autotune` function: without one, TensorRT takes the types of the strongly typed network and
    linear layouts, and those are the only ones the kernel has.
    """
    trtp.register(ENGINE_WARP_NAME)(describe)
    trtp.aot_impl(ENGINE_WARP_NAME)(launch)
    generate_plugin_converter(
        ENGINE_WARP_NAME, supports_dynamic_shapes=True, use_aot_if_available=True
    )


def describe(
    query: trtp.TensorDesc,
    key: trtp.TensorDesc,
    values: trtp.TensorDesc,
    temperature: Temperature,
) -> Outputs:
    """Shapes and types of warped [B, N, D], confidence [B, N] and log-sum-exp [B, N]."""
    batch, queries = query.shape_expr[0], query.shape_expr[1]
    warped = trtp.from_shape_expr((batch, queries, values.shape_expr[2]), dtype=values.dtype)
    confidence = trtp.from_shape_expr((batch, queries), dtype=trt.float32)
    logsumexp = trtp.from_shape_expr((batch, queries), dtype=trt.float32)
    return warped, confidence, logsumexp


def launch(
    query: trtp.TensorDesc,
    key: trtp.TensorDesc,
    values: trtp.TensorDesc,
    temperature: Temperature,
    outputs: Outputs,
    tactic: int,
) -> Kernel:
    """The kernel for this GPU, its launch and its integers, by the shapes of a call."""
    major, minor = torch.cuda.get_device_capability()
    elements = {trt.float16: "fp16", trt.bfloat16: "bf16", trt.float32: "fp32"}
    compiled = compile_warp(
        10 * major + minor,
        _constant(query.shape_expr[2], "channels of the features"),
        _constant(values.shape_expr[2], "channels of the colours"),
        elements[query.dtype],
        float(np.asarray(temperature).reshape(())),
    )
    batch, queries, keys = query.shape_expr[0], query.shape_expr[1], key.shape_expr[1]
    parameters = trtp.KernelLaunchParams()
    parameters.grid_x = trtp.cdiv(queries, compiled.rows) * compiled.chunks
    parameters.grid_z = batch
    parameters.block_x = compiled.threads
    parameters.shared_mem = compiled.shared
    integers = trtp.SymIntExprs(3)
    for position, expression in enumerate((batch, queries, keys)):
        integers[position] = trtp.SymInt32(expression)
    return compiled.name, compiled.ptx, parameters, integers


def _constant(expression: Any, what: str) -> int:
    if not expression.is_constant:
        raise ExportError(f"the plugin's kernel is compiled for a fixed number of {what}")
    return int(expression.constant_value())
