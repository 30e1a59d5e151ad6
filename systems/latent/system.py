"""The declaration of latent translation."""

from __future__ import annotations

import numpy as np
import torch

from pikfix.layers.color import lab_to_rgb
from pikfix.systems.base import Case, System
from pikfix.systems.latent.networks import PRESETS, Latent, LatentConfig
from pikfix.systems.latent.steps import ENSEMBLES, NAME, PYTHON_STEPS, steps
from pikfix.systems.samples import aged, photo_like_lab


def sample_inputs(rng: np.random.Generator, case: Case) -> dict[str, torch.Tensor]:
    """Draw photo_rgb, its photo_l, and marked_mask with a few rectangles."""
    lab = torch.stack([photo_like_lab(rng, *case.photo) for _ in range(case.batch)])
    lab[:, :1] = aged(rng, lab[:, :1])
    height, width = case.photo
    marked = torch.zeros(case.batch, 1, height, width)
    for photo in marked:
        for _ in range(3):
            top, left = int(rng.integers(height)), int(rng.integers(width))
            photo[:, top : top + 1 + height // 12, left : left + 1 + width // 9] = 1
    return {
        "photo_rgb": lab_to_rgb(lab) * 2 - 1,
        "photo_l": lab[:, :1].contiguous(),
        "marked_mask": marked,
    }


SYSTEM = System(
    name=NAME,
    config_type=LatentConfig,
    build=Latent,
    steps=steps,
    python_steps=PYTHON_STEPS,
    ensembles=ENSEMBLES,
    sample_inputs=sample_inputs,
    presets=PRESETS,
    stages={
        "vae_old": "pikfix.systems.latent.stages:VaeOld",
        "vae_clean": "pikfix.systems.latent.stages:VaeClean",
        "mapping": "pikfix.systems.latent.stages:MappingStage",
    },
    protocols={"translate": "pikfix.systems.latent.protocols:Translate"},
    releases="pikfix.systems.latent.released:RELEASES",
)
