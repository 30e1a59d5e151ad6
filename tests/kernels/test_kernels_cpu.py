"""What other CPUs than this one are good at, by their flags and by oneDNN's ceiling."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pikfix.kernels import correlation_warp_cpu, cpu

ALDER_LAKE = "fpu avx2 fma avx_vnni f16c"
CASCADE_LAKE = "avx2 fma avx512f avx512_vnni"
ZEN2 = "avx avx2 fma f16c"
ZEN4 = "avx2 avx512f avx512_vnni avx512_bf16"
SAPPHIRE_RAPIDS = f"{ZEN4} avx512_fp16 amx_tile amx_int8 amx_bf16"
GRANITE_RAPIDS = f"{SAPPHIRE_RAPIDS} amx_fp16"
GRAVITON3 = "fp asimd asimddp sve i8mm bf16"
GRAVITON2 = "fp asimd asimddp"


@pytest.fixture
def machine(monkeypatch):
    """Let the kernel list other flags, and set oneDNN's ceiling."""

    def pretend(flags, ceiling=None, variable="ONEDNN_MAX_CPU_ISA"):
        for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
            monkeypatch.delenv(name, raising=False)
        if ceiling is not None:
            monkeypatch.setenv(variable, ceiling)
        monkeypatch.setattr(cpu, "_listed", lambda: frozenset(flags.split()))

    return pretend


@pytest.mark.parametrize(
    ("flags", "ceiling", "good"),
    [
        (ZEN2, None, ("fp32",)),
        (ALDER_LAKE, None, ("fp32",)),
        (CASCADE_LAKE, None, ("fp32",)),
        (ZEN4, None, ("fp32", "bf16", "int8")),
        (SAPPHIRE_RAPIDS, None, ("fp32", "bf16", "int8")),
        (GRAVITON3, None, ("fp32", "bf16")),
        (GRAVITON3, "AVX2", ("fp32", "bf16")),
        (GRAVITON2, None, ("fp32",)),
        ("", None, ("fp32",)),
        (ZEN4, "SSE41", ("fp32",)),
        (ZEN4, "AVX2", ("fp32",)),
        (ZEN4, "avx512_core", ("fp32",)),
        (ZEN4, "AVX512_CORE_VNNI", ("fp32",)),
        (ZEN4, "avx512_core_bf16", ("fp32", "bf16", "int8")),
        (ZEN4, "DEFAULT", ("fp32", "bf16", "int8")),
        (ZEN4, "no such word", ("fp32", "bf16", "int8")),
    ],
)
def test_precisions_follow_the_instructions(machine, flags, ceiling, good):
    machine(flags, ceiling)
    assert cpu.good_precisions() == good
    assert cpu.training_precision() == ("bf16" if "bf16" in good else "fp32")
    assert (cpu.emulation("bf16") is None) == ("bf16" in good)
    assert (cpu.emulation("int8") is None) == ("bf16" in good)
    assert cpu.emulation("fp32") is None


def test_bytes_multiply_where_nothing_saturates(machine):
    for flags, exact in ((ZEN2, False), (ALDER_LAKE, True), (CASCADE_LAKE, True), (ZEN4, True)):
        machine(flags)
        assert cpu.multiplies_bytes() == exact
    machine(ZEN4, "AVX2", "DNNL_MAX_CPU_ISA")
    assert not cpu.multiplies_bytes()
    machine(ALDER_LAKE, "AVX2_VNNI")
    assert cpu.multiplies_bytes()


@pytest.mark.parametrize(
    ("flags", "ceiling", "bfloat16", "float16"),
    [
        (ZEN2, None, "float32", "float32"),
        (ZEN4, None, "shifted", "float32"),
        (ZEN4, "AVX2", "float32", "float32"),
        (SAPPHIRE_RAPIDS, None, "attention", "float32"),
        (SAPPHIRE_RAPIDS, "AVX512_CORE_BF16", "shifted", "float32"),
        (GRANITE_RAPIDS, None, "attention", "attention"),
        (GRANITE_RAPIDS, "AVX512_CORE_AMX", "attention", "float32"),
    ],
)
def test_the_warp_takes_the_form_that_the_cpu_has(machine, flags, ceiling, bfloat16, float16):
    machine(flags, ceiling)
    assert correlation_warp_cpu.reduced_form(torch.bfloat16) == bfloat16
    assert correlation_warp_cpu.reduced_form(torch.float16) == float16
    assert correlation_warp_cpu.reduced_form(torch.float32) == "float32"


def test_the_reason_names_what_decided(machine):
    machine(ZEN4)
    assert cpu.reason() == "it has avx512_bf16, avx512_vnni"
    machine(ZEN2)
    assert cpu.reason() == "it has no products of bfloat16 or bytes"
    machine(CASCADE_LAKE)
    assert "and no products of bfloat16" in cpu.reason()
    machine(ZEN4, "avx2")
    assert cpu.reason().endswith("of bfloat16 or bytes, under ONEDNN_MAX_CPU_ISA=AVX2")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel lists flags on Linux")
def test_pytorch_finds_the_same_instructions():
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    known = cpu._BYTES | cpu._BFLOAT16 | cpu._TILES
    assert {f for f in known if found.get(f) is True} == known & cpu._listed() & set(found)


PRODUCT = """
import torch
from pikfix.kernels import cpu
print(cpu.good_precisions())
torch.nn.functional.conv2d(torch.rand(4, 16, 64, 64), torch.rand(16, 16, 3, 3))
"""


@pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="the ceiling is of x86")
def test_onednn_bows_to_the_same_variable():
    done = subprocess.run(
        [sys.executable, "-c", PRODUCT],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert "('fp32',)" in done.stdout
    assert "isa:Intel AVX2\n" in done.stdout
    assert "avx512" not in done.stdout
