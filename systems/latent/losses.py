"""The terms that train latent translation, each a function of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Judgements = Sequence[Sequence[Tensor]]
"""Of each scale of a discriminator, the outputs of its layers; the last is its judgement."""

_LEVELS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)


def adversarial(fake: Judgements) -> Tensor:
    """Least squares, as published: sum over scales of E (D(fake) - 1)²."""
    return torch.stack([(scale[-1].float() - 1).square().mean() for scale in fake]).sum()


def told_apart(real: Judgements, fake: Judgements) -> Tensor:
    """What a discriminator minimises: half of sum over scales of E (D(real) - 1)² + E D(fake)²."""
    terms = [
        (truth[-1].float() - 1).square().mean() + ours[-1].float().square().mean()
        for truth, ours in zip(real, fake, strict=True)
    ]
    return torch.stack(terms).sum() / 2


def matched(real: Judgements, fake: Judgements) -> Tensor:
    """L1 between a discriminator's features of both: sum over layers, mean over scales."""
    terms = [
        F.l1_loss(ours.float(), truth.float().detach())
        for truth_scale, our_scale in zip(real, fake, strict=True)
        for truth, ours in zip(truth_scale[:-1], our_scale[:-1], strict=True)
    ]
    return torch.stack(terms).sum() / len(real)


def perceptual(ours: Sequence[Tensor], truth: Sequence[Tensor], *, relative: bool) -> Tensor:
    """L1 between features, the deeper the heavier: 1/32, 1/16, 1/8, 1/4, 1.

    Args:
        ours: features, from fine to coarse; of fewer than five the heaviest weights count.
        truth: of the picture that is wanted.
        relative: divide by the mean size of the wanted features, which have no published scale.
    """
    terms = []
    for weight, mine, wanted in zip(_LEVELS[-len(ours) :], ours, truth, strict=True):
        error = F.l1_loss(mine.float(), wanted.float())
        if relative:
            error = error / wanted.float().abs().mean().clamp_min(1e-6)
        terms.append(weight * error)
    return torch.stack(terms).sum()


def of_kind(values: Tensor, kind: Tensor) -> Tensor:
    """Mean over those samples `[B, ...]` whose kind `[B]` is 1; 0 without any.

    A batch may have none of a kind, over which a plain mean would not be a number.
    """
    each = values.float().flatten(1).mean(dim=1)
    return (each * kind).sum() / kind.sum().clamp(min=1)
