"""Tile tables: which tile each kernel uses, one JSON file per GPU (``tiles_*.json``).

Tables are committed, and nothing is tuned while a request waits. A GPU without a table takes
the one of the nearest compute capability, and says so once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_LOGGER = logging.getLogger(__name__)

WIDTH_STEP = 16
"""The launchers round the width of values up to a multiple of this, of which matrix units take
whole ones: the width is compiled into a kernel, and each reference more would be a kernel more."""

Launcher = Callable[[Any], Any]
"""Takes a kernel and returns what is launched by `[grid](...)` in its place."""


def direct(kernel: Any) -> Any:
    """Launch the kernel itself."""
    return kernel


@dataclass(frozen=True)
class Tile:
    """One tile configuration of one kernel: "forward", "gluon" (forward on sm_90) or "backward".

    ``channels`` and ``width`` are the largest C and D it covers, ``bytes`` the element size of
    the inputs. A program computes ``rows`` positions of its output, ``chunk`` of their columns,
    and loops over ``columns`` positions of the other side at a time. Sums over C (and, backward,
    over D) are taken ``slice`` at a time; where that covers them, the program's own rows stay
    loaded. ``descriptors`` loads keys and values through the bulk-copy engine (sm_90).
    ``measured`` says that the tile, with these settings, was the fastest of several on the GPU;
    else it was chosen by what the assembler says of it.
    """

    kernel: str
    channels: int
    width: int
    bytes: int
    rows: int
    columns: int
    chunk: int
    slice: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    measured: bool = False


@dataclass(frozen=True)
class Table:
    """The tiles of one GPU, and what they must fit into."""

    gpu: str
    capability: int
    multiprocessors: int
    shared_memory: int
    tiles: tuple[Tile, ...]

    def find(self, kernel: str, channels: int, width: int, size: int) -> Tile:
        """Return the smallest tile of a kernel that covers C, D and the element size.

        Raises:
            ValueError: no tile covers them; C above 512, for one.
        """
        fitting = [
            tile
            for tile in self.tiles
            if tile.kernel == kernel
            and tile.bytes >= size
            and tile.channels >= channels
            and tile.width >= width
        ]
        if not fitting:
            raise ValueError(
                f"no {kernel} tile for C = {channels}, D = {width} and {size}-byte elements on "
                f"{self.gpu}; C and D of the kernels end at 512"
            )
        return min(fitting, key=lambda tile: (tile.bytes, tile.channels, tile.width))


def padded(size: int) -> int:
    """Round up to the next power of two, at least the 16 that matrix units take."""
    return max(16, 1 << (size - 1).bit_length())


def cdiv(number: int, divisor: int) -> int:
    """Divide and round up; symbolic sizes stay symbolic."""
    return (number + divisor - 1) // divisor


def read_table(path: Path) -> Table:
    """Read one table."""
    content = json.loads(path.read_text(encoding="utf-8"))
    entries = [
        Tile(kernel=kernel, **entry)
        for kernel, listed in content.pop("tiles").items()
        for entry in listed
    ]
    return Table(**content, tiles=tuple(entries))


@functools.cache
def tables() -> tuple[Table, ...]:
    """All committed tables, by compute capability."""
    found = [read_table(path) for path in sorted(Path(__file__).parent.glob("tiles_*.json"))]
    return tuple(sorted(found, key=lambda table: table.capability))


@functools.cache
def _nearest(name: str, capability: int) -> Table:
    for table in tables():
        if table.gpu == name:
            return table
    below = [table for table in tables() if table.capability <= capability] or [tables()[0]]
    _LOGGER.warning("no tile table for %s; using the one of %s", name, below[-1].gpu)
    return below[-1]


def table_for(device: torch.device) -> Table:
    """Table of a GPU; on the CPU, where the interpreter runs, that of the newest one."""
    if device.type != "cuda":
        return tables()[-1]
    major, minor = torch.cuda.get_device_capability(device)
    return _nearest(torch.cuda.get_device_name(device), 10 * major + minor)


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make the device current: Triton launches on the current one.

    Compiled programs see to it themselves.
    """
    if device.type != "cuda" or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


@functools.cache
def provide_scratch() -> None:
    """Give Triton the allocator that descriptors made on the device need."""
    # This module is also read where Triton is not installed.
    import triton  # noqa: PLC0415

    triton.set_allocator(
        lambda size, alignment, stream: torch.empty(size, device="cuda", dtype=torch.int8)
    )
