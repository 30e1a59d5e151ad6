"""Compile every tile configuration for its GPU on a machine without one.

``python -m pikfix.kernels.cross_compile`` prints one JSON line per kernel and configuration:
shared memory, registers and spills as the assembler reports them, and which matrix instruction
the PTX uses. Compiling does not enforce the GPU's shared memory: the reader compares.
"""

# mypy: disable-error-code="import-untyped,no-untyped-call"

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from pikfix.kernels import (
    center_normalize_triton,
    correlation_warp_backward_triton,
    correlation_warp_gluon,
    correlation_warp_triton,
    sphist_triton,
    tiles,
)

_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_ELEMENTS = {2: "fp16", 4: "fp32"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One kernel with one configuration for one GPU."""

    name: str
    kernel: Any
    table: tiles.Table
    pointers: dict[str, str]  # parameter -> element type
    constants: dict[str, Any]
    floats: tuple[str, ...]
    num_warps: int
    num_stages: int
    matrix: bool  # multiplies matrices
    descriptors: dict[str, str] = dataclasses.field(default_factory=dict)
    """Types of the boxes that are copied in bulk, by parameter; Gluon's are part of its types."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a job: bytes of shared memory, registers and spilled bytes per thread."""

    gpu: str
    capability: int
    name: str
    shared: int
    shared_limit: int
    registers: int
    spilled: int
    matrix: bool
    wgmma: bool
    mma: bool


def _precision(tile: tiles.Tile) -> str:
    return "tf32x3" if tile.bytes == 4 else "ieee"


def _gluon_jobs(table: tiles.Table, tile: tiles.Tile) -> Iterator[Job]:
    """The forward pass in Gluon of one tile, in both half precisions."""
    module = correlation_warp_gluon
    for element, kind in (("fp16", gl.float16), ("bf16", gl.bfloat16)):
        widths = (tile.channels, min(tiles.padded(tile.width), tile.chunk))
        boxes = module.layouts(kind, tile.columns, *widths)
        descriptors = {
            name: f"tensordesc<{element}[{tile.columns}, {width}],{box!r}>"
            for name, width, box in zip(("d_key", "d_values"), widths, boxes, strict=True)
        }
        yield Job(
            name=f"gluon-C{tile.channels}-D{tile.width}-{element}-{tile.rows}x{tile.columns}"
            f"-s{tile.num_stages}",
            kernel=module.warp_kernel,
            table=table,
            pointers=dict.fromkeys(("p_query", "p_warped"), element)
            | dict.fromkeys(("p_confidence", "p_logsumexp"), "fp32"),
            descriptors=descriptors,
            constants={
                "C": tile.channels,
                "D": tile.width,
                "BLOCK_N": tile.rows,
                "BLOCK_M": tile.columns,
                "BLOCK_D": widths[1],
                "STAGES": tile.num_stages,
            },
            floats=("scale",),
            num_warps=module.NUM_WARPS,
            num_stages=1,  # the ring of buffers is in the kernel itself
            matrix=True,
        )


def jobs_of(table: tiles.Table, tile: tiles.Tile) -> Iterator[Job]:
    """All kernels of one tile: forward with and without a mask and a split, Gluon, backward."""
    if tile.kernel == "gluon":
        yield from _gluon_jobs(table, tile)
        return
    element = _ELEMENTS[tile.bytes]
    label = (
        f"C{tile.channels}-D{tile.width}-{element}-{tile.rows}x{tile.columns}"
        f"-w{tile.num_warps}s{tile.num_stages}"
    )
    inputs = dict.fromkeys(("p_query", "p_key", "p_values"), element)
    statistics = {"p_logsumexp": "fp32"}
    sizes = {
        "C": tile.channels,
        "D": tile.width,
        "BLOCK_C": min(tile.channels, tile.slice),
        "PRECISION": _precision(tile),
    }
    by_query = {"BLOCK_N": tile.rows, "BLOCK_M": tile.columns}
    by_key = {"BLOCK_M": tile.rows, "BLOCK_N": tile.columns}
    shared: dict[str, Any] = {
        "table": table,
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
    if tile.kernel == "forward":
        module = correlation_warp_triton
        for partial, masked in ((False, False), (True, True)):
            yield Job(
                name=f"forward-{label}{'-split-masked' if partial else ''}",
                kernel=module.forward_kernel,
                pointers=inputs
                | statistics
                | {"p_mask": "u8" if masked else element, "p_confidence": "fp32"}
                | {"p_warped": "fp32" if partial else element},
                constants=sizes
                | by_query
                | {"BLOCK_D": min(tile.width, tile.chunk)}
                | {"HAS_MASK": masked, "PARTIAL": partial, "DESCRIPTORS": tile.descriptors},
                floats=("scale",),
                matrix=True,
                **shared,
            )
        return
    backward = correlation_warp_backward_triton
    flow = {
        "BLOCK_D": min(tile.width, tile.slice),
        "CHUNK": min(tile.channels, tile.chunk),
        "HAS_MASK": True,
    }
    gradients = inputs | statistics | {"p_mask": "u8", "p_grad": element, "p_delta": "fp32"}
    yield Job(
        name=f"backward-query-{label}",
        kernel=backward.query_kernel,
        pointers=gradients | {"p_grad_query": "fp32", "p_best": "i32"},
        constants=sizes | by_query | flow | {"FIND_BEST": True},
        floats=("scale",),
        matrix=True,
        **shared,
    )
    yield Job(
        name=f"backward-key-{label}",
        kernel=backward.key_kernel,
        pointers=gradients | {"p_grad_key": "fp32"},
        constants=sizes | by_key | flow,
        floats=("scale",),
        matrix=True,
        **shared,
    )
    pointers = gradients | {"p_grad_values": "fp32"}
    pointers = {k: v for k, v in pointers.items() if k not in {"p_values", "p_delta"}}
    yield Job(
        name=f"backward-values-{label}",
        kernel=backward.values_kernel,
        pointers=pointers,
        constants=sizes | by_key | {"HAS_MASK": True, "CHUNK": min(tile.width, tile.chunk)},
        floats=("scale",),
        matrix=True,
        **shared,
    )


def _other_jobs(table: tiles.Table) -> Iterator[Job]:
    """Kernels without a tile table: merge, prologue and SPHist."""
    shared: dict[str, Any] = {"table": table, "num_warps": 4, "num_stages": 3, "matrix": False}
    yield Job(
        name="merge-D128",
        kernel=correlation_warp_triton.merge_kernel,
        pointers=dict.fromkeys(
            ("p_parts", "p_part_confidence", "p_part_logsumexp", "p_confidence", "p_logsumexp"),
            "fp32",
        )
        | {"p_warped": "fp16"},
        constants={"D": 128, "BLOCK_R": 32, "BLOCK_D": 128},
        floats=(),
        **shared,
    )
    for channels in (64, 512):
        rows = center_normalize_triton.block_rows(channels)
        constants = {"C": channels, "BLOCK_N": rows, "BLOCK_C": channels}
        features = {"p_features": "fp16", "p_mean": "fp32"}
        module = center_normalize_triton
        for name, kernel, pointers in (
            ("forward", module.forward_kernel, features | {"p_out": "fp16"}),
            ("backward", module.backward_kernel, features | {"p_out": "fp32", "p_grad": "fp16"}),
        ):
            yield Job(
                name=f"center-normalize-{name}-C{channels}",
                kernel=kernel,
                pointers=pointers,
                constants=constants,
                floats=("eps",),
                **shared,
            )
    for bins in (64, 256):
        block_p = sphist_triton.block_pixels(bins)
        constants = {"K": bins, "POOL": 4, "BLOCK_K": bins, "BLOCK_P": block_p}
        colours = {"p_ab": "fp32", "p_centres": "fp32"}
        gradients = {"p_grad": "fp32", "p_grad_ab": "fp32", "p_grad_centres": "fp32"}
        for name, kernel, pointers in (
            ("forward", sphist_triton.forward_kernel, colours | {"p_out": "fp32"}),
            ("backward", sphist_triton.backward_kernel, colours | gradients),
        ):
            yield Job(
                name=f"sphist-{name}-K{bins}",
                kernel=kernel,
                pointers=pointers,
                constants=constants,
                floats=("inverse",),
                **shared,
            )


def jobs(capability: int | None = None) -> Iterator[Job]:
    """All kernels with all the configurations of the committed tables."""
    for table in tiles.tables():
        if capability in (None, table.capability):
            for tile in table.tiles:
                yield from jobs_of(table, tile)
            yield from _other_jobs(table)


def compile_kernel(job: Job) -> Any:
    """Compile one job: Triton's compiled kernel, which no GPU has seen."""
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, name in enumerate(job.kernel.arg_names):
        if name in job.constants:
            signature[name] = "constexpr"
        elif name in job.descriptors:
            signature[name] = job.descriptors[name]
        elif name in job.pointers:
            signature[name] = "*" + job.pointers[name]
            attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in job.floats else "i32"
    form = GluonASTSource if job.kernel.is_gluon() else ASTSource
    return triton.compile(
        form(job.kernel, signature, job.constants, attributes),
        target=GPUTarget("cuda", job.table.capability, 32),
        options={"num_warps": job.num_warps, "num_stages": job.num_stages},
    )


def compile_job(job: Job) -> Report:
    """Compile one job and read what the assembler says about it."""
    compiled = compile_kernel(job)
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [_BINARIES / "cuobjdump", "--dump-resource-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    registers, stack, local = (
        int(re.search(rf"{field}:(\d+)", usage)[1])  # type: ignore[index]
        for field in ("REG", "STACK", "LOCAL")
    )
    return Report(
        gpu=job.table.gpu,
        capability=job.table.capability,
        name=job.name,
        shared=compiled.metadata.shared,
        shared_limit=job.table.shared_memory,
        registers=registers,
        spilled=stack + local,
        matrix=job.matrix,
        wgmma="wgmma.mma_async" in ptx,
        mma="mma.sync" in ptx,
    )


def main(arguments: list[str] | None = None) -> None:
    """Compile the configurations of one capability, or of all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, help="80 or 90; default: every table's")
    parser.add_argument("--match", default="", help="only jobs whose name contains this")
    options = parser.parse_args(arguments)
    for job in jobs(options.capability):
        if options.match in job.name:
            sys.stdout.write(json.dumps(dataclasses.asdict(compile_job(job))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
