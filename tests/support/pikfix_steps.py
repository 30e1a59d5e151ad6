"""The system `pikfix` as tests want it: names, and single steps with their modules."""

from __future__ import annotations

from typing import Any

from torch import nn

from pikfix.inference import InferenceStep
from pikfix.systems.base import Step
from pikfix.systems.pikfix.networks import PikFixConfig
from pikfix.systems.registry import system_of

SYSTEM = system_of("pikfix")
NETWORKS = SYSTEM.step_names
PYTHON_STEPS = tuple(model.name for model in SYSTEM.python_steps)
ENSEMBLES = tuple(model.name for model in SYSTEM.ensembles)


def steps_of(config: PikFixConfig) -> tuple[Step, ...]:
    return SYSTEM.steps(config)


def step_of(config: PikFixConfig, name: str) -> Step:
    return next(step for step in SYSTEM.steps(config) if step.name == name)


def module_of(model: Any, name: str) -> nn.Module:
    return step_of(model.config, name).module(model).eval()


def inference_step(model: Any, name: str, *words: Any) -> InferenceStep:
    step = step_of(model.config, name)
    return InferenceStep(step, step.module(model), *words)
