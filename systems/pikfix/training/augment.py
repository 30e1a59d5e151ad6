"""From a batch of bytes to the networks' tensors: Lab, affine maps, colour jitter; batched."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pikfix.evaluation.siblings import jitter_colors, rotate_hue
from pikfix.layers.color import rgb_to_lab
from pikfix.systems.pikfix.training.batches import Batch


class Inputs(NamedTuple):
    """Inputs of the networks and losses for one step.

    photo_l: `[B, 1, S, S]`, degraded or clean, L/50 - 1.
    truth_lab: `[B, 3, S, S]`, scaled Lab.
    truth_rgb: `[B, 3, S, S]`, in [0, 1], as photographed (no common hue rotation).
    reference_lab: `[B, R, 3, S, S]`, scaled Lab.
    kinds: `[B, R]`, see `batches`.
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
