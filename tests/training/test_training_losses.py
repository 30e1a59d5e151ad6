from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch.nn import functional as F

from pikfix.training import losses


def _numpy_histogram(ab: np.ndarray) -> np.ndarray:
    """Written from the definition: 64 bins over [-1, 1], sigma 0.03, pooled 4 x 4, float64."""
    batch, _, height, width = ab.shape
    pooled = ab.astype(np.float64).reshape(batch, 2, height // 4, 4, width // 4, 4).mean((3, 5))
    centres = np.array([-1 + (2 * k + 1) / 64 for k in range(64)])
    weight = np.exp(-((pooled[..., None] - centres) ** 2) / (2 * 0.03**2))
    weight /= weight.sum(-1, keepdims=True)
    return weight.mean((2, 3))


def test_histogram_matches_its_definition(noise):
    ab = noise(2, 2, 16, 24)
    ours = losses.histogram(ab).numpy()
    np.testing.assert_allclose(ours, _numpy_histogram(ab.numpy()), atol=2e-6)
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-5)


def test_earth_movers_against_numpy_and_by_hand(noise):
    first, second = (_numpy_histogram(noise(3, 2, 16, 16, seed=s).numpy()) for s in (1, 2))
    expected = 0.0
    for channel in range(2):
        gap = np.cumsum(first[:, channel], -1) - np.cumsum(second[:, channel], -1)
        expected += float(np.mean(gap**2))
    ours = losses.earth_movers(torch.from_numpy(first), torch.from_numpy(second))
    assert float(ours) == pytest.approx(expected, rel=1e-9)
    # All of a's mass moved by 3 of 8 bins: three CDF values differ by one.
    a, b = torch.zeros(1, 2, 8), torch.zeros(1, 2, 8)
    a[0, 0, 2] = b[0, 0, 5] = a[0, 1, 0] = b[0, 1, 0] = 1
    assert float(losses.earth_movers(a, b)) == pytest.approx(3 / 8)


def test_earth_movers_grows_with_the_distance_unlike_a_bin_by_bin_difference():
    truth = torch.full((1, 2, 8, 8), -0.5)
    near, far = (losses.histogram(torch.full((1, 2, 8, 8), x)) for x in (-0.3, 0.3))
    target = losses.histogram(truth)
    assert losses.earth_movers(far, target) > 2 * losses.earth_movers(near, target)


def test_gradient_of_the_histogram_term_moves_colours_towards_the_target():
    ab = torch.full((1, 2, 8, 8), 0.1, requires_grad=True)
    target = losses.histogram(torch.full((1, 2, 8, 8), 0.2))
    losses.earth_movers(losses.histogram(ab), target).backward()
    assert ab.grad is not None
    assert (ab.grad < 0).all()


def test_chroma_l1_plain_and_weighted(noise):
    ours, truth = noise(2, 2, 8, 8, seed=1), noise(2, 2, 8, 8, seed=2)
    difference = np.abs(ours.numpy() - truth.numpy()).astype(np.float64)
    assert float(losses.chroma_l1(ours, truth)) == pytest.approx(difference.mean(), rel=1e-5)
    chroma = np.hypot(truth[:, 0].numpy(), truth[:, 1].numpy()).astype(np.float64)
    weight = 1 + 2 * chroma / 0.25
    weight /= weight.mean()
    expected = (difference * weight[:, None]).mean()
    assert float(losses.chroma_l1(ours, truth, 2.0)) == pytest.approx(expected, rel=1e-5)


def test_detail_is_l1_after_the_best_cubic_curve(noise):
    truth = noise(2, 1, 24, 24, seed=1)
    ours = truth**3 * 0.4 + 0.5 * truth + 0.2 + 0.1 * noise(2, 1, 24, 24, seed=2)
    expected = []
    for a, b in zip(ours.double().numpy(), truth.double().numpy(), strict=True):
        fitted = np.polyval(np.polyfit(a.ravel(), b.ravel(), 3), a)
        expected.append(np.abs(fitted - b).mean())
    assert float(losses.detail(ours, truth)) == pytest.approx(np.mean(expected), rel=1e-3)


