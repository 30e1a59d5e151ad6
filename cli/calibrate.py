"""``pikfix calibrate``: measure what int8 needs to know of a checkpoint."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pikfix.cli.problems import CommandError, tell
from pikfix.evaluation.errors import EvaluationError
from pikfix.evaluation.pictures import (
    centre_crop,
    find_pictures,
    load_resized,
    split_lab,
    stack_references,
)
from pikfix.export.calibration import measure_ranges, samples, save_ranges
from pikfix.systems.checkpoint import CheckpointError, load
from pikfix.training.degradation import DegradationConfig, degrade

REFERENCES = 2
CLEAN_SHARE = 0.2


def command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint, a .safetensors file.", show_default=False)
    ],
    *,
    photos: Annotated[
        Path, typer.Option(help="Folder of colour photos, as for training.", show_default=False)
    ],
    limit: Annotated[int, typer.Option(min=1, help="Photos to use, spread over the folder.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the synthetic damage.")] = 0,
) -> None:
    """Measure the activation ranges that `pikfix export --precision int8` quantizes by.

    The networks restore and colorize the photos, most of them aged artificially. The ranges are
    written beside the checkpoint, as NAME.ranges.safetensors, where the export looks for them.
    """
    try:
        loaded = load(checkpoint)
        chosen = _spread(find_pictures(photos, tell), limit)
    except (CheckpointError, EvaluationError) as error:
        raise CommandError(str(error)) from error
    if all(step.precision("int8") != "int8" for step in loaded.steps):
        raise CommandError(f"{checkpoint}: nothing of {loaded.system.name} is computed in int8")
    used = 0

    def pictures() -> Iterator[dict[str, Tensor]]:
        nonlocal used
        for inputs in _pictures(_visibly(chosen), seed):
            used += 1
            yield inputs

    drawn = samples(loaded.system)
    ranges = measure_ranges(loaded.system, loaded.model, itertools.chain(pictures(), drawn))
    if not used:
        raise CommandError(f"no photo in {photos} can be read")
    path = save_ranges(ranges, checkpoint, used)
    print(f"{path}: measured on {used} photos")


def _spread(paths: list[Path], limit: int) -> list[Path]:
    if len(paths) <= limit:
        return paths
    return [paths[i] for i in np.linspace(0, len(paths) - 1, limit).astype(int)]


def _visibly(paths: list[Path]) -> Iterable[Path]:
    console = Console(stderr=True)
    return track(paths, "measuring", console=console, disable=not console.is_terminal)


def _pictures(paths: Iterable[Path], seed: int) -> Iterator[dict[str, Tensor]]:
    """Each photo, aged, with the photos before it as references."""
    before: list[Tensor] = []
    for number, path in enumerate(paths):
        try:
            photo = centre_crop(load_resized(path))
        except EvaluationError as error:
            print(f"pikfix: skipped: {error}", file=sys.stderr)
            continue
        luminance, _ = split_lab(photo)
        rng = np.random.default_rng([seed, number])
        if rng.random() >= CLEAN_SHARE:
            clean = ((luminance[0] + 1) / 2).clamp(0, 1).numpy()
            aged = degrade(clean, rng, DegradationConfig()).image
            luminance = torch.from_numpy(aged * 2 - 1)[None]
        references = stack_references((before or [photo])[-REFERENCES:])
        yield {"photo_l": luminance[None], "reference_lab": references}
        before = [*before, photo][-REFERENCES:]
