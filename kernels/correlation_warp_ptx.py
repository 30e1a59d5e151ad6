"""The warp's forward kernel as PTX for launchers other than Triton's: pointers and integers only.

A launcher that knows no Triton passes inputs, then integers, then outputs; sets no attribute of
the kernel, so that shared memory ends at 48 KiB; and has no scratch memory to pass.
"""

# The compiler knows no keyword-only parameters.
# ruff: noqa: PLR0917
# mypy: disable-error-code="import-untyped,no-untyped-call,no-untyped-def,untyped-decorator"

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pikfix.kernels import tiles
from pikfix.kernels.correlation_warp_triton import LOG2_E, forward_kernel

STATIC_SHARED_LIMIT = 48 << 10
"""Bytes that every kernel may use without having asked for more."""

INPUTS = ("p_query", "p_key", "p_values")
INTEGERS = ("B", "N", "M")
OUTPUTS = ("p_warped", "p_confidence", "p_logsumexp")
"""The kernel's arguments, in the order it takes them: inputs, integers, outputs."""


@triton.jit
def warp_kernel(
    p_query,  # [B, N, C]
    p_key,  # [B, M, C]
    p_values,  # [B, M, D]
    B,
    N,
    M,
    p_warped,  # [B, N, D]
    p_confidence,  # [B, N] float32
    p_logsumexp,  # [B, N] float32
    SCALE: tl.constexpr,  # log2(e) / τ
    C: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`forward_kernel` without a mask and with all keys in one split."""
    forward_kernel(
        p_query, p_key, p_values, p_query, p_warped, p_confidence, p_logsumexp,
        B, N, M, M, SCALE, C, D, BLOCK_N, BLOCK_M, BLOCK_C, BLOCK_D,
        False, False, False, PRECISION,
    )  # fmt: skip


@dataclass(frozen=True)
class WarpPtx:
    """A compiled kernel and how to launch it.

    Attributes:
        name: of the entry point.
        ptx: its code; the entry point takes INPUTS, INTEGERS and OUTPUTS, in this order.
        rows: positions that a program computes.
        chunks: programs beside each other over the columns of the values.
        threads: of a block.
        shared: bytes of dynamic shared memory of a block.
    """

    name: str
    ptx: str
    rows: int
    chunks: int
    threads: int
    shared: int


def compile_warp(
    capability: int, channels: int, width: int, element: str, temperature: float
) -> WarpPtx:
    """Compile the warp for one architecture and one problem; no GPU is needed.

    Args:
        capability: of the GPU, 80 or 90 for example.
        channels: C of query and key.
        width: D of the values.
        element: "fp16", "bf16" or "fp32".
        temperature: τ > 0, compiled in.

    Returns:
        The first of the tile table's tile and its smaller neighbours that needs no more shared
        memory than `STATIC_SHARED_LIMIT`.

    Raises:
        ValueError: no tile covers C, D and the element, or none fits.
    """
    size = 4 if element == "fp32" else 2
    below = [table for table in tiles.tables() if table.capability <= capability]
    table = (below or list(tiles.tables()))[-1]
    for tile in _smaller(table.find("forward", channels, width, size)):
        compiled = _compile(capability, tile, channels, width, element, temperature)
        if compiled.metadata.shared <= STATIC_SHARED_LIMIT:
            return WarpPtx(
                name=compiled.metadata.name,
                ptx=without_scratch(compiled.asm["ptx"]),
                rows=tile.rows,
                chunks=triton.cdiv(width, _block_d(tile, width)),
                threads=32 * tile.num_warps,
                shared=compiled.metadata.shared,
            )
    raise ValueError(f"no tile for C = {channels}, D = {width} in {element} fits 48 KiB")


def without_scratch(ptx: str) -> str:
    """Drop the two pointers to scratch memory that Triton appends to every kernel's parameters.

    Raises:
        ValueError: the kernel reads them.
    """
    entry = re.search(r"(\.visible \.entry \w+\()(.*?)(\n?\))", ptx, re.DOTALL)
    if entry is None:
        raise ValueError("no entry point in the PTX")
    parameters = [part.strip() for part in entry[2].split(",")]
    kept, scratch = parameters[:-2], parameters[-2:]
    names = [parameter.split()[-1] for parameter in scratch]
    body = ptx[entry.end() :]
    used = [name for name in names if re.search(rf"\b{name}\b", body)]
    if used or len(kept) != len(INPUTS) + len(INTEGERS) + len(OUTPUTS):
        raise ValueError(f"the kernel needs scratch memory: it reads {used or parameters}")
    head = entry[1] + "\n\t" + ",\n\t".join(kept) + "\n)"
    return ptx[: entry.start()] + head + body


def _block_d(tile: tiles.Tile, width: int) -> int:
    return min(tiles.padded(width), tile.chunk)


def _smaller(tile: tiles.Tile) -> Iterator[tiles.Tile]:
    """A tile, then ones that need less shared memory, the least changed first."""
    for stages in sorted({tile.num_stages, 2, 1}, reverse=True):
        for rows in (tile.rows, 64, 32):
            for columns in (tile.columns, 32, 16):
                for part in (tile.slice, 64, 32):
                    if rows <= tile.rows and columns <= tile.columns and part <= tile.slice:
                        yield dataclasses.replace(
                            tile,
                            rows=rows,
                            columns=columns,
                            slice=part,
                            chunk=min(tile.chunk, 128),
                            num_stages=stages,
                            num_warps=tile.num_warps if rows >= 64 else 4,
                        )


def _compile(
    capability: int, tile: tiles.Tile, channels: int, width: int, element: str, temperature: float
):
    constants = {
        "SCALE": LOG2_E / temperature,
        "C": channels,
        "D": width,
        "BLOCK_N": tile.rows,
        "BLOCK_M": tile.columns,
        "BLOCK_C": min(tiles.padded(channels), tile.slice),
        "BLOCK_D": _block_d(tile, width),
        "PRECISION": "tf32x3" if element == "fp32" else "ieee",
    }
    signature = dict.fromkeys((*INPUTS, "p_warped"), "*" + element)
    signature |= dict.fromkeys(OUTPUTS[1:], "*fp32") | dict.fromkeys(INTEGERS, "i32")
    ordered = {name: signature.get(name, "constexpr") for name in warp_kernel.arg_names}
    aligned = {
        (position,): [["tt.divisibility", 16]]
        for position, name in enumerate(warp_kernel.arg_names)
        if name in INPUTS + OUTPUTS
    }
    return triton.compile(
        ASTSource(warp_kernel, ordered, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )
