"""What a server says about one photo: the tensor `report`, a JSON object."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pikfix.protocol.names import DEFAULT_SYSTEM

NOTHING_DONE = "left as it is: strength is 0 and no colours are added"
"""The warning of a photo that comes back as it was."""


class ReportError(ValueError):
    """A report is no JSON, lacks a key, or has one of the wrong type."""


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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PhotoInfo:
        """The inverse of `dataclasses.asdict`, also after a trip through JSON."""
        rectangle = values.get("rectangle")
        if rectangle is not None:
            top, left, bottom, right = map(_whole, rectangle)
            rectangle = (top, left, bottom, right)
        return cls(
            width=_whole(values["width"]),
            height=_whole(values["height"]),
            format=str(values["format"]),
            mode=str(values["mode"]),
            bit_depth=_whole(values["bit_depth"]),
            # Servers of before did not look.
            content=str(values.get("content", "photo")),
            rectangle=rectangle,
        )


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
    name: str | None = None
    score: float | None = None
    share: float | None = None
    sha256: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReferenceUse:
        """The inverse of `dataclasses.asdict`, also after a trip through JSON."""
        return cls(
            source=str(values["source"]),
            name=_text_or_none(values.get("name")),
            score=_number_or_none(values.get("score")),
            share=_number_or_none(values.get("share")),
            sha256=_text_or_none(values.get("sha256")),
        )


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
        system: whose networks restored it.
        faces: how many faces were touched; None of a system that knows none.
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
    system: str = DEFAULT_SYSTEM
    faces: int | None = None

    @property
    def restored(self) -> bool:
        """Whether anything was restored; False of a page of text or a drawing, left as it is."""
        return self.photo.content == "photo"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values that JSON can hold."""
        return dataclasses.asdict(self)

    def to_json(self) -> bytes:
        """Serialize; the inverse of :meth:`from_json`.

        Raises:
            ValueError: a figure is not finite, which JSON cannot hold.
        """
        return json.dumps(self.to_dict(), allow_nan=False).encode()

    @classmethod
    def from_json(cls, text: bytes | str) -> Report:
        """Read a server's JSON; keys that a newer server adds are left out.

        Raises:
            ReportError: no JSON, or a key is missing or of the wrong type.
        """
        try:
            return cls._from_dict(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            raise ReportError(f"cannot read the report: {cause!r}") from cause

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> Report:
        result, seconds = values["result"], values["seconds"]
        return cls(
            photo=PhotoInfo.from_dict(values["photo"]),
            result=ResultInfo(
                width=_whole(result["width"]),
                height=_whole(result["height"]),
                format=str(result["format"]),
            ),
            references=tuple(map(ReferenceUse.from_dict, values["references"])),
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
            system=str(values.get("system", DEFAULT_SYSTEM)),
            faces=None if values.get("faces") is None else _whole(values["faces"]),
        )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is not true or false")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else str(value)


def _number_or_none(value: Any) -> float | None:
    return None if value is None else float(value)
