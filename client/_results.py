"""What comes back: the restored photo and the report about it."""

from __future__ import annotations

import dataclasses
import io
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
from pikfix.protocol.report import Report

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
