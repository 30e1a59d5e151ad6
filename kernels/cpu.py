"""What this CPU is good at: one function per question, for everything that chooses by it.

The answers come from the instructions that the kernel lists, less those that oneDNN was told not
to use (`ONEDNN_MAX_CPU_ISA`): a machine can be tried as if it were an older one.

bfloat16 is worth its rounding only where there are products of it. Elsewhere oneDNN takes its
numbers apart. On one core with AVX512-BF16, held back by that variable, bfloat16 took these
multiples of float32's time: a 3 x 3 convolution of 64 channels 0.5 as it is, 2.7 with
AVX512_CORE_VNNI, 5.8 with AVX2; with its gradients 0.6, 2.5, 8.7; a matrix product 0.5, 2.7, 33.
The int8 form of `restore`, which has bfloat16 between its bytes: 0.4, 1.1, 5.7.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Literal

import torch

_BYTES = frozenset({"avx_vnni", "avx512_vnni", "amx_int8"})
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is Arm's
_TILES = frozenset({"amx_tile", "amx_int8", "amx_bf16"})
_CEILED = _BYTES | _TILES | {"avx512_bf16", "amx_fp16"}
"""x86 instructions that a ceiling may take away, where one of `_UNDER` does not keep them."""

_512 = frozenset({"avx512_vnni", "avx512_bf16"})
_UNDER: dict[str, frozenset[str]] = {
    "SSE41": frozenset(),
    "AVX": frozenset(),
    "AVX2": frozenset(),
    "AVX2_VNNI": frozenset({"avx_vnni"}),
    "AVX2_VNNI_2": frozenset({"avx_vnni"}),
    "AVX512_CORE": frozenset(),
    "AVX512_CORE_VNNI": frozenset({"avx512_vnni"}),
    "AVX512_CORE_BF16": _512,
    "AVX512_CORE_FP16": _512,
    "AVX10_1_512": _512,
    "AVX512_CORE_AMX": _512 | _TILES,
    "AVX10_1_512_AMX": _512 | _TILES,
}
"""What oneDNN may still use under each ceiling; any other word is no ceiling to it."""


def instructions() -> frozenset[str]:
    """The instructions that oneDNN uses here, by /proc/cpuinfo's names."""
    kept = _UNDER.get(_ceiling(), _CEILED)
    return frozenset(flag for flag in _listed() if flag not in _CEILED or flag in kept)


def multiplies_bytes() -> bool:
    """Whether bytes are multiplied without saturating (AVX512-VNNI, AVX-VNNI or AMX).

    Older CPUs add pairs of products in 16 bits, which overflow.
    """
    return bool(_BYTES & instructions())


def multiplies_bfloat16() -> bool:
    """Whether there are products of bfloat16 (AVX512-BF16, AMX, Arm's); else it is emulated."""
    return bool(_BFLOAT16 & instructions())


def has_bfloat16_tiles() -> bool:
    """Whether products of bfloat16 run in tiles (AMX)."""
    return {"amx_tile", "amx_bf16"} <= instructions()


def has_float16_tiles() -> bool:
    """Whether products of float16 run in tiles (AMX)."""
    return {"amx_tile", "amx_fp16"} <= instructions()


def good_precisions() -> tuple[str, ...]:
    """Of "fp32", "bf16" and "int8" those that gain something here; int8 has bfloat16 between."""
    found = ["fp32"]
    if multiplies_bfloat16():
        found.append("bf16")
        if multiplies_bytes():
            found.append("int8")
    return tuple(found)


def training_precision() -> Literal["fp32", "bf16"]:
    """What a training on this CPU takes unless it is told."""
    return "bf16" if multiplies_bfloat16() else "fp32"


def reason() -> str:
    """Why `good_precisions` are what they are, for whoever reads `pikfix doctor`."""
    found = sorted((_BFLOAT16 | _BYTES) & instructions())
    text = f"it has {', '.join(found)}" if found else "it has no products of bfloat16 or bytes"
    if found and not multiplies_bfloat16():
        text += ", and no products of bfloat16, which int8 has between its bytes"
    ceiling = _ceiling()
    return f"{text}, under ONEDNN_MAX_CPU_ISA={ceiling}" if ceiling in _UNDER else text


def emulation(precision: str) -> str | None:
    """One line for whoever asks for a precision that has bfloat16 where it is emulated."""
    if precision not in ("bf16", "int8") or multiplies_bfloat16():
        return None
    return (
        f"warning: {precision} computes in bfloat16, which this CPU emulates (it has none of "
        "avx512_bf16, amx_bf16 and Arm's bf16), several times slower than float32: take fp32"
    )


def _ceiling() -> str:
    return os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()


@functools.cache
def _listed() -> frozenset[str]:
    """All instructions of the CPU, as the kernel lists them, else as PyTorch finds them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    probe = getattr(torch.cpu, "get_capabilities", dict)
    return frozenset(name for name, has in probe().items() if has is True)
