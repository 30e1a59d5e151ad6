"""What tests of other CPUs than this one share."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_CHECKING = "libc_malloc_debug.so.0"


def avx2_environment() -> Mapping[str, str]:
    """Of a process that computes as on a CPU with AVX2 alone, and checks its heap if it can.

    glibc's checking allocator finds what was written past the end of a block when it is freed, and
    aborts; without it an overrun is found if it happens to hit something that the allocator needs.
    """
    changes = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    try:
        ctypes.CDLL(_CHECKING)
    except OSError:
        pass
    else:
        changes |= {"LD_PRELOAD": _CHECKING, "GLIBC_TUNABLES": "glibc.malloc.check=3"}
    return {**os.environ, **changes}
