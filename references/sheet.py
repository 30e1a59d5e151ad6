"""A contact sheet: a photo in grey with the references found for it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from pikfix.photos import PhotoError, write_atomically
from pikfix.references.errors import LibraryError
from pikfix.references.library import Match
from pikfix.references.pictures import SIDE, read_pixels

_COLUMNS = 6
_TEXT = 34
_GAP = 8
_FONT = 13
_MAX_TEXT = 34


def write_sheet(
    file: Path,
    photo: Path,
    matches: Sequence[Match],
    threshold: float,
    taken: Sequence[str] = (),
) -> None:
    """Draw the photo and its references, the best first, with what is unsuitable or taken marked.

    Args:
        file: a PNG.
        photo: shown first, in grey.
        matches: by score.
        threshold: scores below it are marked as unsuitable.
        taken: names of those that the photo would be colorized after.

    Raises:
        LibraryError: the photo cannot be read.
        OSError: the sheet cannot be written.
    """
    try:
        cells = [(_thumbnail(photo).convert("L").convert("RGB"), photo.name, "the photo")]
    except (PhotoError, OSError) as error:
        raise LibraryError(f"{photo}: {error}") from error
    for number, match in enumerate(matches, 1):
        mark = "  (taken)" if match.name in taken else ""
        mark = mark if match.score >= threshold else "  (unsuitable)"
        try:
            picture = _thumbnail(match.path)
        except (PhotoError, OSError):
            picture = Image.new("RGB", (SIDE, SIDE), "white")
        cells.append((picture, match.name, f"{number}. {match.score:.3f}{mark}"))
    columns = min(_COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    width, height = SIDE + _GAP, SIDE + _TEXT + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (picture, name, line) in enumerate(cells):
        left = _GAP + place % columns * width
        top = _GAP + place // columns * height
        sheet.paste(
            picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2)
        )
        # The end of a path tells more than its beginning.
        shown = name if len(name) <= _MAX_TEXT else "..." + name[3 - _MAX_TEXT :]
        for row, text in enumerate((line, shown)):
            # Pillow's built-in font knows Latin letters; others are shown as question marks.
            plain = text.encode("latin-1", "replace").decode("latin-1")
            pen.text((left, top + SIDE + 2 + 16 * row), plain, "black", font_size=_FONT)
    data = io.BytesIO()
    sheet.save(data, "PNG")
    write_atomically(file, data.getvalue())


def _thumbnail(path: Path) -> Image.Image:
    image = Image.fromarray(read_pixels(path)).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return image
