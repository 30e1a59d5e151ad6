"""A multipart form becomes a photo, a mask, references and options on disk."""

from __future__ import annotations

import asyncio
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pikfix.gateway.problems import Problem
from pikfix.gateway.settings import Settings

FIELDS = ("photo", "again", "keep", "reference", "mask", "library", "options")
KEEP = ("references", "mask")
"""What else of an earlier restoration can be taken again with its photo."""
_LONGEST_NAME = 150
_FIELD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Earlier:
    """What is taken from an earlier restoration.

    Attributes:
        name: of its photo, to show.
        photo: its photo's file.
        references: files of those of its references that are taken again.
        mask: file of its mask, where that is taken again.
    """

    name: str
    photo: Path
    references: tuple[Path, ...] = ()
    mask: Path | None = None


def clean_name(name: str | None) -> str:
    """A file name to show: its last part, printable, not too long. It never becomes a path."""
    last = PurePosixPath(PureWindowsPath(name or "").name).name
    shown = "".join(one for one in unicodedata.normalize("NFC", last) if one.isprintable())
    if len(shown) > _LONGEST_NAME:
        stem, dot, suffix = shown.rpartition(".")
        keep = _LONGEST_NAME - len(suffix) - 1
        shown = f"{stem[:keep]}{dot}{suffix}" if dot and keep > 0 else shown[:_LONGEST_NAME]
    return shown.strip(" .") or "photo"


def _bad(detail: str, code: str = "bad_request", status: int = 400) -> Problem:
    titles = {"bad_request": "The request has another form"}
    return Problem(status, code, titles.get(code, "The photo cannot be read"), detail)


def _files(form: FormData, name: str) -> list[UploadFile]:
    values = form.getlist(name)
    for value in values:
        if not isinstance(value, UploadFile):
            raise _bad(f"{name} must be a file: curl -F {name}=@FILE")
    return [value for value in values if isinstance(value, UploadFile)]


def texts(form: FormData, name: str) -> list[str]:
    """The values of a field that is no file.

    Raises:
        Problem: 400; one is a file.
    """
    values = form.getlist(name)
    if any(isinstance(value, UploadFile) for value in values):
        raise _bad(f"{name} must be text, not a file: curl -F {name}=...")
    return [str(value) for value in values]


def kept(form: FormData) -> frozenset[str]:
    """Which of :data:`KEEP` a form asks for.

    Raises:
        Problem: 400; it is none of them, or there is no earlier restoration to take it from.
    """
    asked = texts(form, "keep")
    for one in asked:
        if one not in KEEP:
            raise _bad(f"keep must be one of {', '.join(KEEP)}, got {one[:100]!r}")
    if asked and not texts(form, "again"):
        raise _bad("keep is of an earlier restoration: name it as again, or leave keep out")
    return frozenset(asked)


def _copy(source: BinaryIO, target: Path) -> None:
    source.seek(0)
    with target.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


async def read_form(request: Request, settings: Settings) -> FormData:
    """Read a multipart body; large files go to disk as they come.

    Raises:
        Problem: 400 or 415; it is none, or has too many parts.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise _bad("send the photo as multipart/form-data: curl -F photo=@old.jpg ...", status=415)
    try:
        form = await request.form(
            max_files=settings.references + 2,  # photo and mask
            max_fields=settings.references + 6,
            max_part_size=_FIELD_BYTES,
        )
    except HTTPException as error:
        raise _bad(f"the form cannot be read: {error.detail}") from error
    unknown = sorted(set(form) - set(FIELDS))
    if unknown:
        raise _bad(f"there is no field {unknown[0]!r}; there are {', '.join(FIELDS)}")
    return form


async def save_files(
    form: FormData, again: Sequence[Earlier], folder: Path, settings: Settings
) -> tuple[str, int, int]:
    """Write photo, mask and references of a form into a folder.

    Args:
        form: the request's.
        again: each earlier restoration that was asked for; its references come before the new ones,
            and a new mask goes before its own.
        folder: where they go.
        settings: how many references.

    Returns:
        The photo's name to show, its bytes, and the number of references.

    Raises:
        Problem: there is not exactly one photo, too many references or masks, or an empty file.
        OSError: they cannot be written.
    """
    photos, references = _files(form, "photo"), _files(form, "reference")
    masks = _files(form, "mask")
    if len(photos) + len(again) != 1:
        raise _bad(
            f"send one file as photo, got {len(photos) + len(again)}; each photo is a request"
        )
    count = len(references) + sum(len(one.references) for one in again)
    if count > settings.references:
        raise _bad(f"send at most {settings.references} references, got {count}")
    if not all(photo.size for photo in photos):
        raise _bad("the photo is empty: send the complete file", "bad_photo", 422)
    if not all(reference.size for reference in references):
        raise _bad("a reference is empty: send the complete file", "bad_reference", 422)
    if len(masks) > 1 or not all(mask.size for mask in masks):
        raise _bad("send at most one mask, a complete picture file")
    await asyncio.to_thread(_copy_all, photos, again, references, masks, folder)
    name = again[0].name if again else clean_name(photos[0].filename)
    return name, (folder / "photo").stat().st_size, count


def _copy_all(
    photos: Sequence[UploadFile],
    again: Sequence[Earlier],
    references: Sequence[UploadFile],
    masks: Sequence[UploadFile],
    folder: Path,
) -> None:
    for photo in photos:
        _copy(photo.file, folder / "photo")
    # Links will do: nobody changes a file that was sent.
    earlier = [path for one in again for path in one.references]
    for one in again:
        (folder / "photo").hardlink_to(one.photo)
        if one.mask is not None and not masks:
            (folder / "mask").hardlink_to(one.mask)
    for number, path in enumerate(earlier):
        (folder / f"reference-{number}").hardlink_to(path)
    for number, reference in enumerate(references, len(earlier)):
        _copy(reference.file, folder / f"reference-{number}")
    for mask in masks:
        _copy(mask.file, folder / "mask")
