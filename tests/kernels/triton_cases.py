"""The Triton kernels against their naive twins: in the interpreter, or on a GPU where there is one.

Run by test_kernels_triton.py (interpreter, in a process of its own: Triton decides on import)
and by test_kernels_gpu.py.
"""

import os

import pytest
import torch

from pikfix.kernels import (
    center_normalize_triton,
    correlation_warp_backward_triton,
    correlation_warp_triton,
    naive,
    sphist_triton,
    tiles,
)

KINDS = ("random", "planted", "duplicates", "photo", "low", "zeros")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
# Relative Frobenius norm and 99.9th percentile row, against float64 on the rounded inputs. The
# interpreter cuts float32 off to bfloat16 where the GPU rounds: twice the error.
ROUNDED = {
    torch.float32: (1e-5, 1e-4),
    torch.float16: (1e-3, 2e-3),
    torch.bfloat16: (6e-3, 1.2e-2) if INTERPRETED else (3e-3, 6e-3),
}
UNROUNDED = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
HALF = (torch.float16, torch.bfloat16)

pytestmark = pytest.mark.usefixtures("poison")


def small_tile(kernel, **changes):
    """A tile small enough for the interpreter, with several steps in every loop."""
    fields = {
        "kernel": kernel,
        "channels": 512,
        "width": 512,
        "bytes": 4,
        "rows": 32,
        "columns": 32,
        "chunk": 512,
        "slice": 512,
        "num_warps": 4,
        "num_stages": 2,
    }
    return tiles.Tile(**(fields | changes))


def on_device(tensors):
    return [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]


def check_forward(kit, inputs, dtype, key_mask=None, temperature=0.01, **launch):
    within = ROUNDED[dtype]
    rounded = [tensor.to(dtype) for tensor in inputs]
    moved = on_device([*rounded, key_mask])
    launch.setdefault("tile", small_tile("forward"))
    warped, confidence, logsumexp = correlation_warp_triton.forward(
        *moved[:3], temperature, moved[3], **launch
    )
    wide = [tensor.double() for tensor in rounded]
    expected, highest = naive.correlation_warp(*wide, temperature, key_mask)
    whole, row = kit.errors(warped, expected)
    assert whole <= within[0]
    assert row <= within[1]
    assert (confidence.cpu() - highest).abs().max() <= 5e-4
    if temperature == 0.01:
        exact, _ = naive.correlation_warp(*(t.double() for t in inputs), 0.01, key_mask)
        assert kit.errors(warped, exact)[0] <= UNROUNDED[dtype]
    scores = wide[0] @ wide[1].transpose(1, 2) / temperature
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None], -torch.inf)
    reference = torch.logsumexp(scores, dim=2).nan_to_num(neginf=0)
    assert (logsumexp.cpu() - reference).abs().max() <= 0.05


@pytest.mark.parametrize("splits", [1, 2])
def test_outputs_of_the_operator_share_no_memory(kit, splits):
    """PyTorch refuses an operator whose outputs overlap, when it is called, not before."""
    inputs = on_device(kit.make_inputs("random", 1, 65, 130, 64, 24))
    outputs = correlation_warp_triton.forward(
        *inputs, 0.01, None, tile=small_tile("forward"), splits=splits
    )
    storages = {tensor.untyped_storage().data_ptr() for tensor in (*inputs, *outputs)}
    assert len(storages) == len(inputs) + len(outputs)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("kind", KINDS)
def test_forward(kit, kind, dtype):
    check_forward(kit, kit.make_inputs(kind, 1, 65, 130, 64, 24), dtype)


@pytest.mark.parametrize("splits", [1, 2, 5])
@pytest.mark.parametrize("queries", [1, 63, 64])
def test_forward_splits_the_keys(kit, queries, splits):
    inputs = kit.make_inputs("random", 2, queries, 150, 32, 8)
    check_forward(kit, inputs, torch.float16, splits=splits)


@pytest.mark.parametrize(
    ("channels", "width", "changes"),
    [
        (16, 1, {}),
        (20, 5, {}),
        (96, 150, {"chunk": 64}),
        (256, 16, {"slice": 64}),
        (512, 16, {}),
        (512, 16, {"slice": 128}),
        (16, 512, {"chunk": 256}),
    ],
)
def test_forward_of_other_widths(kit, channels, width, changes):
    inputs = kit.make_inputs("random", 2, 33, 70, channels, width)
    tile = small_tile("forward", **changes)
    check_forward(kit, inputs, torch.float16, tile=tile, splits=2)


@pytest.mark.parametrize("splits", [1, 3])
def test_forward_with_a_mask(kit, splits):
    key_mask = torch.rand(3, 100) > 0.5
    key_mask[1] = False
    key_mask[2, :64] = False  # a whole split without keys
    inputs = kit.make_inputs("random", 3, 40, 100, 32, 8)
    check_forward(kit, inputs, torch.float16, key_mask, splits=splits)


def test_forward_through_descriptors(kit):
    if not INTERPRETED and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the bulk-copy engine came with compute capability 9.0")
    tile = small_tile("forward", descriptors=True, chunk=32)
    check_forward(kit, kit.make_inputs("photo", 2, 70, 100, 64, 48), torch.float16, tile=tile)


