"""Which files are pictures that `decode` reads: by their suffix, or else by their first bytes."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from PIL import Image

from pikfix.photos import signatures
from pikfix.photos.opening import FORMATS

# Their signature is so short, or missing, that text and other data pass for it.
_UNSURE = frozenset({"BMP", "DIB", "PPM", "PCX", "SGI", "MSP"})
_NO_SIGNATURE = frozenset({"TGA", "IM"})
# Files that lie beside photos. Some begin like a picture: a camera's thumbnail is a JPEG, and its
# raw file a TIFF whose first page is a thumbnail.
SIDECARS = frozenset(
    {
        *(".aae", ".db", ".htm", ".html", ".ini", ".json", ".log", ".lrv", ".md5", ".pp3"),
        *(".thm", ".txt", ".xml", ".xmp", ".yaml", ".yml"),
    }
)
RAW = frozenset(
    {
        *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc"),
        *(".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl"),
        *(".sr2", ".srf", ".srw", ".x3f"),
    }
)
_SIGNATURE_BYTES = 64
# Read through a package that registers them only once it is needed; where it is missing, the error
# says so.
_HEIF = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})


@functools.cache
def suffixes() -> frozenset[str]:
    """Suffixes, in lower case with the dot, of the formats that `decode` reads."""
    Image.init()
    found = frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS)
    return found | _HEIF if "HEIF" in FORMATS else found


def is_picture(path: Path) -> bool:
    """Return whether a file is to be taken for a picture.

    A known suffix decides; a file with another one or none is looked into. Whether the picture is
    whole only decoding tells.

    Raises:
        OSError: it has no known suffix and cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in suffixes():
        return True
    return suffix not in SIDECARS | RAW and has_signature(path)


def has_signature(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins like a picture that `decode` reads; OSError if unreadable."""
    Image.init()
    with Path(path).open("rb") as file:
        prefix = file.read(_SIGNATURE_BYTES)
    if "HEIF" in FORMATS and signatures.is_heif(prefix):
        return True
    for name in FORMATS:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        if name in _NO_SIGNATURE or accept is None or not _accepts(accept, prefix):
            continue
        if name not in _UNSURE or _opens(path, name):
            return True
    return False


def _accepts(accept: object, prefix: bytes) -> bool:
    try:
        # Pillow's plugins return a string where the format is known and a library is missing.
        return bool(accept(prefix))  # type: ignore[operator]
    except Exception:
        # A short file ends some of them with IndexError or struct.error.
        return False


def _opens(path: str | os.PathLike[str], name: str) -> bool:
    try:
        with Image.open(path, formats=[name]):
            return True
    # Header parsers raise nearly every built-in exception on other data, see decode.
    except Exception:
        return False
