"""The one loop that runs a system's steps after one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from pikfix.systems.base import Step

Named = dict[str, Tensor]


@torch.no_grad()
def run_step(module: nn.Module, step: Step, inputs: Mapping[str, Tensor]) -> Named:
    """Run a step's module on named tensors, of which it takes those it needs; outputs by name."""
    outputs = module(*(inputs[tensor.name] for tensor in step.inputs))
    values = outputs if isinstance(outputs, tuple) else (outputs,)
    return {tensor.name: value for tensor, value in zip(step.outputs, values, strict=True)}


def inputs_of(
    step: Step, steps: Sequence[Step], modules: Mapping[str, nn.Module], drawn: Mapping[str, Tensor]
) -> Named:
    """What a step gets: of the drawn tensors, and of what steps before it answer where they must.

    Args:
        step: one of `steps`.
        steps: in the order a photo passes them.
        modules: by the steps' names.
        drawn: named tensors with a batch dimension.
    """
    known = dict(drawn)
    for before in steps:
        if all(tensor.name in known for tensor in step.inputs):
            break
        known.update(run_step(modules[before.name], before, known))
    return {tensor.name: known[tensor.name] for tensor in step.inputs}


def run_chain(
    steps: Sequence[Step], modules: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]
) -> Iterator[tuple[Step, Named, Named]]:
    """Run steps in their order on what was given and what the steps before have answered.

    Args:
        steps: in the order a photo passes them.
        modules: by the steps' names.
        inputs: named tensors with a batch dimension, at least what no step gives.

    Yields:
        After each step: the step, its inputs and its outputs, by name.
    """
    known = dict(inputs)
    for step in steps:
        given = {tensor.name: known[tensor.name] for tensor in step.inputs}
        outputs = run_step(modules[step.name], step, given)
        known.update(outputs)
        yield step, given, outputs
