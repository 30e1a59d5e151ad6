import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.export import Dim

from pikfix.kernels import center_normalize, naive, sphist
from pikfix.kernels import sphist as sphist_function
from pikfix.kernels.low_rank import compress, expand, histogram_basis, histogram_warp


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


@pytest.mark.parametrize("sigma", [0.1, 0.05])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-4])
def test_the_basis_keeps_every_colour_within_the_tolerance(sigma, tolerance):
    centres = torch.linspace(-1, 1, 200)
    basis = histogram_basis(centres, sigma, tolerance)
    colours = torch.rand(1, 2, 40, 50) * 2 - 1
    exact = naive.sphist(colours, centres, sigma).flatten(2).transpose(1, 2)
    again = expand(compress(exact, basis), basis)
    lost = (again - exact).view(-1, 200).norm(dim=1) / exact.reshape(-1, 200).norm(dim=1)
    assert lost.max() <= tolerance + 1e-6
    smaller = basis[..., : basis.shape[2] - 8]
    assert basis.shape[2] % 8 == 0
    again = expand(compress(exact, smaller), smaller)
    lost = (again - exact).view(-1, 200).norm(dim=1) / exact.reshape(-1, 200).norm(dim=1)
    assert lost.max() > tolerance, "eight fewer would have been enough"


def test_a_narrow_kernel_falls_back_to_the_full_form(kit):
    centres = torch.linspace(-1, 1, 64)
    assert histogram_basis(centres, 0.01) is None
    query, key, _ = kit.make_inputs("random", 1, 20, 60, 16, 1)
    histogram = naive.sphist(torch.rand(1, 2, 6, 10), centres, 0.01).flatten(2).transpose(1, 2)
    got = histogram_warp(query, key, histogram, None, 0.01)
    expected = naive.correlation_warp(query, key, histogram, 0.01)
    assert kit.errors(got[0], expected[0])[0] <= 1e-4


def test_the_low_rank_warp_adds_no_more_than_its_tolerance(kit):
    centres = torch.stack([torch.linspace(-1, 1, 256), torch.linspace(-0.9, 0.8, 256)])
    basis = histogram_basis(centres, 0.1)
    assert basis.shape[2] <= 32
    query, key, _ = kit.make_inputs("photo", 2, 200, 600, 64, 1)
    ab = torch.rand(2, 2, 20, 30) * 2 - 1
    histogram = naive.sphist(ab, centres, 0.1).flatten(2).transpose(1, 2).requires_grad_()
    warped, confidence = histogram_warp(query, key, histogram, basis, 0.005)
    expected, highest = naive.correlation_warp(query, key, histogram, 0.005)
    assert kit.errors(warped, expected)[0] <= 1e-3
    assert warped.min() >= -1e-3
    assert (confidence - highest).abs().max() <= 1e-5
    (gradient,) = torch.autograd.grad(warped.square().sum(), histogram)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.zeros(2, 3, 4), 0.1), r"\[2, 3, 4\]"),
        ((torch.zeros(3, 4), 0.1), r"\[3, 4\]"),
        ((torch.zeros(4), 0.0), "sigma = 0.0"),
        ((torch.zeros(4), 0.1, 1.0), "tolerance = 1.0"),
        ((torch.zeros(0), 0.1), r"\[0\]"),
    ],
)
def test_histogram_basis_names_what_it_got(arguments, named):
    with pytest.raises(ValueError, match=f"histogram_basis: expected .*{named}"):
        histogram_basis(*arguments)


def test_a_basis_of_other_bins_is_refused():
    query = torch.zeros(1, 3, 8)
    with pytest.raises(ValueError, match=r"histogram = \[1, 3, 10\]"):
        histogram_warp(query, query, torch.zeros(1, 3, 10), torch.zeros(2, 6, 2), 0.01)
