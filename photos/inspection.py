"""What a picture file and its sidecar say about how the picture was made."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from pikfix.photos import provenance, sidecar
from pikfix.photos.decode import decode_photo
from pikfix.photos.errors import PhotoError
from pikfix.photos.files import read_picture_file

# On one's own machine there is nobody to protect from large pictures.
_MOST_PIXELS = 4_000_000_000


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that is known about one picture.

    Attributes:
        file: its path.
        bytes: its size.
        sha256: its digest, in hexadecimal.
        picture: format, size in pixels, mode and bits of a sample.
        digital_source_type: what its XMP packet says of its origin; None where it says nothing.
        history: what its XMP packet says was done to it, the oldest first.
        sidecar: the contents of the sidecar beside it, if there is one.
        problems: a line for each thing that does not fit.
    """

    file: str
    bytes: int
    sha256: str
    picture: dict[str, Any]
    digital_source_type: str | None
    history: list[dict[str, str]]
    sidecar: dict[str, Any] | None
    problems: list[str]


def inspect_file(path: str | os.PathLike[str]) -> Findings:
    """Examine a picture; given a sidecar, the picture that it tells of.

    Raises:
        PhotoError: it is no picture that can be read.
        OSError: it cannot be read.
    """
    place = Path(path)
    if place.name.endswith(sidecar.SUFFIX) and sidecar.is_one(place):
        place = place.with_name(place.name.removesuffix(sidecar.SUFFIX))
    data = read_picture_file(place)
    try:
        photo = decode_photo(data, _MOST_PIXELS)
    except PhotoError as error:
        raise PhotoError(error.code, f"{place}: {error.message}") from error
    said, problems = _sidecar_of(place, sidecar.digest(data))
    return Findings(
        file=str(place),
        bytes=len(data),
        sha256=sidecar.digest(data),
        picture={
            "format": photo.format,
            "width": photo.width,
            "height": photo.height,
            "mode": photo.mode,
            "bit_depth": photo.bit_depth,
        },
        digital_source_type=provenance.source_type_of(photo.xmp),
        history=[dataclasses.asdict(event) for event in provenance.history_of(photo.xmp)],
        sidecar=said,
        problems=problems,
    )


def _sidecar_of(place: Path, sha256: str) -> tuple[dict[str, Any] | None, list[str]]:
    beside = sidecar.path_beside(place)
    if not os.path.lexists(beside):
        return None, []
    said = sidecar.read(beside)
    if said is None:
        return None, [f"{beside} is no sidecar of pikfix"]
    result = said.get("result")
    if not isinstance(result, dict) or result.get("sha256") != sha256:
        return said, [
            f"{place} is not the file that {beside} tells of: it was changed or replaced since"
        ]
    return said, []
