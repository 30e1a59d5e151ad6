"""The terms of the objective (Pik-Fix, sec. 3.5), each a function of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from kornia.metrics import ssim
from torch import Tensor, nn
from torch.nn import functional as F

from pikfix.kernels import sphist
from pikfix.systems.pikfix.networks.tone import apply_tone, best_tone

SSIM_WINDOW = 11
HISTOGRAM_BINS = 64
HISTOGRAM_SIGMA = 0.03
HISTOGRAM_POOL = 4
"""Side of the average that colours are taken over before the global histogram of the loss; it
suppresses noise and makes the term 16 times cheaper."""


def detail(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean |T(L') - G_L| of `[B, 1, H, W]`, T being the best cubic curve for each photo.

    How much a photo has faded can only be guessed. Where the guess is off by more than the detail
    at stake, L1's gradient is the sign of that one error at every pixel, and neither blur nor grain
    can be seen in it. The curve takes the error out; it has no gradient.
    """
    with torch.no_grad(), torch.autocast(restored.device.type, enabled=False):
        curve = best_tone(restored.float(), clean.float())
    return (apply_tone(restored, curve) - clean).abs().mean()


def perceptual(restored: Sequence[Tensor], clean: Sequence[Tensor], relative: bool) -> Tensor:
    """Σ_j mean |φ_j(L') - φ_j(G_L)|² over levels of features `[B, C, H, W]`.

    relative: divide each level by its own mean square of the clean features, for nets whose
        activations have no published scale.
    """
    terms = []
    for ours, truth in zip(restored, clean, strict=True):
        error = (ours.float() - truth.float()).square().mean()
        if relative:
            error = error / truth.float().square().mean().clamp_min(1e-6)
        terms.append(error)
    return torch.stack(terms).sum()


def histogram(ab: Tensor) -> Tensor:
    """The global colour histogram `[B, 2, K]` of ab `[B, 2, H, W]`; each K sum to 1."""
    centres = torch.linspace(-1, 1, HISTOGRAM_BINS + 1, device=ab.device)[:-1] + 1 / HISTOGRAM_BINS
    pooled = F.avg_pool2d(ab.float(), HISTOGRAM_POOL)
    bins = sphist(pooled, centres, HISTOGRAM_SIGMA, 1)
    return bins.mean(dim=(2, 3)).reshape(-1, 2, HISTOGRAM_BINS)


def earth_movers(ours: Tensor, target: Tensor) -> Tensor:
    """Mean over bins of (CDF - CDF_target)² of histograms `[B, 2, K]`, summed over a and b.

    The published sum over bins grows with K; the mean keeps the weight's meaning.
    """
    difference = ours.cumsum(dim=2) - target.cumsum(dim=2)
    return difference.square().mean(dim=(0, 2)).sum()


def chroma_l1(ab: Tensor, truth: Tensor, emphasis: float = 0.0) -> Tensor:
    """Mean |ab - truth| over `[B, 2, H, W]`.

    emphasis: e > 0 weighs each pixel by 1 + e |truth| / 0.25, normalised to a mean of 1: errors
        at saturated places, which are few, then count more.
    """
    error = (ab - truth).abs()
    if emphasis:
        weight = 1 + emphasis * torch.linalg.vector_norm(truth, dim=1, keepdim=True) / 0.25
        error = error * (weight / weight.mean())
    return error.mean()


def dissimilarity(picture: Tensor, truth: Tensor) -> Tensor:
    """1 - SSIM of pictures `[B, C, H, W]` in [0, 1], both in float32.

    Gaussian window of 11 x 11, sigma 1.5, constants 0.01 and 0.03 (Wang et al. 2004), where the
    whole window fits. Its variances are differences of squares, which bfloat16 cannot hold.

    Raises:
        ValueError: the sides are smaller than the window.
    """
    if min(picture.shape[-2:]) < SSIM_WINDOW:
        height, width = picture.shape[-2:]
        raise ValueError(f"SSIM needs sides of at least {SSIM_WINDOW}, got {width} x {height}")
    # kornia's filters are separable: seven times as fast on a CPU as a window of 121 weights.
    with torch.autocast(picture.device.type, enabled=False):
        value: Tensor = ssim(picture.float(), truth.float(), SSIM_WINDOW, padding="valid")
    return 1 - value.mean()


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over positions of 1 - cosine of two feature maps `[B, C, h, w]`, `[B, C, h', w']`.

    The teacher is averaged onto the student's grid, both are compared after the batch's mean
    feature of each is subtracted: what all pictures share carries no meaning.
    """
    height, width = student.shape[-2:]
    teacher = F.adaptive_avg_pool2d(teacher.float(), (height, width))
    student = student.float()
    student = student - student.mean(dim=(0, 2, 3), keepdim=True)
    teacher = teacher - teacher.mean(dim=(0, 2, 3), keepdim=True)
    return 1 - F.cosine_similarity(student, teacher, dim=1, eps=1e-6).mean()


class PatchDiscriminator(nn.Module):
    """PatchGAN over L and ab `[B, 3, H, W]`; judges overlapping patches of 70 x 70.

    Isola et al., CVPR 2017: 4 x 4 convolutions of width, 2, 4 and 8 times width, batch
    normalisation from the second on; the answer `[B, 1, h, w]` is linear, for least squares.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        channels = width
        for stride in (2, 2, 1):
            layers += [
                nn.Conv2d(channels, 2 * channels, 4, stride, 1, bias=False),
                nn.BatchNorm2d(2 * channels),
                nn.LeakyReLU(0.2),
            ]
            channels *= 2
        layers.append(nn.Conv2d(channels, 1, 4, 1, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, lab: Tensor) -> Tensor:
        out: Tensor = self.layers(lab)
        return out


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Least squares: half of E (D(real) - 1)² + E D(fake)² (Mao et al., ICCV 2017)."""
    return ((real.float() - 1).square().mean() + fake.float().square().mean()) / 2


def generator_loss(fake: Tensor) -> Tensor:
    """Least squares: E (D(fake) - 1)² / 2."""
    return (fake.float() - 1).square().mean() / 2
