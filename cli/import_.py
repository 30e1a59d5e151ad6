"""``pikfix import``: published weights as a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pikfix.cli.problems import tell
from pikfix.references.published import TITLE, import_features, is_vgg19
from pikfix.systems.releases import ReleaseError, import_released, read_released


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Published files, all of one system.", show_default=False
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="CHECKPOINT", help="The file to write.", show_default=False
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what was made as one JSON object.")
    ] = False,
) -> None:
    """Make a checkpoint out of weights that others have published.

    Files of PyTorch are read without running anything in them. What a file is, the names in it
    tell; of the VAEs of Wan et al., which have the same names, the file or its folder must be
    called VAE_A... and VAE_B..., as they were published.
    """
    _check_place(out, files)
    released = [read_released(file) for file in files]
    left = ""
    if len(released) == 1 and is_vgg19(released[0]):
        import_features(released[0], out)
        made = "vgg19"
    else:
        system, left = import_released(released, out, others=(TITLE,))
        made = system.name
    if as_json:
        print(json.dumps({"checkpoint": str(out), "system": made, "untrained": left or None}))
        return
    print(f"{out}: {made}")
    if left:
        tell(f"pikfix: {left} is untrained: train it before it is exported")


def _check_place(out: Path, files: list[Path]) -> None:
    if not out.parent.is_dir():
        raise ReleaseError(f"{out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise ReleaseError(
            f"{out}: is a folder; name a file in it, such as {out / 'm.safetensors'}"
        )
    if any(out.resolve() == file.resolve() for file in files):
        raise ReleaseError(f"{out}: would be written over what it is made of; give another name")
