import json
import subprocess
import sys

import pytest
import torch
from torch.export import Dim

from pikfix.kernels import correlation_warp, correlation_warp_cpu, cpu, naive

KINDS = ("random", "planted", "duplicates", "photo", "low", "zeros")
FORMS = {
    "float32": (torch.float32, torch.float16, torch.bfloat16, torch.float64),
    "shifted": (torch.bfloat16,),
    "attention": (torch.bfloat16,),
}
# Relative Frobenius norm and 99.9th percentile row, against float64 on the rounded inputs.
ROUNDED = {
    torch.float64: (1e-12, 1e-11),
    torch.float32: (2e-5, 1e-4),
    torch.float16: (1e-3, 2e-3),
    torch.bfloat16: (3e-3, 1e-2),
}
UNROUNDED = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture
def form(request, monkeypatch):
    monkeypatch.setattr(correlation_warp_cpu, "reduced_form", lambda dtype: request.param)
    return request.param


@pytest.mark.parametrize("temperature", [0.005, 0.01])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("form", "dtype"),
    [(form, dtype) for form, dtypes in FORMS.items() for dtype in dtypes],
    indirect=["form"],
)
def test_every_form_meets_its_tolerance(kit, form, dtype, kind, temperature):
    inputs = kit.make_inputs(kind, 2, 257, 600, 64, 24)
    rounded = [tensor.to(dtype) for tensor in inputs]
    warped, confidence = correlation_warp(*rounded, temperature)
    assert warped.dtype == dtype
    expected, highest = naive.correlation_warp(*(t.double() for t in rounded), temperature)
    whole, row = kit.errors(warped, expected)
    assert whole <= ROUNDED[dtype][0]
    assert row <= ROUNDED[dtype][1]
    assert (confidence - highest).abs().max() <= 5e-4
    if dtype in UNROUNDED:
        exact, _ = naive.correlation_warp(*(t.double() for t in inputs), temperature)
        assert kit.errors(warped, exact)[0] <= UNROUNDED[dtype]


