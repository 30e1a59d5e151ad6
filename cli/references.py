"""``pikfix references``: build a library of colour references, rank it for a photo."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pikfix.cli.problems import tell

if TYPE_CHECKING:
    from pikfix.cli.runner import References

app = typer.Typer(help="Build and search a library of colour references.", no_args_is_help=True)

LIBRARY_VARIABLE = "PIKFIX_LIBRARY"
"""Where the server's first step looks for the folder of its library."""
COUNT_VARIABLE = "PIKFIX_LIBRARY_REFERENCES"
"""Where it looks for the number of references that it gives a photo."""
LibraryReferences = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=8,
        help="References of the library that colour one photo together; one.",
        show_default=False,
    ),
]
"""The option of every command that colours after a library."""
DEFAULT_BACKBONE = Path("checkpoints/compact.safetensors")


@app.command()
def build(
    photos: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder of colour photos, searched with its sub-folders.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", metavar="LIBRARY", help="Folder of the library.", show_default=False
        ),
    ],
    backbone: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A checkpoint, or torchvision's VGG-19 weights, whose features compare the "
            f"pictures; the library's own, or {DEFAULT_BACKBONE} for a new one.",
            show_default=False,
        ),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Compute everything anew, as another backbone needs.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Threads that decode; one per core.", show_default=False),
    ] = None,
) -> None:
    """Build a library, or bring it up to date: only new and changed pictures are read.

    Until the build is done, the library stays as it was; a build that was interrupted goes on
    where it stopped. The pictures themselves stay where they are. Grey and single-toned ones are
    left out.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from pikfix.references.builder import build_library
    from pikfix.references.manifest import FILE

    if backbone is None and not (out / FILE).exists():
        backbone = DEFAULT_BACKBONE
    bar = Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("reading pictures", total=None)
        built = build_library(
            photos,
            out,
            backbone=backbone,
            rebuild=rebuild,
            jobs=jobs,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for one in built.left_out:
        print(f"left out: {one.reason}", file=sys.stderr)
    for line in built.others:
        tell(line)
    print(
        f"{out}: {built.usable} pictures ({built.added} added, {built.kept} kept, "
        f"{built.removed} removed, {len(built.left_out)} left out)"
    )


@app.command()
def rank(
    photo: Annotated[Path, typer.Argument(help="The photo.", show_default=False)],
    *,
    library: Annotated[Path, typer.Option(help="Folder of the library.", show_default=False)],
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many references to show.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw the photo with its references, a PNG.", show_default=False
        ),
    ] = None,
) -> None:
    """Rank the library's pictures for a photo, the best first, without the photo's own copies.

    A border around the photo is left out of the comparison, as it is out of the restoration. Those
    that the photo would be colorized after are marked: of the best ones, they are those whose
    colours agree with the others'.
    """
    from pikfix.references.library import CANDIDATES, DEFAULT_COUNT, Library, suitable
    from pikfix.references.pictures import read_photo, read_picture

    picture = read_photo(photo)
    opened = Library(library)
    ranked = opened.rank(picture or read_picture(photo), max(top, CANDIDATES))
    fit = suitable(ranked, opened.threshold) if picture is not None else []
    taken = [match.name for match in fit[:DEFAULT_COUNT]]
    matches = ranked[:top]
    if sheet is not None:
        from pikfix.references.sheet import write_sheet

        write_sheet(sheet, photo, matches, opened.threshold, taken)
    if as_json:
        rows = [
            {
                "rank": number,
                "name": match.name,
                "path": str(match.path),
                "score": match.score,
                "texture": match.texture,
                "structure": match.structure,
                "suits": match.score >= opened.threshold,
                "taken": match.name in taken,
            }
            for number, match in enumerate(matches, 1)
        ]
        found = {
            "photo": str(photo),
            "library": str(library),
            "threshold": opened.threshold,
            "references": rows,
            "taken": taken,
        }
        print(json.dumps(found))
        return
    for number, match in enumerate(matches, 1):
        mark = "*" if match.name in taken else " "
        print(f"{number:3d} {mark} {match.score:.4f}  {match.path}")
    if picture is None:
        print(
            "pikfix: this looks like text or a drawing: the server would leave it as it is",
            file=sys.stderr,
        )
    elif matches and not taken:
        print(
            f"pikfix: none suits: the server would leave this photo grey (score "
            f"{opened.threshold:.4f} is needed)",
            file=sys.stderr,
        )


def serve_from(library: Path, count: int | None = None) -> None:
    """Let the server that this process starts choose references from a library.

    Args:
        library: its folder.
        count: references for a photo; the server's default where None.

    Raises:
        LibraryError: the library cannot be used.
    """
    from pikfix.references.manifest import read_manifest

    read_manifest(library)
    os.environ[LIBRARY_VARIABLE] = str(library.resolve())
    if count is not None:
        os.environ[COUNT_VARIABLE] = str(count)


def choose_here(
    library: Path, *, force: bool = False, whole: bool = False, count: int | None = None
) -> References:
    """Choose from a library of this machine what to send to a server elsewhere.

    Args:
        library: its folder.
        force: send the best even where none suits.
        whole: choose for the whole picture, also where it has a border or is a page of text.
        count: references for a photo; the server's default where None.

    Returns:
        Encoded photo -> encoded references; none where none suits, where the picture is a page
        of text or a drawing, or where it cannot be read, which the server will say.

    Raises:
        LibraryError: the library cannot be used.
    """
    from pikfix.cli.runner import LibraryReference
    from pikfix.photos import PhotoError, decode_photo, read_picture_file
    from pikfix.references.library import CANDIDATES, DEFAULT_COUNT, Library, suitable
    from pikfix.references.pictures import reduce_photo

    opened = Library(library)

    def choose(photo: bytes) -> Sequence[bytes]:
        try:
            picture = reduce_photo(decode_photo(photo).pixels, whole=whole)
        except PhotoError:
            return ()
        if picture is None:
            return ()
        ranked = opened.rank(picture, CANDIDATES)
        chosen = suitable(ranked, -math.inf if force else opened.threshold)
        return [
            LibraryReference(read_picture_file(one.path), one.name, round(one.score, 4))
            for one in chosen[: count or DEFAULT_COUNT]
        ]

    return choose
