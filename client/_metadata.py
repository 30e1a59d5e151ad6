"""What a PIL image says about itself, in the form of the file that it is sent as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image, TiffImagePlugin

from pikfix.photos import embedded, metadata
from pikfix.photos.attach import png_settings
from pikfix.photos.metadata import editable

_XMP, _IPTC_TAG, _X_RESOLUTION = 700, 33723, 282
_IPTC_RESOURCE = 0x0404
# Entries of `Image.info` that are kept by another way, or describe how the old file was stored.
_KNOWN = frozenset(
    {
        *("adobe", "adobe_transform", "aspect", "background", "bits", "blend", "chromaticity"),
        *("comment", "compression", "default_image", "disposal", "dpi", "duration", "exif"),
        *("extension", "gamma", "icc_profile", "interlace", "jfif", "jfif_density", "jfif_unit"),
        *("jfif_version", "loop", "mp", "mpoffset", "orientation", "photoshop", "progression"),
        *("progressive", "resolution", "rle", "srgb", "timestamp", "transparency", "version"),
        *("xmp", "XML:com.adobe.xmp", "id_section", "quality", "subsampling", "depth"),
        *("primary", "metadata", "thumbnails", "bit_depth", "nclx_profile", "chroma", "heif"),
    }
)


@dataclass(frozen=True)
class Facts:
    """EXIF, XMP, IPTC data, comments and resolution of an image.

    Attributes:
        exif: block without orientation, which is applied to the pixels; empty where there is none.
        dpi: dots per inch (horizontal, vertical), or None.
        xmp: XMP packet; empty where there is none.
        iptc: IPTC-IIM datasets; empty where there are none.
        texts: comments, pairs of a keyword and a text.
        dropped: a line for each thing that is not sent.
    """

    exif: bytes = b""
    dpi: tuple[float, float] | None = None
    xmp: bytes = b""
    iptc: bytes = b""
    texts: embedded.Texts = ()
    dropped: tuple[str, ...] = ()

    def png(self) -> dict[str, Any]:
        """Return Pillow's settings for a PNG that holds all of it."""
        settings = png_settings(self.xmp, self.iptc, self.texts)
        if self.exif:
            settings["exif"] = self.exif
        if self.dpi is not None:
            settings["dpi"] = self.dpi
        return settings

    def tiff(self) -> dict[str, Any]:
        """Return Pillow's settings for an uncompressed TIFF; it has no place for comments."""
        directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
        for tag, value in dict(editable(self.exif)).items():
            directory[tag] = value
        for tag, kind, packet in ((_XMP, 1, self.xmp), (_IPTC_TAG, 7, self.iptc)):
            if packet:
                directory.tagtype[tag] = kind
                directory[tag] = packet
        settings: dict[str, Any] = {"tiffinfo": directory}
        if self.dpi is not None:
            settings["dpi"] = self.dpi
        return settings


def facts_of(image: Image.Image) -> Facts:
    """Collect what an image holds beside its pixels and its colour profile.

    Args:
        image: opened from a file or derived from one, its pixels loaded; as PIL has it, so that
            what the caller changed counts.
    """
    dropped = []
    exif = Image.Exif()
    try:
        exif = image.getexif()
    # EXIF comes from countless devices; whatever is wrong with it must not cost the photo.
    except Exception:
        dropped.append("the image's EXIF block is damaged and was not sent")
    turned = metadata.orientation_of(exif) >= 5
    size = (image.width, image.height) if turned else (image.height, image.width)
    dpi = None
    # Of a TIFF without a resolution, Pillow says 1 dpi.
    if image.format != "TIFF" or _X_RESOLUTION in exif:
        dpi = metadata.resolution(image, exif, None)
    block = b""
    try:
        block = metadata.kept_exif(exif, size, dpi)
    except Exception:
        dropped.append("the image's EXIF block is damaged and was not sent")
    found = _embedded(image, exif, size)
    dropped += [*found.dropped, *_unknown(image, found.texts)]
    return Facts(
        exif=block,
        dpi=dpi if dpi is None or not turned else (dpi[1], dpi[0]),
        xmp=found.xmp,
        iptc=found.iptc,
        texts=found.texts,
        dropped=tuple(dropped),
    )


def _embedded(image: Image.Image, exif: Image.Exif, size: tuple[int, int]) -> embedded.Embedded:
    try:
        found = embedded.embedded_in(b"", image, (), size)
        xmp, iptc, texts = found.xmp, found.iptc, list(found.texts)
        # An image that was derived from an opened one has its `info` alone.
        stored = exif.get(_XMP)
        if not xmp and isinstance(stored, bytes):
            xmp = embedded.clean_xmp(stored, size)
        photoshop = image.info.get("photoshop")
        raw = photoshop.get(_IPTC_RESOURCE) if isinstance(photoshop, dict) else exif.get(_IPTC_TAG)
        if not iptc and isinstance(raw, bytes):
            iptc = embedded.clean_iptc(raw)
    # As for EXIF.
    except Exception:
        return embedded.Embedded(
            dropped=("the image's XMP, IPTC or comments are damaged and were not sent",)
        )
    if not texts:
        comment = image.info.get("comment", b"")
        text = comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)
        if text.strip("\0 \r\n\t"):
            texts.append((embedded.COMMENT, text.strip("\0 \r\n\t")))
        texts += [
            (key, str(value))
            for key, value in image.info.items()
            if isinstance(key, str) and isinstance(value, str)
            if embedded.is_comment(key) and key not in _KNOWN
        ]
    return embedded.Embedded(xmp, iptc, tuple(texts), found.dropped)


def _unknown(image: Image.Image, texts: embedded.Texts) -> list[str]:
    sent = {key for key, _ in texts}
    names = sorted(
        str(key)
        for key in image.info
        if key not in _KNOWN and key not in sent and embedded.is_comment(str(key))
    )
    return [f"not sent of the image's info: {', '.join(names)}"] if names else []
