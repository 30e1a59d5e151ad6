"""A folder of photos, decoded once: every photo as uint8 pixels at a bounded size."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.photos import PhotoError, decode_photo, read_picture_file
from pikfix.photos.search import Found, find_pictures
from pikfix.training.errors import TrainingError, in_one_line

Pixels = npt.NDArray[np.uint8]

MIN_SIDE = 64
"""Photos with a shorter side have nothing to learn from: enlarged, they are blur."""

_THUMBNAIL = 48
_GREY_RESIDUAL = 2.0  # of 255, see is_grey
_CACHE_VERSION = 3


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    name: str
    reason: str


class PhotoStore:
    """Decoded photos in one flat array, in memory or memory-mapped.

    names: paths relative to the folder, in sorted order.
    skipped: the pictures of the folder that are not used.
    others: a line for each kind of thing in the folder that is no picture.
    """

    def __init__(
        self,
        pixels: Pixels,
        shapes: list[tuple[int, int]],
        names: list[str],
        skipped: list[Skipped],
    ) -> None:
        self._pixels = pixels
        self._shapes = shapes
        sizes = np.array([3 * height * width for height, width in shapes], dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum(sizes)))
        self.names = names
        self.skipped = skipped
        self.others: list[str] = []

    @classmethod
    def of(cls, photos: Sequence[Pixels], names: list[str], skipped: list[Skipped]) -> PhotoStore:
        """A store in memory of `[H, W, 3]` photos."""
        shapes = [(photo.shape[0], photo.shape[1]) for photo in photos]
        return cls(np.concatenate([photo.reshape(-1) for photo in photos]), shapes, names, skipped)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Pixels:
        """Return photo `index` as `[H, W, 3]` sRGB; a view, not to be written to."""
        height, width = self._shapes[index]
        flat = self._pixels[self._starts[index] : self._starts[index + 1]]
        return flat.reshape(height, width, 3)

    def __iter__(self) -> Iterator[Pixels]:
        return (self[index] for index in range(len(self)))

    @property
    def fingerprint(self) -> str:
        """Changes when the set of photos, their sizes or their order change."""
        text = json.dumps([self.names, self._shapes])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def find_photos(folder: Path) -> Found:
    """List the picture files under `folder`, sorted; hidden files and folders are left out.

    Raises:
        TrainingError: the folder does not exist or holds no picture file.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder: give a folder of colour photos")
    found = find_pictures(folder)
    if not found.pictures:
        what = "; ".join(found.notes())
        raise TrainingError(f"{folder} holds no photos{f' ({what})' if what else ''}")
    found.pictures.sort()
    return found


def open_photos(
    folder: Path, side: int, cache: Path | None = None, *, grey: bool = False, threads: int = 2
) -> PhotoStore:
    """Decode all usable photos of a folder.

    Args:
        folder: searched recursively.
        side: photos whose short side differs are resized to it; smaller ones are enlarged.
        cache: a file to keep the decoded photos in, memory-mapped; written when it is missing or
            the folder has changed. Without it they are kept in memory.
        grey: photos without colours of their own are usable too.
        threads: that decode.

    Raises:
        TrainingError: no usable photo, or the cache cannot be written.
    """
    found = find_photos(folder)
    paths = found.pictures
    if cache is not None:
        key = _cache_key(folder, paths, side, grey)
        store = _read_cache(cache, key)
        if store is not None:
            store.others = found.notes()
            return store
    with ThreadPoolExecutor(threads) as pool:
        decoded = list(pool.map(lambda path: _decode(path, side, grey), paths))
    names, photos, skipped = [], [], []
    for path, photo in zip(paths, decoded, strict=True):
        name = path.relative_to(folder).as_posix()
        if isinstance(photo, str):
            skipped.append(Skipped(name, photo))
        else:
            names.append(name)
            photos.append(photo)
    if not names:
        first = skipped[0]
        raise TrainingError(
            f"none of the {len(paths)} files in {folder} can be trained on "
            f"(the first, {first.name}: {first.reason})"
        )
    store = PhotoStore.of(photos, names, skipped)
    if cache is not None:
        _write_cache(cache, key, store)
        store = _read_cache(cache, key) or store
    store.others = found.notes()
    return store


