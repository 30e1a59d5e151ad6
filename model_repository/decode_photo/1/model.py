"""First step of every system: picture files to the tensors its networks take.

Inputs, with a batch dimension B:
    photo      BYTES [B, 1]            encoded pictures
    reference  BYTES [B, R], optional  encoded pictures; absent or empty: none sent
    mask       BYTES [B, 1], optional  encoded pictures, white where a photo is damaged
    options    BYTES [B, 1], optional  JSON objects, see pikfix.protocol.options.Options
Outputs, of which a system asks for its own:
    photo_l        FP32 [B, 1, H, W]          L/50 - 1, reflected to a bucket of shapes
    photo_rgb      FP32 [B, 3, H, W]          sRGB, (x - 0.5) / 0.5, reflected likewise
    marked_mask    FP32 [B, 1, H, W]          the mask that was sent, 0 to 1, reflected likewise
    reference_lab  FP32 [B, R, 3, H_r, W_r]   L/50 - 1, a/110, b/110
    photo_info     BYTES [B, 1]               notes for encode_photo
A system that asks for photo_rgb gives colours back: it needs, and gets, no references.
Configuration parameters, all optional: max_pixels (of any picture), max_side (of the photo),
bucket_sides (multiples of 32, separated by commas), reference_side (longest side of references,
which otherwise have the scale of the photo where it is matched with them), max_references;
max_in_flight (photos between this step and encode_photo, beyond which it refuses; no bound without
it); and, for references that the server chooses: library (its folder; else that of the environment
variable PIKFIX_LIBRARY), library_references (how many for a photo; else as
PIKFIX_LIBRARY_REFERENCES says), reference_cache (pictures kept).
Metric: pikfix_reference_cache_total, lookups by result, hit or miss.

A request that fails answers ``[decode_photo] code: message``; others of its batch go on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils
from PIL import Image

from pikfix.photos import (
    DEFAULT_BUCKET_SIDES,
    DEFAULT_MAX_PIXELS,
    Photo,
    PhotoError,
    bucket_shape,
    check_bucket_sides,
    decode_photo,
    pad_reflect,
    photo_luminance,
)
from pikfix.photos.domain import Content, find_content, photo_within
from pikfix.photos.in_flight import InFlight
from pikfix.photos.masks import decode_mask, filled
from pikfix.photos.memory import KeptMemory
from pikfix.photos.responses import respond
from pikfix.photos.rgb import photo_rgb
from pikfix.photos.steps import (
    DEFAULT_MAX_REFERENCES,
    DEFAULT_REFERENCE_SIDE,
    PhotoNotes,
    Reference,
    check_deadline,
    check_pages,
    check_translation,
    config_value,
    decode_references,
    grey_reference,
    join_references,
    keeps_color,
    matching_side,
    part_to_restore,
    read_options,
    reference_planes,
    reference_shape,
    take_notes,
)
from pikfix.protocol.options import Options

STEP = "decode_photo"
_BESIDE = ("reference", "mask", "options")
_BESIDE_NAMES = "reference, mask and options"
LIBRARY_VARIABLE = "PIKFIX_LIBRARY"
COUNT_VARIABLE = "PIKFIX_LIBRARY_REFERENCES"

Choose = Callable[[Photo, Options], tuple[list[Reference], str | None]]


class TritonPythonModel:
    """The step as the server's python backend runs it.

    Attributes:
        choose_references: photo and options -> references for it, or none and the reason; asked
            when a request brings none. None where the server has no library of references.
    """

    choose_references: Choose | None = None

    def initialize(self, args: dict[str, str]) -> None:
        """Read the configuration; a wrong value keeps the model from loading."""
        self._memory = KeptMemory()
        # Decoders leave Python's lock to others: references are read beside the photo.
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="references")
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self.max_pixels = config_value(parameters, "max_pixels", DEFAULT_MAX_PIXELS)
        # Without a limit of its own: no side is longer than all pixels in a row.
        self.max_side = config_value(parameters, "max_side", self.max_pixels)
        self.reference_side = config_value(parameters, "reference_side", DEFAULT_REFERENCE_SIDE)
        self.max_references = config_value(parameters, "max_references", DEFAULT_MAX_REFERENCES)
        self.max_in_flight = config_value(parameters, "max_in_flight", 0)
        self._in_flight = InFlight.of_this_server()
        self._said_unbounded = False
        if self.reference_side < 32:
            raise ValueError("parameter reference_side must be at least 32")
        default_sides = ",".join(map(str, DEFAULT_BUCKET_SIDES))
        sides = config_value(parameters, "bucket_sides", default_sides)
        self.bucket_sides = check_bucket_sides([int(side) for side in sides.split(",")])
        # This process decodes pictures only here, under max_pixels.
        Image.MAX_IMAGE_PIXELS = self.max_pixels
        library = config_value(parameters, "library", os.environ.get(LIBRARY_VARIABLE, ""))
        if library:
            self.choose_references = self._open_library(Path(library), parameters)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own."""
        responses = [respond(pb_utils, STEP, self._decode, request) for request in requests]
        self._memory.give_back()
        return responses

    def finalize(self) -> None:
        """Leave no file behind."""
        self._in_flight.remove()

    def _decode(self, request: Any) -> dict[str, npt.NDArray[Any]]:
        until = check_deadline(request.parameters())
        photos = _rows(request, "photo")
        if not photos or any(len(row) != 1 for row in photos):
            raise PhotoError("bad_tensor", "photo must have the shape [B, 1]: one file per photo")
        places = self._admit(len(photos), until)
        try:
            return self._decode_all(request, photos, places)
        except BaseException:
            self._in_flight.release(places)
            raise

    def _admit(self, photos: int, until: float | None) -> list[int]:
        """Take places; none, without a bound, where the file that holds them cannot be used."""
        if not self.max_in_flight:
            return []
        try:
            return self._in_flight.admit(photos, self.max_in_flight, until)
        except OSError as error:
            if not self._said_unbounded:
                self._said_unbounded = True
                pb_utils.Logger.log_warn(
                    f"[{STEP}] photos in flight are not bounded, as {self._in_flight.path} cannot"
                    f" be used: {error.strerror or error}; set TMPDIR to a folder of this user"
                )
            return []

    def _decode_all(
        self, request: Any, photos: list[list[bytes]], places: list[int]
    ) -> dict[str, npt.NDArray[Any]]:
        started = time.time()
        count = len(photos)
        wanted = set(request.requested_output_names())
        translated = "photo_rgb" in wanted
        given = {name: _rows(request, name) or [[]] * count for name in _BESIDE}
        if any(len(rows) != count for rows in given.values()):
            raise PhotoError("bad_tensor", f"{_BESIDE_NAMES} must have {count} rows as photo")
        parts, notes, marks = [], [], []
        colours: list[list[Reference]] = []
        for number in range(count):
            files = {name: rows[number] for name, rows in given.items()}
            try:
                part, chosen, note, mark = self._one(photos[number][0], files, translated)
            except PhotoError as error:
                if count == 1:
                    raise
                place = f"photo {number + 1} of {count}: "
                raise PhotoError(error.code, place + error.message) from error
            parts.append(part.pixels)
            notes.append(note)
            colours.append(chosen)
            marks.append(mark)
        outputs: dict[str, npt.NDArray[Any]] = {}
        if "photo_l" in wanted:
            outputs["photo_l"] = self._padded([photo_luminance(part) for part in parts])
        if translated:
            outputs["photo_rgb"] = self._padded([photo_rgb(part) for part in parts])
        if "marked_mask" in wanted:
            outputs["marked_mask"] = self._padded(marks)
        if "reference_lab" in wanted:
            outputs["reference_lab"] = self._references(parts, colours)
        now = time.time()
        timed = [
            dataclasses.replace(note, decode_seconds=now - started, decoded_at=now, place=place)
            for note, place in itertools.zip_longest(notes, places)
        ]
        written = [[note.to_json()] for note in timed]
        return {**outputs, "photo_info": np.array(written, dtype=object)}

    def _one(
        self, file: bytes, beside: Mapping[str, list[bytes]], translated: bool
    ) -> tuple[Photo, list[Reference], PhotoNotes, npt.NDArray[np.float32]]:
        """What the networks get of one photo, its references, its notes, and its mask."""
        options = read_options(beside["options"][0] if beside["options"] else b"")
        if translated:
            check_translation(options)
        given = self._beside.submit(
            decode_references,
            beside["reference"] if options.color and not translated else [],
            self.max_pixels,
            self.max_references,
            self.reference_side,
        )
        try:
            photo = decode_photo(file, self.max_pixels, max_side=self.max_side)
        finally:
            wait([given])  # nothing of a request that failed goes on
        check_pages(photo, options)
        references = given.result()
        content = Content() if options.force_photo else find_content(photo.pixels)
        mask = beside["mask"][0] if beside["mask"] else b""
        marked, filled_share = None, 0.0
        if mask and content.kind != "graphic":
            marked = decode_mask(mask, (photo.height, photo.width), self.max_pixels)
            if content.rectangle is not None:  # a border stays as it is, whatever is marked there
                inside = np.zeros_like(marked)
                inside[content.rectangle.slices] = 1
                marked *= inside
            if not translated:  # which paints what is marked by itself
                photo = dataclasses.replace(photo, pixels=filled(photo.pixels, marked))
                filled_share = float(photo_within(marked, content).mean())
        part = part_to_restore(photo, content)
        own = keeps_color(part, options)
        if content.kind == "graphic" or own:
            references = []
        rejection_reason: str | None = None
        wanted = options.color and content.kind == "photo" and not own and not translated
        if wanted and not references and self.choose_references is not None:
            references, rejection_reason = self.choose_references(part, options)
        library = self.choose_references is not None
        notes = take_notes(
            photo,
            options,
            references,
            library=library,
            rejection_reason=rejection_reason,
            content=content,
            translated=translated,
            filled_share=filled_share,
        )
        mark = np.zeros(part.pixels.shape[:2] if translated else (0, 0), np.float32)
        if marked is not None and translated:
            mark = np.ascontiguousarray(photo_within(marked, content))
        return part, references, notes, mark

    def _open_library(self, folder: Path, parameters: Mapping[str, Any]) -> Choose:
        """Open a library of references; only here is torch loaded."""
        import torch  # noqa: PLC0415 - a server without a library does not need it

        from pikfix.references.chooser import DEFAULT_CACHE, LibraryChooser  # noqa: PLC0415
        from pikfix.references.library import DEFAULT_COUNT  # noqa: PLC0415

        # Another photo's networks run beside this step.
        torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // 2)))
        hits = _counters(
            "pikfix_reference_cache_total",
            "Lookups of decoded references in the cache of decode_photo, by result",
            ("hit", "miss"),
        )
        given = os.environ.get(COUNT_VARIABLE)
        asked = {"library_references": {"string_value": given}} if given else {}
        choose = LibraryChooser(
            folder,
            count=config_value({**asked, **parameters}, "library_references", DEFAULT_COUNT),
            side=self.reference_side,
            cache=config_value(parameters, "reference_cache", DEFAULT_CACHE),
            on_lookup=lambda hit: hits["hit" if hit else "miss"].increment(1),
        )
        pb_utils.Logger.log_info(
            f"[{STEP}] references from {folder}: {len(choose.library)} pictures,"
            f" score {choose.library.threshold} needed"
        )

        def references(photo: Photo, options: Options) -> tuple[list[Reference], str | None]:
            chosen, rejection_reason = choose(photo.pixels, force=options.force_color)
            found = [
                Reference(
                    one.pixels, "library", one.match.name, round(one.match.score, 4), one.sha256
                )
                for one in chosen
            ]
            return found, rejection_reason

        return references

    def _reference_shape(
        self,
        sizes: list[tuple[int, int]],
        colours: list[list[Reference]],
        padded: tuple[int, int],
    ) -> tuple[int, int] | None:
        """One size for the whole request: aspect of its first reference, scale of its photos."""
        first = next((chosen[0] for chosen in colours if chosen), None)
        if first is None:
            return None
        side = max(matching_side(size, padded, self.reference_side) for size in sizes)
        return reference_shape(first.size, side)

    def _references(
        self, parts: list[npt.NDArray[Any]], colours: list[list[Reference]]
    ) -> npt.NDArray[Any]:
        coloured = [
            (part.shape[0], part.shape[1])
            for part, chosen in zip(parts, colours, strict=True)
            if chosen
        ]
        shape = self._reference_shape(coloured, colours, self._shape(parts))
        planes = [
            reference_planes(chosen, shape) if chosen and shape else grey_reference()
            for chosen in colours
        ]
        return join_references(planes, shape)

    def _shape(self, planes: list[npt.NDArray[Any]]) -> tuple[int, int]:
        """The bucket of photos [H, W, ...]."""
        height = max(plane.shape[0] for plane in planes)
        width = max(plane.shape[1] for plane in planes)
        return bucket_shape(height, width, self.bucket_sides)

    def _padded(self, planes: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Photos [H, W] or [C, H, W] as one batch [B, C, H, W] of their bucket."""
        stacked = [plane if plane.ndim == 3 else plane[None] for plane in planes]
        shape = self._shape([plane[0] for plane in stacked])
        padded = [pad_reflect(plane, shape) for plane in stacked]
        return padded[0][None] if len(padded) == 1 else np.stack(padded)


def _counters(name: str, description: str, results: tuple[str, ...]) -> dict[str, Any]:
    """Register a counter with the server for each result; instances share them."""
    family = pb_utils.MetricFamily(
        name=name, description=description, kind=pb_utils.MetricFamily.COUNTER
    )
    # A metric does not keep its family alive, and goes with it.
    counters = {result: family.Metric(labels={"result": result}) for result in results}
    return {**counters, "family": family}


def _rows(request: Any, name: str) -> list[list[bytes]] | None:
    """Read an input of bytes [B, N] as lists; None where it is absent."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    array = tensor.as_numpy()
    if array.ndim != 2:
        raise PhotoError("bad_tensor", f"{name} must have two dimensions, it has {array.ndim}")
    return [[bytes(item) for item in row] for row in array]
