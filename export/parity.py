"""The parity gate: no network is published unless it computes what PyTorch computes in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from pikfix.evaluation.parity import Parity, compare
from pikfix.export.errors import ParityError
from pikfix.systems.base import Case, Step, System
from pikfix.systems.chain import run_chain

Arrays = dict[str, npt.NDArray[np.float32]]
Runner = Callable[[Arrays], Arrays]


CASES = (
    Case(1, 1, (256, 256), (256, 256)),
    Case(2, 3, (96, 224), (64, 160)),
    Case(1, 2, (160, 672), (128, 96)),
    Case(1, 1, (32, 32), (32, 32)),
)
"""A plain case; batch 2 with several references; a photo larger than its working size; one
position at the coarsest scale. Sides are odd multiples of 32 where that matters."""


@dataclass(frozen=True)
class Limits:
    """How far an exported step may be from PyTorch in float32; None is no limit.

    max_abs: largest difference on [-1, 1]. The default is what clients of float32 networks are
        promised.
    min_psnr: in dB, peak to peak 2.
    max_worst_tile: largest root-mean-square difference of a tile of 32 x 32.

    What spans more than [-1, 1], as latents do, is measured in units of half its span.
    """

    max_abs: float | None = 1e-3
    min_psnr: float | None = None
    max_worst_tile: float | None = None


def distance(expected: npt.NDArray[Any], actual: npt.NDArray[Any]) -> Parity:
    """How far a tensor is from what it should be, in the units that limits have."""
    unit = max(1.0, float(np.ptp(expected)) / 2) if expected.size else 1.0
    return compare(expected / unit, actual / unit)


def check_parity(
    system: System,
    modules: Mapping[str, nn.Module],
    steps: Sequence[Step],
    runners: dict[str, Runner],
    *,
    limits: Mapping[str, Limits],
    cases: Sequence[Case] = CASES,
) -> dict[str, dict[str, Any]]:
    """Compare every exported step with PyTorch's, on photo-like inputs.

    Each step gets what PyTorch's own preceding step gives it, so that a figure belongs to one
    network.

    Args:
        system: draws the inputs.
        modules: the steps in PyTorch, by name.
        steps: in the order a photo passes them.
        runners: the exported steps by name: named arrays in, named arrays out.
        limits: what each step is held to.
        cases: the shapes to measure.

    Returns:
        For each step, the worst figures over all cases and outputs.

    Raises:
        ParityError: a difference is over its limit, a shape differs, or a value is not finite.
    """
    figures: dict[str, dict[str, Any]] = {}
    for case_index, case in enumerate(cases):
        drawn = system.sample_inputs(np.random.default_rng(case_index), case)
        for step, inputs, expected in run_chain(steps, modules, drawn):
            actual = runners[step.name]({name: value.numpy() for name, value in inputs.items()})
            for name, value in expected.items():
                where = f"{step.name}: {name} of {case}"
                figure = _compare(where, value.numpy(), actual[name], limits[step.name])
                worst = figures.setdefault(
                    step.name, {"max_abs": 0.0, "worst_tile": 0.0, "psnr": None}
                )
                worst["max_abs"] = max(worst["max_abs"], figure.max_abs)
                worst["worst_tile"] = max(worst["worst_tile"], figure.worst_tile)
                if np.isfinite(figure.psnr):
                    worst["psnr"] = min(figure.psnr, worst["psnr"] or np.inf)
    return {
        name: {**worst, "limits": asdict(limits[name]), "cases": len(cases)}
        for name, worst in figures.items()
    }


def _compare(
    where: str, expected: npt.NDArray[Any], actual: npt.NDArray[Any], limits: Limits
) -> Parity:
    if actual.shape != expected.shape:
        raise ParityError(f"{where}: shape {actual.shape}, PyTorch gives {expected.shape}")
    figure = distance(expected, actual)
    violations = figure.violations(**asdict(limits))
    if violations:
        raise ParityError(f"{where}: {'; '.join(violations)}; nothing was published")
    return figure
