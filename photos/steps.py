"""What the first and the last step of the ensemble share: options, deadline, notes, references.

Nothing here knows the server: requests come in as bytes and JSON text, so that all of it can
be tested without one.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from pikfix.photos import encode, metadata
from pikfix.photos.color import lab_planes
from pikfix.photos.decode import Photo, decode_photo
from pikfix.photos.domain import Content, photo_within
from pikfix.photos.embedded import Texts
from pikfix.photos.errors import PhotoError
from pikfix.photos.kept import Kept
from pikfix.photos.padding import MULTIPLE
from pikfix.photos.rgb import is_grey
from pikfix.photos.tint import has_colours
from pikfix.protocol.deadline import lateness, read_deadline
from pikfix.protocol.options import FORMATS, Options, OptionsError
from pikfix.protocol.report import NOTHING_DONE, PhotoInfo, ReferenceUse

T = TypeVar("T", int, str)

WORKING_SIDE = 512
"""Longest side at which photos are matched with references, `WORKING_LIMIT` of pikfix.layers.sizes:
this module does without torch."""
DEFAULT_REFERENCE_SIDE = WORKING_SIDE
DEFAULT_MAX_REFERENCES = 8
_NOTES_VERSION = 2
_BINARY = ("exif", "xmp", "iptc", "icc")
LEFT_AS_IT_IS = (
    'looks like text or a drawing: left as it is; send {"force_photo": true} (--force-photo) to '
    "restore it all the same"
)
BORDER_KEPT = (
    'has a border, which is left as it is: only the photo within was restored; send {"force_photo"'
    ": true} (--force-photo) to restore all of it"
)


def config_value(parameters: Mapping[str, Any], name: str, default: T) -> T:
    """Read a parameter of the model's configuration.

    Args:
        parameters: ``model_config["parameters"]``: name -> {"string_value": text}.
        name: the parameter.
        default: its value where absent; also gives the type.

    Raises:
        ValueError: an integer was expected, or it is below 1.
    """
    if name not in parameters:
        return default
    text = str(parameters[name]["string_value"]).strip()
    if isinstance(default, str):
        return text
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"parameter {name} is {text!r}: set a whole number of at least 1")
    return int(text)


def check_deadline(parameters: str | None, now: float | None = None) -> float | None:
    """Stop work that nobody waits for any more.

    Args:
        parameters: the request's parameters as JSON text.
        now: Unix time in seconds; the clock's where None.

    Returns:
        The deadline as Unix time in seconds; None where there is none.

    Raises:
        PhotoError: ``deadline_exceeded``; ``bad_options`` where the value is no integer.
    """
    try:
        deadline = read_deadline(parameters)
    except TypeError as error:
        raise PhotoError("bad_options", str(error)) from error
    if (late := lateness(deadline, now)) is not None:
        raise PhotoError("deadline_exceeded", late)
    return None if deadline is None else deadline / 1000.0


def read_options(data: bytes) -> Options:
    """Read the options of a request; empty means all defaults.

    Raises:
        PhotoError: ``bad_options``, naming the key.
    """
    try:
        return Options.from_json(data)
    except OptionsError as error:
        raise PhotoError("bad_options", str(error)) from error


@dataclasses.dataclass(frozen=True)
class Reference:
    """A picture whose colours the photo takes.

    Attributes:
        pixels: [H, W] or [H, W, 3] sRGB, uint8.
        source: "request", or "library" where the server chose it.
        name: its name in the library.
        score: how well it suits the photo, as the library judges.
        sha256: of its file, in hexadecimal.
    """

    pixels: npt.NDArray[Any]
    source: str = "request"
    name: str | None = None
    score: float | None = None
    sha256: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])

    def use(self) -> ReferenceUse:
        """Return its entry in the report; its share of the matches is not known before them."""
        return ReferenceUse(self.source, self.name, self.score, sha256=self.sha256)


def decode_references(
    files: Sequence[bytes], max_pixels: int, max_references: int, side: int
) -> list[Reference]:
    """Decode the references of one request; empty files count as absent.

    Args:
        files: encoded pictures.
        max_pixels: limit for each.
        max_references: limit of their number: the correlation grows with it.
        side: the side they will be resized to.

    Raises:
        PhotoError: ``bad_reference``, naming which one.
    """
    files = [file for file in files if file]
    if len(files) > max_references:
        raise PhotoError(
            "bad_reference", f"{len(files)} references were sent: send at most {max_references}"
        )
    references = []
    for number, file in enumerate(files, 1):
        try:
            # Twice the side, so that the antialiased resize has pixels to average.
            photo = decode_photo(file, max_pixels, shrink_to=2 * side)
        except PhotoError as error:
            raise PhotoError("bad_reference", f"reference {number}: {error}") from error
        references.append(Reference(_shallow(photo), sha256=hashlib.sha256(file).hexdigest()))
    return references


def _shallow(photo: Photo) -> npt.NDArray[np.uint8]:
    pixels = np.rint(photo.pixels * 255.0) if photo.deep else photo.pixels
    return pixels.astype(np.uint8, copy=False)


def matching_side(size: tuple[int, int], padded: tuple[int, int], limit: int) -> int:
    """Choose the longest side for a photo's references: that of the photo where it is matched.

    Features depend on the scale at which they see a thing, so a reference is best seen at the scale
    of the photo (benchmarks/results/reference-scale.md).

    Args:
        size: (height, width) of the photo.
        padded: its shape when it is given to the networks, which scale it to the working size.
        limit: longest side in any case; at least 32.

    Returns:
        A multiple of 32, at least 32.
    """
    scale = min(1.0, WORKING_SIDE / max(padded))
    side = max(round(max(size) * scale / MULTIPLE), 1) * MULTIPLE
    return min(side, limit // MULTIPLE * MULTIPLE)


def reference_shape(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Choose the size for references: the aspect of ``size``, multiples of 32, long side <= side.

    Smaller pictures are not enlarged beyond the next multiple.
    """
    scale = min(1.0, side / max(size))
    limit = side // MULTIPLE * MULTIPLE

    def multiple(length: int) -> int:
        return min(max(round(length * scale / MULTIPLE), 1) * MULTIPLE, limit)

    return multiple(size[0]), multiple(size[1])