def _decode(path: Path, side: int, grey: bool) -> Pixels | str:
    """Pixels of a usable photo, or why it is none."""
    try:
        # JPEG files are decoded at a fraction of their size where that is enough.
        photo = decode_photo(read_picture_file(path), shrink_to=side)
    except PhotoError as error:
        return f"unreadable: {in_one_line(error)}"
    except OSError as error:
        return f"unreadable: {error.strerror or in_one_line(error)}"
    if min(photo.height, photo.width) < MIN_SIDE:
        return f"tiny: {photo.width} x {photo.height}"
    pixels = np.rint(photo.pixels * 255).astype(np.uint8) if photo.deep else photo.pixels
    image = Image.fromarray(pixels).convert("RGB")
    if not grey and is_grey(image):
        return "grey"
    scale = side / min(image.size)
    if scale != 1:
        size = tuple(max(side, round(length * scale)) for length in image.size)
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    return np.asarray(image)


def is_grey(image: Image.Image) -> bool:
    """Whether a photo has no colours of its own: grey, or toned in one hue like a sepia print.

    Its colour differences are then a smooth function of its luminance; what a quadratic leaves
    over is measured in grey levels of a thumbnail.
    """
    small = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    rgb = np.asarray(small, dtype=np.float64).reshape(-1, 3)
    luminance = rgb @ (0.299, 0.587, 0.114)
    differences = np.stack((rgb[:, 0] - luminance, rgb[:, 2] - luminance), axis=1)
    basis = np.stack((np.ones_like(luminance), luminance, luminance**2), axis=1) / (1, 255, 65025)
    solution = np.linalg.lstsq(basis, differences, rcond=None)[0]
    residual = differences - basis @ solution
    return bool(np.sqrt(np.mean(residual**2)) < _GREY_RESIDUAL)


def _cache_key(folder: Path, paths: list[Path], side: int, grey: bool) -> str:
    files = [
        (path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns)
        for path in paths
        for status in [path.stat() if path.exists() else path.lstat()]
    ]
    return hashlib.sha256(json.dumps([_CACHE_VERSION, side, grey, files]).encode()).hexdigest()


def _read_cache(cache: Path, key: str) -> PhotoStore | None:
    """The cached store, or None where there is none for this key."""
    index = _index_path(cache)
    try:
        content: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        if content["key"] != key or cache.stat().st_size != content["bytes"]:
            return None
        shapes = [(int(height), int(width)) for height, width in content["shapes"]]
        skipped = [Skipped(name, reason) for name, reason in content["skipped"]]
        names = content["names"]
        pixels = np.memmap(cache, dtype=np.uint8, mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return PhotoStore(pixels, shapes, names, skipped)


def _write_cache(cache: Path, key: str, store: PhotoStore) -> None:
    content = {
        "key": key,
        "bytes": int(store._pixels.nbytes),
        "names": store.names,
        "shapes": store._shapes,
        "skipped": [(item.name, item.reason) for item in store.skipped],
    }
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        # The index goes last: it vouches for the pixels.
        _index_path(cache).unlink(missing_ok=True)
        write_atomically(cache, store._pixels.data)
        write_atomically(_index_path(cache), json.dumps(content).encode())
    except OSError as error:
        raise TrainingError(
            f"the cache {cache} cannot be written ({error.strerror}): free some space or leave "
            "the cache out"
        ) from error


def _index_path(cache: Path) -> Path:
    return cache.with_name(cache.name + ".json")


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that a reader sees the old content or the new one, nothing between.

    Raises:
        OSError: it cannot be written; the old content is still there.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
