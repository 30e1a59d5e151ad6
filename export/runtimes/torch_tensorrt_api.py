"""All calls into `torch_tensorrt`, which this module and the plugin's alone import."""

from __future__ import annotations

from typing import Any

import torch
import torch_tensorrt  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch_tensorrt.dynamo._defaults import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    TIMING_CACHE_PATH,
)

from pikfix.export.profiles import Profile
from pikfix.export.runtimes.engines import EngineOptions


def build_from_program(
    program: torch.export.ExportedProgram, profile: Profile, options: EngineOptions
) -> bytes:
    """Build an engine whose outputs are called output0, output1, ... in their order.

    Args:
        program: from `pikfix.export.runtimes.programs`, on the GPU.
        profile: a range for every input.
        options: how to build.

    Returns:
        The serialized engine.

    Raises:
        RuntimeError: torch-tensorrt has no converter for an operator, or TensorRT no
            implementation; the message names it.
    """
    # Its annotation speaks of sequences of sequences; its text and its code, of these.
    inputs: list[Any] = [
        torch_tensorrt.Input(
            min_shape=ranges.smallest,
            opt_shape=ranges.common,
            max_shape=ranges.largest,
            dtype=torch.float32,
            name=name,
        )
        for name, ranges in profile.ranges.items()
    ]
    engine: bytes = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine(
        program,
        arg_inputs=inputs,
        assume_dynamic_shape_support=True,
        require_full_compilation=True,
        disable_tf32=True,
        truncate_double=True,
        immutable_weights=True,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        optimization_level=options.optimization_level,
        workspace_size=options.workspace_bytes,
        timing_cache_path=str(options.timing_cache or TIMING_CACHE_PATH),
    )
    return engine
