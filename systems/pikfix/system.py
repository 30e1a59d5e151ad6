"""The declaration of Pik-Fix."""

from __future__ import annotations

import numpy as np
import torch

from pikfix.systems.base import Case, System
from pikfix.systems.pikfix.networks import PRESETS, PikFix, PikFixConfig, to_working
from pikfix.systems.pikfix.steps import ENSEMBLES, NAME, PYTHON_STEPS, steps
from pikfix.systems.samples import aged, photo_like_lab


def sample_inputs(rng: np.random.Generator, case: Case) -> dict[str, torch.Tensor]:
    """Draw photo_l and reference_lab, and the working_l of an unrestored photo."""
    photos = torch.stack([photo_like_lab(rng, *case.photo)[:1] for _ in range(case.batch)])
    references = torch.stack(
        [
            torch.stack([photo_like_lab(rng, *case.reference) for _ in range(case.references)])
            for _ in range(case.batch)
        ]
    )
    photo_l = aged(rng, photos)
    return {"photo_l": photo_l, "reference_lab": references, "working_l": to_working(photo_l)}


SYSTEM = System(
    name=NAME,
    config_type=PikFixConfig,
    build=PikFix,
    steps=steps,
    python_steps=PYTHON_STEPS,
    ensembles=ENSEMBLES,
    sample_inputs=sample_inputs,
    presets=PRESETS,
    protocols={
        "colorize": "pikfix.systems.pikfix.protocols:Colorize",
        "sibling": "pikfix.systems.pikfix.protocols:Sibling",
        "restore": "pikfix.systems.pikfix.protocols:Restore",
        "full": "pikfix.systems.pikfix.protocols:Full",
        "kinds": "pikfix.systems.pikfix.protocols:Kinds",
    },
    releases="pikfix.systems.pikfix.released:RELEASES",
)