def test_detail_sees_noise_behind_a_wrong_exposure(noise):
    """What it is for: L1's gradient is then one sign everywhere, whatever the noise."""
    truth, grain = noise(1, 1, 32, 32, seed=1), 0.05 * noise(1, 1, 32, 32, seed=2)
    ours = (0.9 * truth + 0.4 + grain).requires_grad_()
    (plain,) = torch.autograd.grad((ours - truth).abs().mean(), ours)
    (detail,) = torch.autograd.grad(losses.detail(ours, truth), ours)

    def agreement(gradient):
        return float(torch.corrcoef(torch.stack((gradient.ravel(), grain.ravel())))[0, 1])

    assert plain.std() == 0
    assert agreement(detail) > 0.6


def test_perceptual_plain_and_relative(noise):
    ours = [noise(1, 3, 8, 8, seed=1), noise(1, 5, 4, 4, seed=2)]
    truth = [noise(1, 3, 8, 8, seed=3), noise(1, 5, 4, 4, seed=4)]
    squares = [float(F.mse_loss(a.double(), b.double())) for a, b in zip(ours, truth, strict=True)]
    assert float(losses.perceptual(ours, truth, False)) == pytest.approx(sum(squares), rel=1e-5)
    relative = sum(
        s / float(b.double().square().mean()) for s, b in zip(squares, truth, strict=True)
    )
    assert float(losses.perceptual(ours, truth, True)) == pytest.approx(relative, rel=1e-5)
    scaled = losses.perceptual([x * 50 for x in ours], [x * 50 for x in truth], True)
    assert float(scaled) == pytest.approx(relative, rel=1e-4)


def test_dissimilarity_is_skimages_and_stays_in_float32():
    """Also under autocast: variances of a bright, flat picture drown in bfloat16."""
    rng = np.random.default_rng(0)
    truth = 0.9 + 0.02 * rng.random((2, 3, 24, 32)).astype(np.float32)
    ours = truth + 0.01 * rng.random(truth.shape).astype(np.float32)
    expected = [
        structural_similarity(
            a.astype(np.float64), b.astype(np.float64), channel_axis=0, data_range=1.0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )
        for a, b in zip(ours, truth, strict=True)
    ]  # fmt: skip
    picture = torch.from_numpy(ours).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = losses.dissimilarity(picture, torch.from_numpy(truth))
    assert value.item() == pytest.approx(1 - np.mean(expected), rel=0.02)
    value.backward()
    assert picture.grad is not None and float(picture.grad.abs().sum()) > 0
    assert float(losses.dissimilarity(picture.detach(), picture.detach())) == pytest.approx(
        0, abs=1e-5
    )


def test_dissimilarity_refuses_what_the_window_does_not_fit():
    with pytest.raises(ValueError, match="at least 11, got 10 x 64"):
        losses.dissimilarity(torch.zeros(1, 1, 64, 10), torch.zeros(1, 1, 64, 10))


def test_distillation_is_the_mean_cosine_distance_of_centred_features(noise):
    student, teacher = noise(2, 6, 2, 2, seed=1), noise(2, 6, 4, 4, seed=2)
    s = student.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 6)
    t = teacher.double().numpy().reshape(2, 6, 2, 2, 2, 2).mean((3, 5))
    t = t.transpose(0, 2, 3, 1).reshape(-1, 6)
    s, t = s - s.mean(0), t - t.mean(0)
    cosine = (s * t).sum(1) / np.linalg.norm(s, axis=1) / np.linalg.norm(t, axis=1)
    assert float(losses.distillation(student, teacher)) == pytest.approx(
        1 - cosine.mean(), rel=1e-4
    )
    assert float(losses.distillation(teacher * 3 + 1, teacher)) == pytest.approx(0, abs=1e-5)


def test_least_squares_gan():
    real, fake = torch.tensor([[0.5, 1.0]]), torch.tensor([[0.25, -0.25]])
    assert float(losses.discriminator_loss(real, fake)) == pytest.approx((0.125 + 0.0625) / 2)
    assert float(losses.generator_loss(fake)) == pytest.approx((0.75**2 + 1.25**2) / 4)


def test_discriminator_has_the_published_size_and_a_receptive_field_of_70():
    network = losses.PatchDiscriminator(64).eval()
    # 2.76 M parameters with two input channels; L is a third.
    published = 2_763_000 + 64 * 16
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(published, rel=2e-3)
    x = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)).requires_grad_()
    answer = network(x)
    assert answer.shape == (1, 1, 30, 30)
    answer[0, 0, 15, 15].backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70
