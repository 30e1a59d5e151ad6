"""``pikfix inspect``: how a restored photo was made, from the file and its sidecar."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pikfix.cli.problems import FAILURE, printable, tell

if TYPE_CHECKING:
    from pikfix.photos.inspection import Findings

_MEANINGS = {
    "algorithmicallyEnhanced": "restored, its content kept",
    "compositeWithTrainedAlgorithmicMedia": "a photo with parts that a trained network made up",
    "trainedAlgorithmicMedia": "made up by a trained network",
}


def command(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="A picture, or the sidecar of one.", show_default=False
        ),
    ],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as one JSON object.")
    ] = False,
) -> None:
    """Say how a restored photo was made.

    The picture's own metadata and the file NAME.pikfix.json beside it are read. The exit code is 1
    where they do not fit together, as after a change to the picture.
    """
    from pikfix.photos.inspection import inspect_file

    found = inspect_file(file)
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
    else:
        for name, text in lines(found):
            print(printable(f"{name:11} {text}"))
    for problem in found.problems:
        tell(f"pikfix: {problem}")
    if found.problems:
        raise typer.Exit(FAILURE)


def lines(found: Findings) -> Iterator[tuple[str, str]]:
    """Yield a name and a text for each thing that is known."""
    picture = found.picture
    yield "file", f"{found.file}, {found.bytes} bytes"
    yield "sha256", found.sha256
    yield (
        "picture",
        f"{picture['format']}, {picture['width']} x {picture['height']}, {picture['mode']},"
        f" {picture['bit_depth']} bits",
    )
    yield "source", _source(found.digital_source_type)
    for event in found.history:
        who = f" by {event['agent']}" if event["agent"] else ""
        what = f": {event['what']}" if event["what"] else ""
        yield "history", f"{event['when']} {event['action']}{who}{what}".strip()
    if found.sidecar is None:
        yield "sidecar", "none"
        return
    yield "sidecar", f"written {found.sidecar.get('created')} by {found.sidecar.get('software')}"
    yield from _made(found.sidecar)


def _source(kind: str | None) -> str:
    if kind is None:
        return "not stated"
    meaning = _MEANINGS.get(kind.rpartition("/")[2])
    return f"{kind}{f' ({meaning})' if meaning else ''}"


def _made(said: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    photo, model = _table(said.get("photo")), _table(said.get("model"))
    yield "photo", f"{photo.get('file')}, sha256 {photo.get('sha256')}"
    yield "model", f"{model.get('version')}, sha256 {model.get('sha256') or 'not known'}"
    if said.get("kept_colors"):
        yield "colours", "the photo's own"
    else:
        yield "colours", "added by a trained network" if said.get("colorized") else "none added"
    for one in said.get("references") or ():
        used = _table(one)
        parts = [str(used.get("name") or used.get("file") or "not named")]
        if used.get("share") is not None:
            parts.append(f"share {100 * float(used['share']):.1f} %")
        if used.get("score") is not None:
            parts.append(f"score {used['score']}")
        parts.append(f"sha256 {used.get('sha256') or 'not known'}")
        yield "reference", ", ".join(parts)
    if said.get("mean_confidence") is not None:
        yield "confidence", f"{said['mean_confidence']} (mean correlation with the references)"
    if said.get("damaged_share") is not None:
        yield "redrawn", f"{100 * float(said['damaged_share']):.2f} % of the pixels"
    options = _table(said.get("options"))
    yield "options", ", ".join(f"{name} {value}" for name, value in options.items()) or "none"
    for warning in said.get("warnings") or ():
        yield "warning", str(warning)


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
