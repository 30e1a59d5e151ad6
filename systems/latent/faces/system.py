"""The declaration of the generator of faces: a system of one step, and part of `latent`."""

from __future__ import annotations

import numpy as np
import torch

from pikfix.layers.color import lab_to_rgb
from pikfix.layers.sizes import SIDE_MULTIPLE, working_size
from pikfix.systems.base import Case, Step, System, TensorSpec
from pikfix.systems.latent.faces.generator import PRESETS, FaceConfig, FaceGenerator
from pikfix.systems.latent.faces.served import MODEL
from pikfix.systems.latent.faces.served import SYSTEM as NAME
from pikfix.systems.samples import photo_like_lab

FACE_RGB = TensorSpec("face_rgb", (3, "h", "w"))
DRAWN_RGB = TensorSpec("drawn_rgb", (3, "h", "w"))
"""Aligned faces, (sRGB - 0.5) / 0.5."""


def steps(config: FaceConfig) -> tuple[Step, ...]:
    """The one step."""
    return (
        Step(
            MODEL,
            (FACE_RGB,),
            (DRAWN_RGB,),
            system=NAME,
            config=config,
            side_multiple=SIDE_MULTIPLE,
            lowest_precision="bf16",
        ),
    )


def sample_inputs(rng: np.random.Generator, case: Case) -> dict[str, torch.Tensor]:
    """Draw face_rgb."""
    size = working_size(*case.photo)
    pictures = torch.stack([photo_like_lab(rng, *size) for _ in range(case.batch)])
    return {"face_rgb": 2 * lab_to_rgb(pictures) - 1}


SYSTEM = System(
    name=NAME,
    config_type=FaceConfig,
    build=FaceGenerator,
    steps=steps,
    python_steps=(),
    ensembles=(),
    sample_inputs=sample_inputs,
    presets=PRESETS,
    releases="pikfix.systems.latent.faces.released:RELEASES",
)
