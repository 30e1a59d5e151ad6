"""The directories of a TIFF file: which of its pages is the photo, and what that page stores.

Pillow hands out the pages of the chain alone, and a tag's values only as it understands them;
here the entries are read as they are stored, so that a page can be chosen, its size checked and
its kind named before anything is decoded.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
SAMPLES, TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT = 277, 322, 323, 339
_SUBFILE, _OLD_SUBFILE, _SUB_DIRECTORIES = 254, 255, 330
_MOST_PAGES = 4096
_SIZES = MappingProxyType(
    {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
    | {16: 8, 17: 8, 18: 8}
)
_WHOLE = MappingProxyType({1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"})

# Methods that Pillow's libtiff decodes; the others go to tifffile, whose codecs are a package.
PILLOW_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946})
COMPRESSION_NAMES: Mapping[int, str] = MappingProxyType(
    {1: "none", 2: "CCITT", 3: "CCITT fax 3", 4: "CCITT fax 4", 5: "LZW", 6: "old JPEG"}
    | {7: "JPEG", 8: "deflate", 22610: "JPEG XR", 32773: "PackBits", 32946: "deflate"}
    | {33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "JPEG"}
    | {34925: "LZMA", 34926: "Zstandard", 34927: "WebP", 34933: "PNG", 34934: "JPEG XR"}
    | {50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"}
)
_RAW_PHOTOMETRICS = frozenset({32803, 34892})


class TiffError(ValueError):
    """The directories cannot be followed."""


@dataclasses.dataclass(frozen=True)
class Page:
    """One directory.

    Attributes:
        place: where it is, for a reader: ``2``, or ``1.3`` for the third sub-picture of page 1.
        offset: of the directory, in bytes from the file's start.
        entries: tag -> (type, number of values, the values as bytes in the file's order).
        order: ``<`` or ``>``.
    """

    place: str
    offset: int
    entries: Mapping[int, tuple[int, int, bytes]] = dataclasses.field(repr=False)
    order: str

    def raw(self, tag: int) -> bytes:
        """Return a tag's values as bytes; empty where it is absent."""
        return self.entries[tag][2] if tag in self.entries else b""

    def numbers(self, tag: int) -> tuple[float, ...]:
        """Return a tag's numbers; none where it is absent or holds something else."""
        kind, count, data = self.entries.get(tag, (0, 0, b""))
        if kind in _WHOLE:
            return struct.unpack(f"{self.order}{count}{_WHOLE[kind]}", data)
        if kind == 5:
            pairs = struct.unpack(f"{self.order}{2 * count}I", data)
            parts = zip(pairs[::2], pairs[1::2], strict=True)
            return tuple(top / bottom if bottom else 0.0 for top, bottom in parts)
        if kind in {11, 12}:
            return struct.unpack(f"{self.order}{count}{'f' if kind == 11 else 'd'}", data)
        return ()

    def whole(self, tag: int, default: int = 0) -> int:
        """Return a tag's first number, rounded down."""
        numbers = self.numbers(tag)
        return int(numbers[0]) if numbers else default

    @property
    def width(self) -> int:
        """Columns as stored."""
        return self.whole(WIDTH)

    @property
    def height(self) -> int:
        """Rows as stored."""
        return self.whole(HEIGHT)

    @property
    def decoded_pixels(self) -> int:
        """Pixels that decoding has to hold: of the page or of one tile, whichever is more."""
        return max(self.width * self.height, self.whole(TILE_WIDTH) * self.whole(TILE_HEIGHT))

    @property
    def compression(self) -> int:
        """The number of its compression method."""
        return self.whole(COMPRESSION, 1)

    @property
    def is_reduced(self) -> bool:
        """Whether it is flagged as a smaller copy of another page."""
        return bool(self.whole(_SUBFILE) & 1) or self.whole(_OLD_SUBFILE) == 2

    @property
    def is_mask(self) -> bool:
        """Whether it says only which parts of another page are to be seen."""
        return bool(self.whole(_SUBFILE) & 4) or self.whole(PHOTOMETRIC) == 4

    @property
    def is_raw(self) -> bool:
        """Whether it holds a camera's sensor values, which are no picture yet."""
        return self.whole(PHOTOMETRIC) in _RAW_PHOTOMETRICS

    @property
    def kind(self) -> str:
        """What it stores, in words."""
        bits = self.whole(BITS, 1)
        form = {1: "", 2: "signed ", 3: "floating-point "}.get(self.whole(SAMPLE_FORMAT, 1), "odd ")
        method = COMPRESSION_NAMES.get(self.compression, f"method {self.compression}")
        return (
            f"{self.whole(SAMPLES, 1)} {form}samples of {bits} bits, photometric"
            f" {self.whole(PHOTOMETRIC)}, compression {method}"
        )


def pages_of(data: bytes) -> list[Page]:
    """Read the directories of a TIFF or BigTIFF file, each followed by its sub-directories.

    A chain that breaks off ends with the last directory that can be read.

    Raises:
        TiffError: not even the first can be.
    """
    pages: list[Page] = []
    seen: set[int] = set()
    try:
        order, big = {73: "<", 77: ">"}[data[0]], data[2:4] in {b"+\0", b"\0+"}
        offset = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
        number = 0
        while offset and offset not in seen and len(pages) < _MOST_PAGES:
            seen.add(offset)
            number += 1
            page, following = _directory(data, offset, order, big, str(number))
            pages.append(page)
            pages.extend(_below(data, page, order, big, seen))
            offset = following
    except (struct.error, IndexError, KeyError, ValueError) as error:
        if not pages:
            raise TiffError("its first directory cannot be read") from error
    if not pages:
        raise TiffError("it has no directory")
    return pages


def _below(data: bytes, page: Page, order: str, big: bool, seen: set[int]) -> Iterator[Page]:
    for number, offset in enumerate(page.numbers(_SUB_DIRECTORIES), 1):
        if offset in seen or len(seen) > _MOST_PAGES:
            continue
        seen.add(int(offset))
        try:
            yield _directory(data, int(offset), order, big, f"{page.place}.{number}")[0]
        except (struct.error, ValueError):
            continue


def _directory(data: bytes, offset: int, order: str, big: bool, place: str) -> tuple[Page, int]:
    head, entry, pointer = ("Q", "HHQ", "Q") if big else ("H", "HHI", "I")
    count = struct.unpack_from(order + head, data, offset)[0]
    start = offset + struct.calcsize(order + head)
    inline = struct.calcsize(order + pointer)
    step = struct.calcsize(order + entry) + inline
    if count > 65535 or start + count * step > len(data):
        raise ValueError("cut off")
    entries: dict[int, tuple[int, int, bytes]] = {}
    for at in range(start, start + count * step, step):
        tag, kind, values = struct.unpack_from(order + entry, data, at)
        size = _SIZES.get(kind, 0) * values
        where = at + step - inline
        if size > inline:
            where = struct.unpack_from(order + pointer, data, where)[0]
        if size and where + size <= len(data):
            entries.setdefault(tag, (kind, values, data[where : where + size]))
    try:
        following = struct.unpack_from(order + pointer, data, start + count * step)[0]
    except struct.error:
        following = 0
    return Page(place, offset, entries, order), following


def is_photo(page: Page) -> bool:
    """Whether a page holds a picture of its own: no smaller copy of another, and no mask."""
    return bool(not page.is_reduced and not page.is_mask and page.width)


def choose(pages: list[Page]) -> Page:
    """Choose the photo: the first page that is neither a smaller copy of another nor a mask."""
    full = [page for page in pages if is_photo(page)]
    return full[0] if full else max(pages, key=lambda page: page.width * page.height)


def said_of(pages: list[Page], taken: Page) -> str | None:
    """Say which page was taken, where there is a choice."""
    if len(pages) < 2:
        return None
    others = [page for page in pages if page is not taken]
    reduced = sum(page.is_reduced for page in others)
    masks = sum(page.is_mask and not page.is_reduced for page in others)
    parts = [
        f"{number} {name}"
        for number, name in ((reduced, "of reduced resolution"), (masks, "a mask"))
        if number
    ]
    detail = f" (of the others {', '.join(parts)})" if parts else ""
    return f"the file holds {len(pages)} pages: page {taken.place} was taken{detail}"


def pointed_at(data: bytes, page: Page) -> bytes:
    """Return the file with a page as its first; the same bytes where it is."""
    big = data[2:4] in {b"+\0", b"\0+"}
    at, form = (8, "Q") if big else (4, "I")
    pointer = struct.pack(page.order + form, page.offset)
    if data[at : at + len(pointer)] == pointer:
        return data
    return data[:at] + pointer + data[at + len(pointer) :]


def first_missing_row(page: Page, length: int) -> int | None:
    """Find the first row, as stored, whose strip or tile lies behind the end of the file.

    Args:
        page: the page.
        length: the file's, in bytes.

    Returns:
        The row; None where all the picture's data is within the file.
    """
    tiled = bool(page.numbers(324))
    offsets = [int(one) for one in page.numbers(324 if tiled else 273)]
    counts = [int(one) for one in page.numbers(325 if tiled else 279)]
    rows = page.whole(TILE_HEIGHT if tiled else 278, page.height) or page.height
    across = -(-page.width // max(1, page.whole(TILE_WIDTH))) if tiled else 1
    down = -(-page.height // rows)
    row_bytes = (page.width * int(sum(page.numbers(BITS) or (1,))) + 7) // 8
    first: int | None = None
    for number, offset in enumerate(offsets):
        top = number // across % max(1, down) * rows
        size = counts[number] if number < len(counts) else 1
        if page.compression == 1 and not tiled and page.whole(284, 1) == 1:
            # Old writers count too much; what the rows need is what matters.
            size = min(size or length, min(rows, page.height - top) * row_bytes)
        if size and offset + size > length and (first is None or top < first):
            first = top
            if page.compression == 1 and not tiled and row_bytes:
                first += max(0, length - offset) // row_bytes
    return first
