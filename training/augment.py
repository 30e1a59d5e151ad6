"""From a batch of bytes to the networks' tensors: Lab, affine maps, colour jitter; batched."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pikfix.networks import rgb_to_lab
from pikfix.training.dataset import Batch


class Inputs(NamedTuple):
    """What the networks and losses of one step take.

    photo_l: `[B, 1, S, S]`, degraded or clean, L/50 - 1.
    truth_lab: `[B, 3, S, S]`, scaled Lab.
    truth_rgb: `[B, 3, S, S]`, in [0, 1], as photographed (no common hue rotation).
    reference_lab: `[B, R, 3, S, S]`, scaled Lab.
    kinds: `[B, R]`, see `dataset`.
    """

    photo_l: Tensor
    truth_lab: Tensor
    truth_rgb: Tensor
    reference_lab: Tensor
    kinds: Tensor


@torch.no_grad()
def prepare(batch: Batch) -> Inputs:
    """Convert a batch, on the device where it lies."""
    truth_rgb = batch["truth"].float() / 255
    truth = rotate_hue(rgb_to_lab(truth_rgb), batch["hue"])
    clean_l = truth[:, :1]
    degraded_l = batch["degraded"].float() * (2 / 255) - 1
    # Clean samples keep the exact L: nothing is rounded where nothing was degraded.
    photo_l = torch.where(batch["is_degraded"].view(-1, 1, 1, 1), degraded_l, clean_l)

    count = batch["references"].shape[1]
    reference = batch["references"].flatten(0, 1).float() / 255
    grid = F.affine_grid(batch["affine"].flatten(0, 1), list(reference.shape), align_corners=False)
    reference = F.grid_sample(reference, grid, padding_mode="reflection", align_corners=False)
    reference = rgb_to_lab(reference)
    hue, saturation, contrast = batch["jitter"].flatten(0, 1).unbind(1)
    hue = hue + batch["hue"].repeat_interleave(count)
    reference = jitter_colors(reference, hue, saturation, contrast)
    return Inputs(
        photo_l,
        truth,
        truth_rgb,
        reference.reshape(-1, count, *reference.shape[1:]),
        batch["kinds"],
    )


def rotate_hue(lab: Tensor, angle: Tensor) -> Tensor:
    """Turn ab of scaled Lab `[B, 3, H, W]` by `[B]` radians; L stays."""
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    lightness, a, b = lab.unbind(1)
    return torch.stack((lightness, cos * a - sin * b, sin * a + cos * b), dim=1)


def jitter_colors(lab: Tensor, hue: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Turn, scale and stretch scaled Lab `[B, 3, H, W]`, each by its own `[B]` amount.

    The contrast turns about each picture's mean L; results stay in [-1, 1].
    """
    lab = rotate_hue(lab, hue)
    lightness, ab = lab[:, :1], lab[:, 1:]
    mean = lightness.mean(dim=(2, 3), keepdim=True)
    lightness = mean + (lightness - mean) * contrast.view(-1, 1, 1, 1)
    ab = ab * saturation.view(-1, 1, 1, 1)
    return torch.cat((lightness, ab), dim=1).clamp(-1, 1)