def check_backward(kit, inputs, dtype, limit, *, key_mask=None, power=-4, checked=3, **changes):
    rounded = [tensor.to(dtype) for tensor in inputs]
    query, key, values, moved_mask = on_device([*rounded, key_mask])
    warped, _, logsumexp = correlation_warp_triton.forward(
        query, key, values, 0.01, moved_mask, fp32_output=True, tile=small_tile("forward"), splits=1
    )
    exact = [tensor.double().requires_grad_() for tensor in rounded]
    expected = naive.correlation_warp(*exact, 0.01, key_mask)
    grads = [torch.randint(-4, 5, output.shape).double() * 2.0**power for output in expected]
    wanted = torch.autograd.grad(expected, exact, grads)
    got = correlation_warp_backward_triton.backward(
        grads[0].to(torch.float32).to(DEVICE),
        grads[1].float().to(DEVICE),
        query=query,
        key=key,
        values=values,
        temperature=0.01,
        key_mask=moved_mask,
        warped=warped,
        logsumexp=logsumexp,
        tile=small_tile("backward", **changes),
    )
    for gradient, reference in list(zip(got, wanted, strict=True))[:checked]:
        assert kit.errors(gradient, reference)[0] <= limit


def test_backward_keeps_gradients_that_float16_would_lose(kit):
    """As after a mean over many pixels; those of the values end below float16 themselves."""
    inputs = kit.make_inputs("random", 1, 65, 100, 64, 24)
    check_backward(kit, inputs, torch.float16, 1e-2, power=-20, checked=2)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("kind", ["random", "planted", "photo", "low"])
def test_backward(kit, kind, dtype):
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    check_backward(kit, kit.make_inputs(kind, 1, 65, 100, 64, 24), dtype, limit)


@pytest.mark.parametrize(
    ("channels", "width", "changes"),
    [
        (16, 1, {}),
        (100, 130, {"chunk": 64}),
        (130, 40, {"slice": 32, "chunk": 64}),
        (20, 300, {"slice": 64, "rows": 16}),
    ],
)
def test_backward_of_other_widths(kit, channels, width, changes):
    inputs = kit.make_inputs("random", 2, 33, 70, channels, width)
    check_backward(kit, inputs, torch.float16, 1e-2, **changes)


def test_backward_with_a_mask(kit):
    key_mask = torch.rand(3, 70) > 0.5
    key_mask[1] = False
    inputs = kit.make_inputs("random", 3, 40, 70, 32, 8)
    check_backward(kit, inputs, torch.float16, 1e-2, key_mask=key_mask)


def test_backward_computes_only_what_is_asked_for(kit):
    query, key, values = on_device(kit.make_inputs("random", 1, 20, 30, 16, 4))
    warped, _, logsumexp = correlation_warp_triton.forward(
        query, key, values, 0.01, None, tile=small_tile("forward")
    )
    got = correlation_warp_backward_triton.backward(
        torch.ones_like(warped),
        None,
        query=query,
        key=key,
        values=values,
        temperature=0.01,
        key_mask=None,
        warped=warped,
        logsumexp=logsumexp,
        needs=(False, True, False),
        tile=small_tile("backward"),
    )
    assert got[0] is None and got[2] is None
    assert got[1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(("positions", "channels"), [(1, 16), (63, 48), (70, 512)])
def test_center_normalize(kit, positions, channels, dtype):
    limit = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    features = (torch.randn(2, positions, channels) + 3).to(dtype)
    features[:, ::7] = features[:, :1].clone()
    exact = features.double().requires_grad_()
    expected = naive.center_normalize(exact)
    # One position is its own mean: no direction is left to compare.
    grad = torch.randint(-4, 5, expected.shape).to(dtype)
    (wanted,) = torch.autograd.grad(expected, exact, grad.double())
    moved, moved_grad = on_device([features, grad])
    got = center_normalize_triton.forward(moved, 1e-5)
    gradient = center_normalize_triton.backward(moved_grad, moved, 1e-5)
    assert got.isfinite().all() and gradient.isfinite().all()
    if positions > 1:
        assert kit.errors(got, expected)[0] <= limit
        assert kit.errors(gradient, wanted)[0] <= limit


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize(
    ("bins", "pool", "size"),
    [(1, 1, (3, 5)), (33, 1, (7, 9)), (64, 4, (16, 20)), (256, 2, (8, 6))],
)
def test_sphist(kit, bins, pool, size, dtype):
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    ab = (torch.rand(2, 2, *size) * 3 - 1.5).to(dtype)
    centres = torch.linspace(-1, 1, 2 * bins).view(2, bins)
    exact = [ab.double().requires_grad_(), centres.double().requires_grad_()]
    expected = naive.sphist(*exact, 0.1, pool)
    grad = torch.randint(-4, 5, expected.shape).to(dtype)
    wanted = torch.autograd.grad(expected, exact, grad.double())
    moved, moved_centres, moved_grad = on_device([ab, centres, grad])
    got = sphist_triton.forward(moved, moved_centres, 0.1, pool)
    gradients = sphist_triton.backward(moved_grad, moved, moved_centres, 0.1, pool)
    assert kit.errors(got, expected)[0] <= limit
    for gradient, reference in zip(gradients, wanted, strict=True):
        if bins > 1:
            assert kit.errors(gradient, reference)[0] <= 5 * limit
        else:
            assert (gradient == 0).all()
