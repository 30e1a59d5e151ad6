"""The declaration of the damage networks."""

from __future__ import annotations

import numpy as np
import torch

from pikfix.systems.base import Case, Step, System
from pikfix.systems.damage.networks import PRESETS, Damage, DamageConfig
from pikfix.systems.damage.steps import damage_step
from pikfix.systems.samples import aged, photo_like_lab

NAME = "damage"


def steps(config: DamageConfig) -> tuple[Step, ...]:
    """The one step."""
    return (damage_step(NAME, config, lambda model: model),)


def sample_inputs(rng: np.random.Generator, case: Case) -> dict[str, torch.Tensor]:
    """Draw photo_l."""
    photos = torch.stack([photo_like_lab(rng, *case.photo)[:1] for _ in range(case.batch)])
    return {"photo_l": aged(rng, photos)}


SYSTEM = System(
    name=NAME,
    config_type=DamageConfig,
    build=Damage,
    steps=steps,
    python_steps=(),
    ensembles=(),
    sample_inputs=sample_inputs,
    presets=PRESETS,
    stages={
        "detector": "pikfix.systems.damage.stages:Detector",
        "filler": "pikfix.systems.damage.stages:Filler",
    },
    protocols={"damage": "pikfix.systems.damage.protocols:DamageProtocol"},
    releases="pikfix.systems.damage.released:RELEASES",
)
