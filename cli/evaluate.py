"""``pikfix evaluate``: how good a checkpoint is, beside its baselines."""

from __future__ import annotations

import sys
import tempfile
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.progress import track

from pikfix.cli.choices import Strength
from pikfix.cli.problems import CommandError, UsageError, tell
from pikfix.evaluation.choosers import LibraryChooser, ReferenceChooser
from pikfix.evaluation.evaluator import evaluate
from pikfix.evaluation.pictures import find_pictures
from pikfix.evaluation.report import table, write_json, write_sheet
from pikfix.references.builder import build_library
from pikfix.references.library import CANDIDATES, DEFAULT_COUNT, Library
from pikfix.references.manifest import FILE as LIBRARY_FILE
from pikfix.systems.checkpoint import load
from pikfix.systems.registry import SYSTEMS, system_of
from pikfix.training.degradation import DEGRADATIONS, degrade

PROTOCOLS = {k: v for name in SYSTEMS for k, v in system_of(name).imported_protocols().items()}
ProtocolName = Enum("ProtocolName", {name: name for name in PROTOCOLS}, type=str)  # type: ignore[misc]

_SHEET_ROWS = 16
_CHOOSING = ", ".join(name for name, one in PROTOCOLS.items() if one.chooses)
_DAMAGING = " and ".join(name for name, one in PROTOCOLS.items() if one.damages)
_TABLE_WIDTH = 120  # in a pipe, where there is no terminal to ask


def command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Weights, a .safetensors file.", show_default=False)
    ],
    *,
    photos: Annotated[
        Path, typer.Option(help="Folder of colour photos to measure on.", show_default=False)
    ],
    protocol: Annotated[
        ProtocolName,
        typer.Option(
            help=" ".join(f"{name}: {one.summary}." for name, one in PROTOCOLS.items()),
            show_default=False,
        ),
    ],
    references: Annotated[
        Path | None,
        typer.Option(
            help=f"Folder of colour photos to choose references from ({_CHOOSING}), or a library "
            "of them, which saves reading them again."
        ),
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, max=CANDIDATES, help="References given to the model at once.")
    ] = DEFAULT_COUNT,
    strength: Annotated[
        Strength, typer.Option(help=f"Damage of the protocols {_DAMAGING}.")
    ] = Strength.default,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure on the first N photos only.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of damage and siblings.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to a file.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a contact sheet, a PNG.")
    ] = None,
) -> None:
    """Measure a checkpoint beside the grey photo, a histogram match and the damaged input.

    Photos are cropped to the centre 256 x 256 after their short side is resized to 256; PSNR and
    SSIM on RGB (restore: on luminance) in [0, 1]. The same seed gives the same figures.
    """
    measured = PROTOCOLS[protocol.value]
    if measured.chooses and references is None:
        raise UsageError(f"protocol {protocol.value} needs a folder of photos with --references")
    if sheet is not None and not measured.shows:
        raise UsageError(f"protocol {protocol.value} has no pictures: leave --sheet out")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise CommandError("there is no CUDA device here; give --device cpu")
    found = find_pictures(photos, tell)[:limit]
    loaded = load(checkpoint)
    if protocol.value not in loaded.system.protocols:
        of_it = ", ".join(loaded.system.protocols)
        raise UsageError(f"{checkpoint} is of the system {loaded.system.name}: measure {of_it}")
    model = loaded.model.to(device)
    choose: ReferenceChooser | None = None
    if measured.chooses and references is not None:
        choose = LibraryChooser(_library(references, checkpoint))
    damage = DEGRADATIONS[strength.value]

    def spoil(
        luminance: npt.NDArray[np.float32], rng: np.random.Generator
    ) -> npt.NDArray[np.float32]:
        return degrade(luminance, rng, damage).image

    terminal = sys.stderr.isatty()
    result = evaluate(
        model,
        track(found, "evaluating", console=Console(stderr=True), disable=not terminal),
        measured,
        choose=choose,
        degrade=spoil,
        references=count,
        seed=seed,
        checkpoint=str(checkpoint),
        device=device,
        sheet_rows=_SHEET_ROWS if sheet is not None else 0,
    )
    for one in result.skipped:
        print(f"photo left out: {one['reason']}", file=sys.stderr)
    if json_file is not None:
        write_json(result, json_file)
    if sheet is not None:
        write_sheet(result, sheet)
    console = Console() if sys.stdout.isatty() else Console(width=_TABLE_WIDTH)
    console.print(table(result))


def _library(references: Path, checkpoint: Path) -> Library:
    """Open a library, or one that is made of a folder of photos for this run alone."""
    if (references / LIBRARY_FILE).exists():
        return Library(references)
    with tempfile.TemporaryDirectory(prefix="pikfix-references-") as folder:
        built = build_library(references, Path(folder), backbone=checkpoint)
        for one in built.left_out:
            print(f"reference left out: {one.reason}", file=sys.stderr)
        for line in built.others:
            tell(line)
        # What is mapped into memory stays readable when the folder is gone.
        return Library(Path(folder))
