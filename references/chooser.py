"""Chooses references for photos, one after another: a library with a cache of decoded pictures."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.photos import PhotoError, read_picture_file
from pikfix.photos.steps import DEFAULT_REFERENCE_SIDE
from pikfix.references.errors import LibraryError
from pikfix.references.library import CANDIDATES, DEFAULT_COUNT, Library, Match, suitable
from pikfix.references.pictures import decode_pixels, reduce_picture

DEFAULT_CACHE = 16


@dataclass(frozen=True)
class Chosen:
    """A reference with its pixels, [H, W] or [H, W, 3] uint8, and the SHA-256 of its file."""

    match: Match
    pixels: npt.NDArray[np.uint8]
    sha256: str


class PictureCache:
    """The decoded pictures used last, at twice the side they will be resized to.

    Args:
        side: that references are resized to.
        bound: pictures kept, each of 2 side x 2 side x 3 bytes at most.
        on_lookup: told of every lookup whether the picture was there.
    """

    def __init__(
        self, side: int, bound: int, on_lookup: Callable[[bool], None] | None = None
    ) -> None:
        self._side, self._bound = side, bound
        self._on_lookup = on_lookup or (lambda hit: None)
        self._kept: OrderedDict[tuple[str, int, int], tuple[npt.NDArray[np.uint8], str]]
        self._kept = OrderedDict()

    def __len__(self) -> int:
        """Number of pictures kept."""
        return len(self._kept)

    def read(self, path: Path) -> tuple[npt.NDArray[np.uint8], str]:
        """Pixels and SHA-256 of a picture file.

        Raises:
            PhotoError: it is no picture any more.
            OSError: it cannot be read.
        """
        status = path.stat()
        key = (str(path), status.st_size, status.st_mtime_ns)
        hit = key in self._kept
        self._on_lookup(hit)
        if hit:
            self._kept.move_to_end(key)
            return self._kept[key]
        data = read_picture_file(path)
        pixels = decode_pixels(data, shrink_to=2 * self._side)
        height, width = pixels.shape[:2]
        scale = 2 * self._side / max(height, width)
        if scale < 1:
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
            pixels = np.asarray(image)
        entry = self._kept[key] = pixels, hashlib.sha256(data).hexdigest()
        while len(self._kept) > self._bound:
            self._kept.popitem(last=False)
        return entry


class LibraryChooser:
    """Chooses a photo's references from a library, or says why none.

    Args:
        library: folder of the library.
        count: references per photo.
        side: that references are resized to.
        cache: decoded pictures kept.
        on_lookup: told of every lookup in the cache whether it hit.

    Raises:
        LibraryError: the library cannot be used.
    """

    def __init__(
        self,
        library: Path,
        *,
        count: int = DEFAULT_COUNT,
        side: int = DEFAULT_REFERENCE_SIDE,
        cache: int = DEFAULT_CACHE,
        on_lookup: Callable[[bool], None] | None = None,
    ) -> None:
        self.library = Library(library)
        self._count = count
        self._pictures = PictureCache(side, cache, on_lookup)

    def __call__(
        self, pixels: npt.NDArray[Any], *, force: bool = False
    ) -> tuple[list[Chosen], str | None]:
        """Choose references for a photo.

        Args:
            pixels: of the photo, [H, W] or [H, W, 3], uint8 or floating point in [0, 1].
            force: take the best even where none reaches the library's threshold.

        Returns:
            The references, the most suitable first, and None; or none and the reason.
        """
        try:
            ranked = self.library.rank(reduce_picture(pixels), CANDIDATES)
        except LibraryError as error:
            return [], str(error)
        if not ranked:
            return [], "its library has no other picture"
        threshold = self.library.threshold
        wanted = suitable(ranked, -math.inf if force else threshold)
        if not wanted:
            return [], (
                f"its library has none that suits (the best, {ranked[0].name}, scores "
                f"{ranked[0].score:.3f}, {threshold:.3f} is needed)"
            )
        chosen: list[Chosen] = []
        for match in wanted:
            try:
                chosen.append(Chosen(match, *self._pictures.read(match.path)))
            except (PhotoError, OSError):
                continue  # changed since the library was built: the next one takes its place
            if len(chosen) == self._count:
                break
        if not chosen:
            return [], "the pictures its library chose cannot be read: build it again"
        return chosen, None
