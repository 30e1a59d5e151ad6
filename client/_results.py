"""What comes back: the restored photo and the report about it."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from pikfix.client._errors import InvalidOptionsError, InvalidResponseError
from pikfix.photos import write_together
from pikfix.photos.sidecar import path_beside

SUFFIX_FORMATS: Mapping[str, str] = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "webp",
}


@dataclass(frozen=True)
class PhotoInfo:
    """The photo as the server decoded it: its size upright, in pixels, and how it was stored.

    Attributes:
        content: ``photo``, or ``graphic`` for a page of text or a drawing, which comes back as it
            was.
        rectangle: (top, left, bottom, right) in pixels of the photo within a border, which comes
            back as it was; None without a border.
    """

    width: int
    height: int
    format: str
    mode: str
    bit_depth: int
    content: str = "photo"
    rectangle: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class ResultInfo:
    """The result file."""

    width: int
    height: int
    format: str


@dataclass(frozen=True)
class ReferenceUse:
    """A colour reference that was used.

    Attributes:
        source: ``request`` or ``library``.
        name: its name in the library; None for one that was sent.
        score: how well it suits the photo, as the library ranked it.
        share: its share of the correlation mass, in [0, 1].
        sha256: of its file, in hexadecimal; None of a server that does not say.
    """

    source: str
    name: str | None
    score: float | None
    share: float | None
    sha256: str | None = None


@dataclass(frozen=True)
class StepSeconds:
    """Seconds spent on the server."""

    decode_photo: float
    networks: float
    encode_photo: float


@dataclass(frozen=True)
class Report:
    """What the server says about one photo.

    Attributes:
        photo: the photo as decoded.
        result: the result file.
        references: the references used, none if the photo was left grey.
        colorized: whether the result has colour.
        mean_confidence: mean highest correlation with the references, in [-1, 1].
        damaged_share: share of the photo that was taken for damage and filled, in [0, 1]; None
            from a server without that step, and of what comes back as it was. It is 0 as well where
            the server's networks leave damage to restoration.
        seconds: time spent in the steps.
        model_version: version of the exported networks.
        warnings: what the caller should know, such as why the photo was left grey.
        model_sha256: of the networks' checkpoint, in hexadecimal; None where the server does not
            know.
        digital_source_type: what the result's XMP packet says of its origin, a term of IPTC's
            vocabulary; None where it says nothing, as for what was left as it is.
        kept_colors: whether the result's colours are the photo's own.
    """

    photo: PhotoInfo
    result: ResultInfo
    references: tuple[ReferenceUse, ...]
    colorized: bool
    mean_confidence: float | None
    seconds: StepSeconds
    model_version: str
    warnings: tuple[str, ...]
    model_sha256: str | None = None
    digital_source_type: str | None = None
    damaged_share: float | None = None
    kept_colors: bool = False

    @property
    def restored(self) -> bool:
        """Whether anything was restored; False of a page of text or a drawing, left as it is."""
        return self.photo.content == "photo"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, text: bytes | str) -> Report:
        """Read the server's JSON; keys that a newer server adds are left out.

        Raises:
            InvalidResponseError: no JSON, or a key is missing or of the wrong type.
        """
        try:
            return cls._from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError) as cause:
            raise InvalidResponseError(f"cannot read the report: {cause!r}") from cause

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> Report:
        photo, result, seconds = values["photo"], values["result"], values["seconds"]
        return cls(
            photo=PhotoInfo(
                width=_whole(photo["width"]),
                height=_whole(photo["height"]),
                format=str(photo["format"]),
                mode=str(photo["mode"]),
                bit_depth=_whole(photo["bit_depth"]),
                # Servers of before did not look.
                content=str(photo.get("content", "photo")),
                rectangle=_rectangle_or_none(photo.get("rectangle")),
            ),
            result=ResultInfo(
                width=_whole(result["width"]),
                height=_whole(result["height"]),
                format=str(result["format"]),
            ),
            references=tuple(
                ReferenceUse(
                    source=str(one["source"]),
                    name=_text_or_none(one.get("name")),
                    score=_number_or_none(one.get("score")),
                    share=_number_or_none(one.get("share")),
                    sha256=_text_or_none(one.get("sha256")),
                )
                for one in values["references"]
            ),
            colorized=_truth(values["colorized"]),
            mean_confidence=_number_or_none(values["mean_confidence"]),
            seconds=StepSeconds(
                decode_photo=float(seconds["decode_photo"]),
                networks=float(seconds["networks"]),
                encode_photo=float(seconds["encode_photo"]),
            ),
            model_version=str(values["model_version"]),
            warnings=tuple(str(one) for one in values["warnings"]),
            model_sha256=_text_or_none(values.get("model_sha256")),
            digital_source_type=_text_or_none(values.get("digital_source_type")),
            damaged_share=_number_or_none(values.get("damaged_share")),
            kept_colors=_truth(values.get("kept_colors", False)),
        )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is not true or false")
    return value


def _rectangle_or_none(value: Any) -> tuple[int, int, int, int] | None:
    if value is None:
        return None
    top, left, bottom, right = map(_whole, value)
    return top, left, bottom, right


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _number_or_none(value: Any) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True)
class RestoredPhoto:
    """A restored photo.

    Attributes:
        data: the encoded picture file.
        report: what the server says about it.
    """

    data: bytes = field(repr=False)
    report: Report

    @cached_property
    def image(self) -> Image.Image:
        """The picture, decoded at first use.

        Raises:
            InvalidResponseError: the server's file cannot be decoded.
        """
        try:
            image = Image.open(io.BytesIO(self.data))
            image.load()
        except (OSError, SyntaxError, ValueError) as cause:
            raise InvalidResponseError(f"cannot decode the result: {cause}") from cause
        return image

    def save(self, path: str | os.PathLike[str], *, sidecar: bytes | None = None) -> Path:
        """Write the file as it came; ``path`` gets all of it or stays as it was.

        Args:
            path: of the result.
            sidecar: what to write beside it, under the result's name with ``.pikfix.json``; it
                is there before the result is, so that no result is ever without.

        Raises:
            InvalidOptionsError: the suffix names another picture format.
            OSError: the path cannot be written.
        """
        named = SUFFIX_FORMATS.get(Path(path).suffix.lower())
        if named is not None and named != self.report.result.format:
            raise InvalidOptionsError(
                f"the result is {self.report.result.format}, and {os.fspath(path)} names "
                f"{named}; ask restore() for format={named!r}, or choose another suffix"
            )
        beside = [] if sidecar is None else [(path_beside(path), sidecar)]
        return write_together([*beside, (path, self.data)])[-1]


@dataclass(frozen=True)
class ModelStatus:
    """A model in the server's repository."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True)
class ServerInfo:
    """What the server says about itself.

    Attributes:
        url: ``host:port``.
        name: the server's name, usually ``triton``.
        version: Triton's version.
        models: models of its repository, sorted by name and version.
    """

    url: str
    name: str
    version: str
    models: tuple[ModelStatus, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values that JSON can hold."""
        return dataclasses.asdict(self)
