"""`pikfix export --runtime auto`: every sub-net on the runtime that is fastest here.

Measured, not looked up: how much faster one of the candidates is does not follow from a
processor's flags. They only tell which precisions are no candidates, because it emulates them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pikfix.export.errors import ExportError
from pikfix.export.parity import CASES, Arrays, Runner, distance
from pikfix.export.runtimes import Choice, Runtime
from pikfix.inference import keep_free_memory
from pikfix.systems.chain import run_step
from pikfix.systems.checkpoint import Loaded

_RUNS = 5
_SECONDS = 5.0
"""For one candidate and sub-net: at most so many runs, and no further one after so long."""


@dataclass
class Selection:
    """What was chosen for each sub-net and why.

    milliseconds: by sub-net and candidate, the best of a few runs at 256 x 256; a text instead
        says why a candidate was left out.
    """

    runtimes: dict[str, Runtime] = field(default_factory=dict)
    chosen: dict[str, Choice] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    runners: dict[str, Runner] = field(default_factory=dict)
    milliseconds: dict[str, dict[str, float | str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "photo": list(CASES[0].photo),
            "threads": torch.get_num_threads(),
            "chosen": {name: str(choice) for name, choice in self.chosen.items()},
            "milliseconds": self.milliseconds,
        }


def export_fastest(
    candidates: Mapping[Choice, Runtime],
    loaded: Loaded,
    staged: Path,
    progress: Callable[[str], None] = lambda line: None,
) -> Selection:
    """Export every sub-net for every candidate, time those within their limits, keep the fastest.

    Args:
        candidates: the runtimes to choose from.
        loaded: the checkpoint.
        staged: where the chosen artifacts end up, one folder per sub-net.
        progress: called with a line for each measurement.

    Raises:
        ExportError: no candidate can run a sub-net within its limits.
    """
    keep_free_memory()  # as the server's backend does
    selection = Selection()
    drawn = [
        loaded.system.sample_inputs(np.random.default_rng(i), case) for i, case in enumerate(CASES)
    ]
    modules = loaded.modules
    for model in loaded.steps:
        asked: list[Arrays] = []
        for known in drawn:
            inputs = {tensor.name: known[tensor.name] for tensor in model.inputs}
            known.update(run_step(modules[model.name], model, inputs))
            asked.append({name: value.numpy() for name, value in inputs.items()})
        folders: dict[Choice, Path] = {}
        exported: dict[Choice, tuple[str, Runner]] = {}
        figures = selection.milliseconds[model.name] = {}
        for number, (choice, runtime) in enumerate(candidates.items()):
            folders[choice] = staged / f"{model.name}.{number}"
            folders[choice].mkdir()
            file, runner = runtime.export(modules[model.name], model, folders[choice])
            exported[choice] = (file, runner)
            problem = _problem(runner, asked, drawn, runtime)
            figures[str(choice)] = problem or round(_milliseconds(runner, asked[0]), 1)
            progress(f"{model.name}: {choice}: {figures[str(choice)]}{'' if problem else ' ms'}")
        times = {c: t for c in candidates if isinstance(t := figures[str(c)], float)}
        if not times:
            raise ExportError(f"{model.name}: no runtime is within its limits: {figures}")
        best = min(times, key=lambda choice: times[choice])
        progress(f"{model.name}: chosen: {best}")
        folders[best].rename(staged / model.name)
        selection.files[model.name], selection.runners[model.name] = exported[best]
        selection.runtimes[model.name] = candidates[best]
        selection.chosen[model.name] = best
    return selection


def _problem(
    runner: Runner,
    asked: Sequence[Arrays],
    expected: Sequence[Mapping[str, torch.Tensor]],
    runtime: Runtime,
) -> str | None:
    """What the parity gate would refuse, if anything."""
    for arrays, wanted in zip(asked, expected, strict=True):
        for name, value in runner(arrays).items():
            figure = distance(wanted[name].numpy(), value)
            violations = figure.violations(**asdict(runtime.limits))
            if violations:
                return f"{name}: {'; '.join(violations)}"
    return None


def _milliseconds(runner: Runner, arrays: Arrays) -> float:
    best = float("inf")
    end = time.perf_counter() + _SECONDS
    for _ in range(_RUNS):
        start = time.perf_counter()
        runner(arrays)
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return best * 1000
