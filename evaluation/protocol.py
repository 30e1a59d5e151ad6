"""The seam between the evaluator and what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pikfix.evaluation.choosers import ReferenceChooser
from pikfix.evaluation.metrics import Metric
from pikfix.references.library import DEFAULT_COUNT

Figures = dict[str, float]
Degrade = Callable[[npt.NDArray[np.float32], np.random.Generator], npt.NDArray[np.float32]]
"""Damages a luminance [H, W] in [0, 1] (L/100) and returns one of the same kind."""


@dataclass(frozen=True)
class Setting:
    """The tools of a protocol.

    choose: finds references, or None.
    degrade: damages a luminance, or None.
    references: how many automatic references the model gets at once.
    device: where the model is.
    lpips: a further metric of pictures, or None.
    """

    choose: ReferenceChooser | None = None
    degrade: Degrade | None = None
    references: int = DEFAULT_COUNT
    device: str | torch.device = "cpu"
    lpips: Metric | None = None


class Photo(NamedTuple):
    """A photo to measure on: its file, and RGB [3, H, W] in [0, 1], the short side 256."""

    path: Path
    rgb: Tensor


class Measured(NamedTuple):
    """The results of one photo.

    figures: by what gave the picture ("model", "grey", "input", ...), then by metric.
    pictures: for the contact sheet, RGB [3, 256, 256] by what gave them.
    references: names of the references that the model got.
    """

    figures: dict[str, Figures]
    pictures: dict[str, Tensor]
    references: list[str]


class Protocol:
    """One way to measure a model; `evaluate` takes any.

    name: as the command line has it.
    summary: what is measured, in a few words.
    chooses, damages: whether it needs a chooser of references, and a degradation.
    shows: whether it has pictures for a contact sheet.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    chooses: ClassVar[bool] = False
    damages: ClassVar[bool] = False
    shows: ClassVar[bool] = True

    def __init__(self, setting: Setting) -> None:
        if self.chooses and setting.choose is None:
            raise ValueError(f"protocol {self.name} needs references: give a chooser")
        if self.damages and setting.degrade is None:
            raise ValueError(f"protocol {self.name} needs damaged photos: give a degradation")
        if setting.references < 1:
            raise ValueError(f"references is {setting.references}: at least 1")
        self.setting = setting

    @property
    def references(self) -> int:
        """How many references the model gets at once."""
        return self.setting.references if self.chooses else 0

    def measure(self, model: Any, photo: Photo, rng: np.random.Generator) -> Measured:
        """Measure on one photo.

        Args:
            model: in evaluation mode, on the setting's device.
            photo: on the CPU.
            rng: of everything random.

        Raises:
            EvaluationError: this photo cannot be measured on.
        """
        raise NotImplementedError


def by_name(protocols: Iterable[type[Protocol]]) -> dict[str, type[Protocol]]:
    """Protocols by their names."""
    return {protocol.name: protocol for protocol in protocols}
