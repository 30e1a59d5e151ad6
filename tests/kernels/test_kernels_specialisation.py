"""How many kernels are compiled: Triton's own rules for it, without a GPU and without compiling."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)

# A GPU that compiles nothing and launches nothing; what would be compiled is counted.
COUNTED = """
import json
from types import SimpleNamespace
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime import jit
from pikfix.kernels import center_normalize_triton, correlation_warp_triton, sphist_triton

triton.runtime.driver._active = SimpleNamespace(
    get_current_device=lambda: 0,
    get_current_stream=lambda device: 0,
    get_current_target=lambda: GPUTarget("cuda", 90, 32),
)
compiled = []

class Launched:
    launch_metadata = lambda self, *arguments: None
    function = packed_metadata = None
    run = lambda self, *arguments: None

def compile_nothing(self, key, *arguments):
    compiled.append(self.fn.__name__)
    self.device_caches[0][0][key] = launched = Launched()
    return launched

jit.JITFunction._do_compile = compile_nothing

def count(run, cases):
    compiled.clear()
    for case in cases:
        run(*case)
    return sorted(compiled)

def warp(batch, queries, keys, width):
    query, key = torch.ones(batch, queries, 64), torch.ones(batch, keys, 64)
    values = torch.ones(batch, keys, width)
    correlation_warp_triton.forward(query.half(), key.half(), values.half(), 0.01, None)

sizes = [(1, 1, 1), (1, 16, 17), (2, 64, 64), (3, 4096, 4096), (1, 1000, 77), (8, 63, 4096)]
answer = {
    "sizes": count(lambda *size: warp(*size, 128), sizes),
    "references": count(lambda r: warp(1, 64, 64 * r, r), [(r,) for r in range(1, 17)]),
    "prologue": count(
        lambda b, n: center_normalize_triton.forward(torch.ones(b, n, 64), 1e-5),
        [(1, 1), (2, 16), (3, 63), (16, 4096)],
    ),
    "histogram": count(
        lambda b, h, w: sphist_triton.forward(
            torch.ones(b, 2, h, w), torch.ones(2, 32), 0.1, 4
        ),
        [(1, 4, 4), (2, 64, 64), (3, 32, 68), (16, 256, 128)],
    ),
}
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def compiled():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COUNTED],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_no_size_of_a_picture_makes_a_kernel_of_its_own(compiled):
    # With one split of the keys and with several, which the warm-up of the served step runs.
    assert compiled["sizes"] == ["forward_kernel", "forward_kernel", "merge_kernel"]
    assert compiled["prologue"] == ["forward_kernel"]
    assert compiled["histogram"] == ["forward_kernel"]


def test_no_number_of_references_makes_a_kernel_of_its_own(compiled):
    assert compiled["references"].count("merge_kernel") <= 1
    assert compiled["references"].count("forward_kernel") <= 2
