"""The seam between the trainer and what is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from pikfix.systems.checkpoint import save_checkpoint


class Figures(NamedTuple):
    """The findings of a validation.

    measures: means over the validation photos, by the names of `Stage.measures`.
    score: what the best weights have most of.
    grid: `[H, W, 3]`, pictures of the first photos, or None.
    """

    measures: dict[str, float]
    score: float
    grid: npt.NDArray[np.uint8] | None = None


class Critic(NamedTuple):
    """A network that learns to tell a stage's outputs from the truth.

    loss: what it minimises, of the critic (on its device), inputs and outputs.
    """

    name: str
    module: nn.Module
    loss: Callable[[nn.Module, Any, Any], Tensor]


class Stage:
    """One way to train a network, or parts of it; `Trainer` takes any.

    name: for people.
    network: what is trained, averaged, validated and exported.
    extras: modules that exist in training only, by name; trained as well.
    weights: of the loss terms, by name; all that the stage may have.
    shown: terms that are shown on the line of progress.
    critics: networks that are trained against this one.
    data: batches by step: `data[step]` is a dict of tensors on the CPU.
    photos: how many an epoch has.
    needs_colors: whether photos without colours are of no use to it.
    measures: what `validate` measures; empty where it measures nothing.
    takes: what it uses of the material that a run may have besides: "stamps", "old_photos",
        "feature_weights".
    """

    name: str
    network: nn.Module
    extras: Mapping[str, nn.Module] = {}
    weights: Mapping[str, float]
    shown: Sequence[str] = ()
    critics: Sequence[Critic] = ()
    data: Any
    photos: int
    needs_colors: bool = True
    measures: Sequence[str] = ()
    takes: Sequence[str] = ()

    def parameters(self) -> list[nn.Parameter]:
        """The network's parameters that are trained; the others are frozen."""
        return list(self.network.parameters())

    def anneal(self, network: nn.Module, used: float) -> dict[str, float]:
        """Set in `network` what changes with the share of the budget that is used; for the log."""
        return {}

    def batch(self, raw: Any) -> Any:
        """The inputs of one step, of what `data` gave, on the device where it lies."""
        return raw

    def forward(self, inputs: Any) -> Any:
        """Run the network on inputs; tensors in a dict or tuple."""
        raise NotImplementedError

    def losses(self, inputs: Any, outputs: Any) -> dict[str, Tensor]:
        """Unweighted terms, some of `weights`; each is a scalar with a gradient."""
        raise NotImplementedError

    def validate(self, network: nn.Module) -> Figures:
        """Measure a network, in evaluation mode."""
        raise NotImplementedError

    def save(self, network: Any, path: Path, metadata: dict[str, str]) -> None:
        """Write a checkpoint, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        save_checkpoint(network, path, metadata)