@pytest.mark.parametrize(("channels", "width"), [(16, 1), (100, 3), (256, 130), (512, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_that_are_no_round_numbers(kit, dtype, channels, width):
    inputs = [t.to(dtype) for t in kit.make_inputs("random", 3, 63, 1000, channels, width)]
    warped, confidence = correlation_warp(*inputs, 0.01)
    expected, highest = naive.correlation_warp(*(t.double() for t in inputs), 0.01)
    assert kit.errors(warped, expected)[0] <= ROUNDED[dtype][0]
    assert (confidence - highest).abs().max() <= 5e-4


def test_the_screen_leaves_out_only_keys_without_weight(kit, monkeypatch):
    query, key, values = kit.make_inputs("photo", 1, 512, 1024, 64, 16)
    counts = []
    original = correlation_warp_cpu._survivors

    def counting(reach):
        kept = original(reach)
        counts.append(reach.shape[0] if kept is None else kept.shape[0])
        assert kept is None or kept.unique().shape == kept.shape
        return kept

    monkeypatch.setattr(correlation_warp_cpu, "_survivors", counting)
    monkeypatch.setattr(cpu, "multiplies_bytes", lambda: True)
    warped, confidence = correlation_warp(query, key, values, 0.002)
    assert counts and min(counts) < 1024
    expected, highest = naive.correlation_warp(*(t.double() for t in (query, key, values)), 0.002)
    assert kit.errors(warped, expected)[0] <= 2e-5
    assert (confidence - highest).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("form", "dtype"),
    [("float32", torch.float32), ("shifted", torch.bfloat16)],
    indirect=["form"],
)
def test_what_is_not_a_number_shows_in_its_own_row_alone(kit, form, dtype):
    query, key, values = (t.to(dtype) for t in kit.make_inputs("photo", 1, 300, 600, 64, 16))
    query[0, 7] = float("nan")
    warped, confidence = correlation_warp(query, key, values, 0.005)
    others = torch.arange(300) != 7
    assert warped[0, 7].isnan().all() and confidence[0, 7].isnan()
    expected, highest = naive.correlation_warp(query[:, others], key, values, 0.005)
    assert kit.errors(warped[:, others], expected)[0] <= ROUNDED[dtype][0]
    assert (confidence[:, others] - highest).abs().max() <= 5e-4
    key[0, 3] = float("nan")
    assert correlation_warp(query, key, values, 0.005)[0].isnan().all()


def test_medium_precision_lets_float32_run_in_bfloat16(kit, monkeypatch):
    monkeypatch.setattr(correlation_warp_cpu, "reduced_form", lambda dtype: "shifted")
    inputs = kit.make_inputs("random", 1, 300, 700, 64, 16)
    exact = correlation_warp(*inputs, 0.01)[0]
    torch.set_float32_matmul_precision("medium")
    try:
        medium = correlation_warp(*inputs, 0.01)[0]
    finally:
        torch.set_float32_matmul_precision("highest")
    assert medium.dtype == torch.float32
    assert 1e-5 < kit.errors(medium, exact)[0] <= 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_keys_take_no_part_and_empty_rows_are_zero(kit, dtype):
    query, key, values = (t.to(dtype) for t in kit.make_inputs("random", 3, 40, 90, 32, 8))
    key_mask = torch.rand(3, 90) > 0.5
    key_mask[1] = False
    tensors = [query.requires_grad_(), key.requires_grad_(), values.requires_grad_()]
    warped, confidence = correlation_warp(*tensors, 0.01, key_mask)
    (warped.float().sum() + confidence.sum()).backward()
    assert (warped[1] == 0).all() and (confidence[1] == 0).all()
    with torch.no_grad():
        for b in (0, 2):
            kept = key_mask[b]
            alone = correlation_warp(
                query[b : b + 1], key[b : b + 1, kept], values[b : b + 1, kept], 0.01
            )
            assert kit.errors(warped[b : b + 1], alone[0])[0] <= ROUNDED[dtype][0]
    for tensor in tensors:
        assert tensor.grad.isfinite().all()
        assert (tensor.grad[1] == 0).all()
    assert (values.grad[0, ~key_mask[0]] == 0).all()
    assert (values.grad[0, key_mask[0]].float().sum() > 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_finite_differences(kit, masked):
    inputs = kit.make_inputs("random", 2, 5, 7, 4, 3)
    inputs = [tensor.double().requires_grad_() for tensor in inputs]
    key_mask = torch.rand(2, 7) > 0.3 if masked else None
    assert torch.autograd.gradcheck(lambda *t: correlation_warp(*t, 0.5, key_mask), inputs)
    torch.library.opcheck(torch.ops.pikfix.correlation_warp.default, (*inputs, 0.5, key_mask))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("form", "dtype", "limit"),
    [("float32", torch.float32, 1e-4), ("shifted", torch.bfloat16, 1e-2)],
    indirect=["form"],
)
def test_gradients_meet_their_tolerance(kit, form, dtype, limit, kind):
    inputs = [t.to(dtype) for t in kit.make_inputs(kind, 2, 130, 300, 64, 24)]
    leaves = [t.clone().requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    warped, _ = correlation_warp(*leaves, 0.01)
    expected, _ = naive.correlation_warp(*exact, 0.01)
    # Exact in every dtype, so that no rounding of the incoming gradient is measured.
    grad = torch.randint(-4, 5, warped.shape).to(dtype)
    torch.autograd.backward((warped,), (grad,))
    torch.autograd.backward((expected,), (grad.double(),))
    for leaf, reference in zip(leaves, exact, strict=True):
        assert kit.errors(leaf.grad, reference.grad)[0] <= limit
    # Where several keys share the maximum, its gradient may go to either of them.
    if kind not in ("duplicates", "zeros"):
        got = torch.autograd.grad(correlation_warp(*leaves, 0.01)[1].sum(), leaves[:2])
        wanted = torch.autograd.grad(naive.correlation_warp(*exact, 0.01)[1].sum(), exact[:2])
        assert all(kit.errors(g, w)[0] <= limit for g, w in zip(got, wanted, strict=True))


def test_autocast_casts_the_operands_and_nothing_inside(kit):
    inputs = [t.requires_grad_() for t in kit.make_inputs("random", 1, 50, 80, 64, 8)]
    with torch.autocast("cpu", torch.bfloat16):
        warped, confidence = correlation_warp(*inputs, 0.01)
        (warped.float().sum() + confidence.sum()).backward()
    assert warped.dtype == torch.bfloat16
    assert confidence.dtype == torch.float32
    rounded = [t.detach().bfloat16().double() for t in inputs]
    assert kit.errors(warped, naive.correlation_warp(*rounded, 0.01)[0])[0] <= 3e-3
    assert all(t.grad.dtype == torch.float32 for t in inputs)


class _Module(torch.nn.Module):
    def forward(self, query, key, values):
        return correlation_warp(query, key, values, 0.01)


def test_export_and_compile_see_one_operator_of_any_size(kit):
    inputs = kit.make_inputs("random", 2, 12, 20, 16, 4)
    sizes = {0: Dim.AUTO, 1: Dim.AUTO}
    program = torch.export.export(_Module(), inputs, dynamic_shapes=(sizes, sizes, sizes))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.pikfix.correlation_warp.default) == 1
    other = kit.make_inputs("random", 3, 31, 17, 16, 4)
    compiled = torch.compile(_Module(), backend="aot_eager", fullgraph=True, dynamic=True)
    for module in (program.module(), compiled):
        for tensors in (inputs, other):
            assert torch.equal(module(*tensors)[0], _Module()(*tensors)[0])


_PEAK = """
import json, sys, torch
from pikfix.kernels import correlation_warp
torch.set_num_threads(2)

def peak():  # of this program alone: getrusage starts at the peak of the one that started it
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

size, backward = int(sys.argv[1]), sys.argv[2] == "backward"
query = torch.nn.functional.normalize(torch.randn(1, size, 16), dim=2).bfloat16()
values = torch.rand(1, size, 16).bfloat16()
correlation_warp(query[:, :64], query[:, :600], values[:, :600], 0.01)
before = peak()
if backward:
    query.requires_grad_()
warped, confidence = correlation_warp(query, query, values, 0.001)
if backward:
    (warped.float().sum() + confidence.sum()).backward()
print(json.dumps(peak() - before))
"""


@pytest.mark.parametrize(("direction", "large"), [("forward", 65536), ("backward", 16384)])
def test_peak_memory_is_linear(direction, large):
    def peak_growth(size):
        command = [sys.executable, "-c", _PEAK, str(size), direction]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout) * 1024

    small_peak, large_peak = peak_growth(large // 4), peak_growth(large)
    assert small_peak > 0
    fixed = 256 * 2**20  # chunks and what the libraries keep per shape, whatever the size
    assert large_peak <= 4 * small_peak + fixed
    map_size = large * large * 2
    assert large_peak < map_size / (16 if direction == "forward" else 1)
