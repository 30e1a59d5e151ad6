import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pikfix.kernels import center_normalize, correlation_warp, naive, sphist

CASES = Path(__file__).with_name("triton_cases.py")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


def test_kernels_match_their_twins_on_the_gpu():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=CASES.parents[2],
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("channels", "width"), [(64, 64), (128, 128), (256, 512), (512, 40)])
def test_public_functions_use_the_committed_tiles(kit, channels, width, dtype):
    inputs = kit.make_inputs("random", 2, 1000, 1500, channels, width)
    leaves = [t.to("cuda", dtype).requires_grad_() for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    warped, confidence = correlation_warp(*leaves, 0.01)
    expected, highest = naive.correlation_warp(*exact, 0.01)
    limit = {torch.float16: 1e-3, torch.bfloat16: 3e-3, torch.float32: 1e-4}[dtype]
    assert kit.errors(warped, expected)[0] <= limit
    assert (confidence - highest).abs().max() <= 5e-4
    grad = torch.randint(-4, 5, warped.shape, device="cuda").to(dtype)
    peak = torch.randint(-4, 5, confidence.shape, device="cuda").float()
    got = torch.autograd.grad((warped, confidence), leaves, (grad, peak))
    wanted = torch.autograd.grad((expected, highest), exact, (grad.double(), peak.double()))
    for left, right in zip(got, wanted, strict=True):
        assert kit.errors(left, right)[0] <= (1e-3 if dtype == torch.float32 else 1e-2)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a Hopper GPU",
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "channels", "width"),
    [
        (1, 1, 1, 64, 64),
        (3, 345, 301, 16, 16),
        (2, 128, 128, 64, 48),
        (3, 1000, 129, 128, 128),
        (2, 63, 1500, 256, 64),
        (5, 257, 513, 256, 112),
    ],
)
def test_the_gluon_form_matches_float64_at_ragged_sizes(
    kit, batch, queries, keys, channels, width, dtype
):
    """Launched directly: problems this small would go to the form that splits the keys."""
    from pikfix.kernels import correlation_warp_gluon, tiles

    inputs = kit.make_inputs("random", batch, queries, keys, channels, width)
    rounded = [tensor.to("cuda", dtype) for tensor in inputs]
    tile = tiles.table_for(rounded[0].device).find("gluon", channels, width, 2)
    warped, confidence, logsumexp = correlation_warp_gluon.forward(*rounded, 0.01, tile=tile)
    exact = [tensor.double() for tensor in rounded]
    expected, highest = naive.correlation_warp(*exact, 0.01)
    assert kit.errors(warped, expected)[0] <= {torch.float16: 1e-3, torch.bfloat16: 3e-3}[dtype]
    assert (confidence - highest).abs().max() <= 5e-4
    scores = exact[0] @ exact[1].transpose(1, 2) / 0.01
    assert (logsumexp - scores.logsumexp(2)).abs().max() <= 0.05


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs a Hopper GPU",
)
def test_large_problems_go_to_the_gluon_form(kit, monkeypatch):
    from pikfix.kernels import correlation_warp_gluon

    launch, launched = correlation_warp_gluon.forward, []

    def noted(*arguments, **named):
        launched.append(named["tile"].kernel)
        return launch(*arguments, **named)

    monkeypatch.setattr(correlation_warp_gluon, "forward", noted)
    inputs = kit.make_inputs("random", 8, 4096, 1000, 128, 64)
    rounded = [tensor.to("cuda", torch.float16) for tensor in inputs]
    warped, _ = correlation_warp(*rounded, 0.01)
    expected, _ = naive.correlation_warp(*(tensor.double() for tensor in rounded), 0.01)
    assert launched == ["gluon"]
    assert kit.errors(warped, expected)[0] <= 1e-3


def test_peak_memory_is_linear():
    peaks = []
    for size in (16384, 65536):
        query = torch.randn(1, size, 64, device="cuda", dtype=torch.float16, requires_grad=True)
        values = torch.rand(1, size, 64, device="cuda", dtype=torch.float16)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        warped, confidence = correlation_warp(center_normalize(query), query, values, 0.01)
        (warped.float().sum() + confidence.sum()).backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del query, values, warped, confidence
    assert peaks[1] <= 4.2 * peaks[0] + 2**24
    assert peaks[1] < 65536 * 65536 * 2 / 8


def test_compile_and_autocast_on_the_gpu(kit):
    inputs = [t.cuda() for t in kit.make_inputs("random", 2, 100, 200, 64, 32)]
    expected = naive.correlation_warp(*inputs, 0.01)[0]
    with torch.autocast("cuda", torch.float16):
        warped = correlation_warp(*inputs, 0.01)[0]
    assert warped.dtype == torch.float16
    assert kit.errors(warped, expected)[0] <= 3e-3
    compiled = torch.compile(correlation_warp, fullgraph=True)
    assert kit.errors(compiled(*inputs, 0.01)[0], expected)[0] <= 1e-4


def test_sphist_on_the_gpu(kit):
    ab = (torch.rand(2, 2, 64, 64, device="cuda") * 2 - 1).requires_grad_()
    centres = torch.linspace(-1, 1, 64, device="cuda", requires_grad=True)
    got, expected = sphist(ab, centres, 0.03, 4), naive.sphist(ab, centres, 0.03, 4)
    assert kit.errors(got, expected)[0] <= 1e-5
    grad = torch.randn_like(expected)
    for left, right in zip(
        torch.autograd.grad(got, (ab, centres), grad),
        torch.autograd.grad(expected, (ab, centres), grad),
        strict=True,
    ):
        assert kit.errors(left, right)[0] <= 1e-4
