"""What a client may ask for with a photo: the tensor `options`, a JSON object."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

PictureFormat: TypeAlias = Literal["jpeg", "png", "tiff", "webp"]
FORMATS: tuple[str, ...] = get_args(PictureFormat)
"""Of results."""
DEFAULT_QUALITY = 95

_FLAGS = ("color", "force_color", "force_photo", "keep_color", "faces")
_CHOICES: dict[str, tuple[str | int | None, ...]] = {
    "profile": ("own", "srgb"),
    "depth": (None, 8, 16),
    "pages": ("all", "first"),
}
_SHARES = ("strength", "color_strength")
_EXAMPLE = 'send, for example, {"color": true, "format": "png"}'


class OptionsError(ValueError):
    """An option has a value that it cannot have; the message names it."""


@dataclass(frozen=True)
class Options:
    """The options of one photo.

    Attributes:
        color: colorize; False leaves the restored photo grey.
        format: of the result; None: the photo's own if it is one of these, else png.
        quality: 1 to 100, for jpeg and webp.
        force_color: colorize after the library's best references even where none suits.
        force_photo: restore the whole picture, also where it seems to have a border or to be a
            page of text or a drawing.
        profile: own, the photo's colour profile where the result can be stored in it, or srgb.
        depth: 8 or 16 bits a sample; None: as many as the photo has.
        pages: all, which refuses a file with several photos, as a result holds one; or first.
        keep_color: a photo that has colours keeps them; otherwise it gets a reference's or none.
        strength: of the restoration, 0 to 1.
        color_strength: of the colours, 0 to 1.
        faces: have faces drawn anew, where the server has a generator of them.

    Raises:
        OptionsError: a value has the wrong type or is out of range.
    """

    color: bool = True
    format: PictureFormat | None = None
    quality: int = DEFAULT_QUALITY
    force_color: bool = False
    force_photo: bool = False
    profile: Literal["own", "srgb"] = "own"
    depth: Literal[8, 16] | None = None
    pages: Literal["all", "first"] = "all"
    keep_color: bool = False
    strength: float = 1.0
    color_strength: float = 1.0
    faces: bool = True

    def __post_init__(self) -> None:
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise self._wrong(name, "must be true or false")
        if self.format is not None and not (
            isinstance(self.format, str) and self.format in FORMATS
        ):
            raise self._wrong("format", f"must be one of {', '.join(FORMATS)}")
        whole = isinstance(self.quality, int) and not isinstance(self.quality, bool)
        if not whole or not 1 <= self.quality <= 100:
            raise self._wrong("quality", "must be a whole number from 1 to 100")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            # True is equal to 1, but no number of bits; an array is equal to nothing at once.
            plain = value is None or (isinstance(value, (str, int)) and not isinstance(value, bool))
            if not plain or value not in choices:
                texts = ", ".join("null" if one is None else str(one) for one in choices)
                raise self._wrong(name, f"must be one of {texts}")
        for name in _SHARES:
            share = getattr(self, name)
            number = isinstance(share, (int, float)) and not isinstance(share, bool)
            # NaN, which Python reads from JSON, is in no range.
            if not number or not 0 <= share <= 1:
                raise self._wrong(name, "must be a number from 0 to 1")
        for name in ("force_color", "keep_color"):
            if getattr(self, name) and not self.color:
                raise OptionsError(f"{name} asks for colours and color for none")

    def _wrong(self, name: str, rule: str) -> OptionsError:
        return OptionsError(f"{name} {rule}, not {getattr(self, name)!r}")

    def to_json(self) -> bytes:
        """Those that ask for something: servers of before do not know the newer ones."""
        asked = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }
        return json.dumps(asked).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Options:
        """Read the options of a request.

        Args:
            data: a JSON object in UTF-8; empty means all defaults.

        Raises:
            OptionsError: it is no such object, an option is unknown or has a wrong value.
        """
        if not data.strip():
            return cls()
        try:
            given: Any = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise OptionsError(f"options are not valid JSON ({error}): {_EXAMPLE}") from error
        if not isinstance(given, dict):
            raise OptionsError(f"options must be a JSON object: {_EXAMPLE}")
        known = [field.name for field in dataclasses.fields(cls)]
        for key in given:
            if key not in known:
                raise OptionsError(f"option {key!r} is unknown: use {', '.join(known)}")
        return cls(**given)