def reference_planes(
    references: Sequence[Reference], shape: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Resize references (antialiased) to one size: scaled Lab [R, 3, H, W] float32."""
    size = (shape[1], shape[0])
    lanczos = Image.Resampling.LANCZOS
    return np.stack(
        [
            lab_planes(np.asarray(Image.fromarray(ref.pixels).resize(size, lanczos)))
            for ref in references
        ]
    )


def grey_reference() -> npt.NDArray[np.float32]:
    """Mid grey [1, 3, 32, 32]: the cheapest reference, for photos that stay grey."""
    return np.zeros((1, 3, MULTIPLE, MULTIPLE), np.float32)


def join_references(
    planes: Sequence[npt.NDArray[np.float32]], shape: tuple[int, int] | None
) -> npt.NDArray[np.float32]:
    """Join the references of a request's photos into one tensor.

    A tensor needs one number of references. Their positions share a softmax, which does not
    change when every reference is there equally often: so each photo's set is repeated to the
    least common multiple of the numbers.

    Args:
        planes: for each photo [R_i, 3, H, W], or a grey reference where it stays grey.
        shape: (H, W) of the references; None where no photo has any.

    Returns:
        [B, R, 3, H, W] float32.

    Raises:
        PhotoError: ``bad_reference``, where the common multiple is out of proportion.
    """
    if len(planes) == 1:
        return planes[0][None]
    if shape is None:
        return np.stack(planes)
    counts = [len(plane) for plane in planes]
    common = math.lcm(*counts)
    if common > 2 * max(counts):
        raise PhotoError(
            "bad_reference",
            f"the photos of this request have {sorted(set(counts))} references:"
            " send photos with as many references each, or one photo per request",
        )
    out = np.zeros((len(planes), common, 3, *shape), np.float32)
    for number, plane in enumerate(planes):
        if plane.shape[2:] == shape:  # what stays grey needs no colours: zeros are mid grey
            out[number] = np.tile(plane, (common // len(plane), 1, 1, 1))
    return out


@dataclasses.dataclass(frozen=True)
class PhotoNotes:
    """What decode_photo tells encode_photo about a photo (the tensor photo_info, JSON).

    Attributes:
        size: (height, width) to crop to, of the part that the networks get.
        photo: the report's entry on the photo.
        deep: the result has 16 bits a sample.
        exif: EXIF block for the result.
        dpi: resolution, or None.
        xmp: XMP packet for the result.
        iptc: IPTC datasets for the result.
        texts: comments for the result, pairs of a keyword and a text.
        format: format of the result.
        quality: quality of the result.
        colorize: whether the result gets colour.
        references: the report's entries on the references.
        warnings: for the report.
        decode_seconds: time spent in decode_photo, on the whole request.
        decoded_at: Unix time in seconds at which decode_photo was done.
        kept: what passes the networks by; None where they get the whole picture.
        place: of the photo among those in flight, which encode_photo gives back.
        icc: profile of the result; empty: sRGB.
        original: the part that the networks get, as it was, where it is needed once more: for its
            own colours or a strength below 1.
        keep_color: whether the result has the photo's own colours.
        strength: of the restoration, 0 to 1.
        color_strength: of the colours, 0 to 1.
        faces: whether faces may be drawn anew.
        filled_share: share of that part that was filled before, as a mask marked it.
    """

    size: tuple[int, int]
    photo: PhotoInfo
    deep: bool
    exif: bytes
    dpi: tuple[float, float] | None
    format: str
    quality: int
    colorize: bool
    references: Sequence[ReferenceUse]
    warnings: list[str]
    xmp: bytes = b""
    iptc: bytes = b""
    texts: Texts = ()
    decode_seconds: float = 0.0
    decoded_at: float = 0.0
    kept: Kept | None = None
    place: int | None = None
    icc: bytes = b""
    original: Kept | None = None
    keep_color: bool = False
    strength: float = 1.0
    color_strength: float = 1.0
    faces: bool = True
    filled_share: float = 0.0

    def to_json(self) -> bytes:
        """Serialize; the inverse of :meth:`from_json`."""
        fields = dataclasses.asdict(self)
        for name in _BINARY:
            fields[name] = base64.b64encode(fields[name]).decode()
        return json.dumps({"version": _NOTES_VERSION, **fields}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> PhotoNotes:
        """Read what :meth:`to_json` wrote.

        Raises:
            PhotoError: ``bad_tensor``.
        """
        try:
            fields = json.loads(data)
            if fields.pop("version") != _NOTES_VERSION:
                raise ValueError("of another version")
            for name in _BINARY:
                fields[name] = base64.b64decode(fields[name])
            fields["texts"] = tuple((str(key), str(text)) for key, text in fields["texts"])
            fields["photo"] = PhotoInfo.from_dict(fields["photo"])
            fields["references"] = [*map(ReferenceUse.from_dict, fields["references"])]
            height, width = fields["size"]
            fields["size"] = (int(height), int(width))
            if fields["dpi"] is not None:
                horizontal, vertical = fields["dpi"]
                fields["dpi"] = (float(horizontal), float(vertical))
            for name in ("kept", "original"):
                if fields[name] is not None:
                    fields[name] = Kept.from_fields(fields[name])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PhotoError(
                "bad_tensor", f"photo_info is not what decode_photo writes ({error})"
            ) from error


def check_pages(photo: Photo, options: Options) -> None:
    """Refuse a file with several photos unless the first alone is wanted: none may be lost.

    Raises:
        PhotoError: ``unsupported_photo``.
    """
    if photo.photos > 1 and options.pages != "first":
        raise PhotoError(
            "unsupported_photo",
            f"the file holds {photo.photos} photos, each on a page, and a result holds one: save"
            ' each page as a file of its own (tiffsplit does), or send {"pages": "first"} (--pages'
            " first) to restore the first one alone",
        )


def check_translation(options: Options) -> None:
    """Refuse what asks for colours of a system that adds none.

    Raises:
        PhotoError: ``bad_options``.
    """
    for name, given in (
        ("force_color", options.force_color),
        ("color_strength", options.color_strength != 1),
    ):
        if given:
            raise PhotoError(
                "bad_options", f"{name} is of colours that are added, and this system adds none"
            )


def part_to_restore(photo: Photo, content: Content) -> Photo:
    """What the networks get: the photo, what is within its border, or a speck of a graphic.

    A graphic passes them by; the ensemble has no way around its steps.
    """
    if content.kind == "graphic":
        return dataclasses.replace(photo, pixels=np.full((MULTIPLE, MULTIPLE), 128, np.uint8))
    if content.rectangle is not None:
        return dataclasses.replace(photo, pixels=photo_within(photo.pixels, content))
    return photo


def keeps_color(part: Photo, options: Options) -> bool:
    """Whether the own colours of what the networks get are those of the result."""
    return options.keep_color and has_colours(part.pixels)


def take_notes(
    photo: Photo,
    options: Options,
    references: Sequence[Reference],
    *,
    library: bool,
    rejection_reason: str | None = None,
    content: Content | None = None,
    translated: bool = False,
    filled_share: float = 0.0,
) -> PhotoNotes:
    """Settle what becomes of a photo.

    Args:
        photo: the decoded photo.
        options: the client's.
        references: those to colorize with; none leaves the photo grey.
        library: whether references could have been chosen by the server.
        rejection_reason: why the server chose none from its library.
        content: what the picture holds; None: a photo alone.
        translated: whether the networks give colours for a photo's own ones, and none to a grey
            one; else they give luminance, and chroma after references.
        filled_share: share of the part for the networks that a mask marked, filled already.

    Returns:
        The notes, their times still zero.

    Raises:
        PhotoError: ``bad_options``, where the format cannot hold the photo.
    """
    fallback = photo.format if photo.format in FORMATS else "png"
    name = options.format or fallback
    encode.check_format(name, (photo.height, photo.width))
    warnings = list(photo.warnings)
    content = content or Content()
    graphic = content.kind == "graphic"
    part = part_to_restore(photo, content)
    colorize = options.color and bool(references) and not graphic
    keep = not graphic and keeps_color(part, options)
    if translated:
        keep = not graphic and options.color and not is_grey(photo.pixels)
    if keep:
        colorize, references = False, ()
    if graphic:
        warnings.append(LEFT_AS_IT_IS)
    elif content.rectangle is not None:
        warnings.append(BORDER_KEPT)
    wanted = options.color and not keep and not translated
    if wanted and has_colours(part.pixels):
        warnings.append("the photo's own colours were not used: only its luminance is restored")
    if wanted and not references and not graphic:
        suits = rejection_reason or "its library has none that suits"
        where = suits if library else "the server has no library"
        warnings.append(f"left grey: no reference was sent and {where}")
    colour = colorize or keep or (graphic and photo.pixels.ndim == 3)
    holds_deep = encode.holds_deep(name, grey=not colour)
    if not holds_deep and (options.depth == 16 or (photo.deep and options.depth is None)):
        kind = "colour" if colour else "pictures"
        why = "16 were asked for" if options.depth else f"the photo has {photo.bit_depth}"
        warnings.append(f"{name} holds {kind} at 8 bits here, {why}")
    own = options.profile == "own" and colour == (photo.pixels.ndim == 3)
    # A WebP picture is never grey alone, and so in no profile of grey.
    icc = photo.icc if own and not (name == "webp" and not colour) else b""
    stored = photo.stored if icc and photo.stored is not None else photo.pixels
    kept = Kept.of(stored, content) if part is not photo else None
    # Nothing is to be done, neither to tones nor to colours: every sample stays.
    if (
        options.strength == 0
        and not filled_share
        and not colorize
        and colour == (photo.pixels.ndim == 3)
        and not (keep and options.color_strength < 1)
    ):
        kept = Kept.of(stored, Content())
        warnings.append(NOTHING_DONE)
    again = (keep and not translated) or options.strength < 1
    again = again and (kept is None or kept.place is not None)
    return PhotoNotes(
        size=(part.height, part.width),
        photo=PhotoInfo(
            photo.width,
            photo.height,
            photo.format,
            photo.mode,
            photo.bit_depth,
            content.kind,
            None if content.rectangle is None else dataclasses.astuple(content.rectangle),
        ),
        deep=holds_deep and (photo.deep if options.depth is None else options.depth == 16),
        exif=metadata.in_another_space(photo.exif) if photo.stored is stored else photo.exif,
        dpi=photo.dpi,
        xmp=photo.xmp,
        iptc=photo.iptc,
        texts=photo.texts,
        format=name,
        quality=options.quality,
        colorize=colorize,
        references=[reference.use() for reference in references] if colorize else [],
        warnings=warnings,
        kept=kept,
        icc=icc,
        original=Kept.of(part.pixels, Content()) if again else None,
        keep_color=keep,
        strength=options.strength,
        color_strength=options.color_strength,
        faces=options.faces,
        filled_share=filled_share,
    )
