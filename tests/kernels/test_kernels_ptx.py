"""The warp's PTX for foreign launchers: assembled here, run in the interpreter."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

CASES = [
    (80, 64, 64, "fp16"),
    (90, 64, 64, "fp16"),
    (80, 256, 128, "bf16"),
    (90, 256, 128, "fp32"),
]


@pytest.mark.parametrize(("capability", "channels", "width", "element"), CASES)
def test_the_ptx_assembles_and_takes_what_a_plugin_passes(
    capability: int, channels: int, width: int, element: str, tmp_path: Path
) -> None:
    from pikfix.kernels import cross_compile
    from pikfix.kernels.correlation_warp_ptx import STATIC_SHARED_LIMIT, compile_warp

    compiled = compile_warp(capability, channels, width, element, 0.01)
    assert 0 < compiled.shared <= STATIC_SHARED_LIMIT
    assert compiled.threads % 32 == 0
    assert compiled.rows in (32, 64, 128)
    entry = re.search(rf"\.entry {compiled.name}\((.*?)\)\n", compiled.ptx, re.DOTALL)
    assert entry is not None
    kinds = re.findall(r"\.param \.(\w+)", entry[1])
    assert kinds == ["u64"] * 3 + ["u32"] * 3 + ["u64"] * 3  # inputs, integers, outputs
    (tmp_path / "warp.ptx").write_text(compiled.ptx)
    target = re.search(r"\.target (\w+)", compiled.ptx)
    assert target is not None and target[1].startswith(f"sm_{capability}")
    done = subprocess.run(
        [
            cross_compile._BINARIES / "ptxas",
            *("-v", f"-arch={target[1]}"),
            *(tmp_path / "warp.ptx", "-o", tmp_path / "warp.cubin"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\b0 bytes spill stores, 0 bytes spill loads", done.stderr), done.stderr


def test_a_kernel_that_reads_its_scratch_memory_is_refused() -> None:
    from pikfix.kernels.correlation_warp_ptx import without_scratch

    parameters = ",\n".join(f"\t.param .u64 k_param_{i}" for i in range(11))
    head = f".visible .entry k(\n{parameters}\n)\n"
    assert "k_param_9" not in without_scratch(head + "{ ld.param.u64 %rd1, [k_param_8]; }")
    with pytest.raises(ValueError, match="k_param_10"):
        without_scratch(head + "{ ld.param.u64 %rd1, [k_param_10]; }")
    with pytest.raises(ValueError, match="no entry point"):
        without_scratch("")


INTERPRETED = """
import torch, triton
from pikfix.kernels import naive
from pikfix.kernels.correlation_warp_ptx import warp_kernel
from pikfix.kernels.correlation_warp_triton import LOG2_E
torch.manual_seed(0)
for batch, queries, keys, channels, width, rows, columns, part, chunk in (
    (2, 65, 43, 16, 24, 32, 16, 16, 16),
    (1, 31, 64, 40, 16, 32, 32, 32, 16),
):
    query = naive.center_normalize(torch.randn(batch, queries, channels))
    key = naive.center_normalize(torch.randn(batch, keys, channels))
    values = torch.rand(batch, keys, width)
    warped = torch.full((batch, queries, width), torch.nan)
    confidence, logsumexp = (torch.full((batch, queries), torch.nan) for _ in range(2))
    chunks = triton.cdiv(width, chunk)
    warp_kernel[(triton.cdiv(queries, rows) * chunks, 1, batch)](
        query, key, values, batch, queries, keys, warped, confidence, logsumexp,
        SCALE=LOG2_E / 0.02, C=channels, D=width, BLOCK_N=rows, BLOCK_M=columns,
        BLOCK_C=part, BLOCK_D=chunk, PRECISION="ieee",
    )
    exact, best = naive.correlation_warp(query.double(), key.double(), values.double(), 0.02)
    torch.testing.assert_close(warped.double(), exact, atol=2e-5, rtol=0)
    torch.testing.assert_close(confidence.double(), best, atol=1e-6, rtol=0)
    scores = query.double() @ key.double().transpose(1, 2) / 0.02
    torch.testing.assert_close(logsumexp.double(), scores.logsumexp(2), atol=1e-4, rtol=0)
    print("agrees")
"""


def test_the_kernel_computes_the_warp_in_the_interpreter(tmp_path: Path) -> None:
    script = tmp_path / "interpreted.py"
    script.write_text(INTERPRETED)
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["agrees", "agrees"]
