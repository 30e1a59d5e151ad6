import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim

from pikfix.kernels import center_normalize, naive, sphist
from pikfix.kernels import sphist as sphist_function


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bins", "pool"), [(1, 1), (64, 1), (64, 4), (200, 2)])
def test_sphist_matches_its_twin(kit, bins, pool, dtype):
    limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    ab = (torch.rand(2, 2, 24, 32) * 2 - 1).to(dtype)
    centres = torch.linspace(-1, 1, 2 * bins).view(2, bins)
    got = sphist(ab, centres, 0.05, pool)
    assert got.dtype == dtype
    expected = naive.sphist(ab.double(), centres.double(), 0.05, pool)
    assert kit.errors(got, expected)[0] <= limit
    sums = got.double().view(2, 2, bins, -1).sum(dim=2)
    assert (sums - 1).abs().max() <= 10 * limit


def test_stripes_of_a_large_image_match_the_whole(kit, monkeypatch):
    import sys

    monkeypatch.setattr(sys.modules["pikfix.kernels.sphist"], "_STRIPE_ELEMENTS", 5000)
    ab = (torch.rand(1, 2, 40, 24) * 2 - 1).requires_grad_()
    centres = torch.linspace(-1, 1, 16).requires_grad_()
    expected = naive.sphist(ab, centres, 0.1, 4)
    got = sphist_function(ab, centres, 0.1, 4)
    assert kit.errors(got, expected)[0] <= 1e-5
    grad = torch.randn_like(expected)
    for left, right in zip(
        torch.autograd.grad(got, (ab, centres), grad),
        torch.autograd.grad(expected, (ab, centres), grad),
        strict=True,
    ):
        assert kit.errors(left, right)[0] <= 1e-5


@settings(max_examples=30, deadline=None)
@given(st.floats(-50, 50), st.floats(1e-3, 2))
def test_every_colour_has_a_histogram(colour, sigma):
    bins = sphist(torch.full((1, 2, 1, 1), colour), torch.linspace(-1, 1, 9), sigma)
    assert bins.isfinite().all()
    torch.testing.assert_close(bins.view(2, 9).sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("shape", [(7,), (2, 7)])
def test_gradients_of_colours_and_centres(shape):
    ab = (torch.rand(2, 2, 4, 6, dtype=torch.float64) * 2 - 1).requires_grad_()
    centres = (torch.rand(shape, dtype=torch.float64) * 2 - 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, u: sphist(x, u, 0.3, 2), (ab, centres))
    both = centres.detach().expand(2, 7).clone().requires_grad_()
    torch.library.opcheck(torch.ops.pikfix.sphist.default, (ab, both, 0.3, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_center_normalize_matches_its_twin(kit, dtype):
    limit = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 5e-3}[dtype]
    features = (torch.randn(2, 50, 24) * 3 + 1).to(dtype)
    got = center_normalize(features)
    assert got.dtype == dtype
    assert kit.errors(got, naive.center_normalize(features.double()))[0] <= limit


def test_a_zero_norm_position_is_finite_with_a_finite_gradient():
    features = torch.ones(1, 4, 8, requires_grad=True)
    result = center_normalize(features)
    result.sum().backward()
    assert (result == 0).all()
    assert features.grad.isfinite().all()


def test_gradients_of_center_normalize():
    features = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(center_normalize, features)
    torch.library.opcheck(torch.ops.pikfix.center_normalize.default, (features, 1e-5))


class _Pooled(torch.nn.Module):
    def forward(self, ab):
        return sphist(ab, torch.linspace(-1, 1, 8), 0.1, 4)


def test_export_keeps_the_image_size_free():
    free = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    program = torch.export.export(_Pooled(), (torch.rand(2, 2, 8, 12),), dynamic_shapes=(free,))
    other = torch.rand(3, 2, 16, 28)
    assert torch.equal(program.module()(other), _Pooled()(other))
