"""Last step of every system: the networks' tensors to picture files and reports.

Inputs, with a batch dimension B, of which a system sends its own:
    restored_l          FP32 [B, 1, H, W]   L/50 - 1 of the padded photo
    restored_rgb        FP32 [B, 3, H, W]   or, in its stead, sRGB, (x - 0.5) / 0.5
    damage_mask         FP32 [B, 1, H, W], optional: above 0 where damage was filled, for the report
    ab                  FP32 [B, 2, h, w]   with restored_l: a/110, b/110 at the working size
    confidence_1..4     FP32 [B, 1, h_i, w_i], optional: highest correlations, for the report
    reference_share     FP32 [B, R], optional   each reference's share of the matches
    photo_info          BYTES [B, 1]        what decode_photo noted
Outputs:
    result  BYTES [B, 1]   encoded pictures of the photos' own sizes
    report  BYTES [B, 1]   JSON objects
Where the repository holds a generator of faces (`draw_faces`), those of restored_rgb are drawn anew
by it: this step has the whole photo, without padding, and writes what was done into the report.

The report names the networks by the manifest that export writes into the repository. What was done
to a photo is entered into its XMP packet, see pikfix.photos.provenance.

A request that fails answers ``[encode_photo] code: message``; others of its batch go on.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import time
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from pikfix.photos import (
    ChromaPlanes,
    PhotoError,
    compose,
    crop,
    encode_photo,
    photo_luminance,
    provenance,
)
from pikfix.photos.attach import holds_xmp
from pikfix.photos.in_flight import InFlight
from pikfix.photos.kept import OwnChroma, unit_or_levels
from pikfix.photos.memory import KeptMemory
from pikfix.photos.profiles import grey_in_profile, in_profile
from pikfix.photos.responses import respond
from pikfix.photos.rgb import photo_rgb, rgb_levels
from pikfix.photos.steps import PhotoNotes, check_deadline
from pikfix.protocol.names import ANSWERS, DEFAULT_SYSTEM
from pikfix.protocol.report import ReferenceUse, Report, ResultInfo, StepSeconds
from pikfix.systems.latent.faces.served import ServedFaces

STEP = "encode_photo"
CONFIDENCES = tuple(f"confidence_{level}" for level in range(1, 5))

_CHANNELS = {"restored_l": 1, "restored_rgb": 3}

Model: TypeAlias = tuple[str, str | None]
"""Version and SHA-256 of the networks that answered."""
_UNKNOWN: Model = ("unknown", None)


class TritonPythonModel:
    """The step as the server's python backend runs it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read which networks the repository holds."""
        self._memory = KeptMemory()
        self._in_flight = InFlight.of_this_server()
        repository = Path(args["model_repository"]).parent
        self.models = _models(repository)
        self._faces = ServedFaces.of(repository, pb_utils)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request on its own."""
        responses = [respond(pb_utils, STEP, self._encode, request) for request in requests]
        self._memory.give_back()
        return responses

    def _encode(self, request: Any) -> dict[str, npt.NDArray[Any]]:
        arrived = time.time()
        info = pb_utils.get_input_tensor_by_name(request, "photo_info")
        rows = [] if info is None else info.as_numpy().ravel().tolist()
        notes = [PhotoNotes.from_json(bytes(row)) for row in rows]
        try:
            check_deadline(request.parameters())
            return self._encode_all(request, notes, arrived)
        finally:
            self._in_flight.release([one.place for one in notes if one.place is not None])

    def _encode_all(
        self, request: Any, noted: list[PhotoNotes], arrived: float
    ) -> dict[str, npt.NDArray[Any]]:
        # The contract of each system names one tensor that its networks answer with.
        system = next(
            (
                name
                for name, tensor in ANSWERS.items()
                if pb_utils.get_input_tensor_by_name(request, tensor) is not None
            ),
            DEFAULT_SYSTEM,
        )
        answer = ANSWERS[system]
        restored = _tensor(request, answer, channels=_CHANNELS[answer])
        # Colours come with it, or as chroma beside it.
        ab = None if restored.shape[1] == 3 else _tensor(request, "ab", channels=2)
        confidences = [
            _tensor(request, name, channels=1)
            for name in CONFIDENCES
            if pb_utils.get_input_tensor_by_name(request, name) is not None
        ]
        mask = None
        if pb_utils.get_input_tensor_by_name(request, "damage_mask") is not None:
            mask = _tensor(request, "damage_mask", channels=1)
        share = pb_utils.get_input_tensor_by_name(request, "reference_share")
        shares = None if share is None else share.as_numpy()
        parts = [restored, *confidences, *(p for p in (ab, mask, shares) if p is not None)]
        if any(len(part) != len(noted) for part in parts):
            raise PhotoError(
                "bad_tensor",
                f"{answer}, damage_mask, ab, confidence_i, reference_share and photo_info must"
                f" agree in batch size, got {[*map(len, parts), len(noted)]}",
            )
        results, reports = [], []
        for number, notes in enumerate(noted):
            networks = max(arrived - notes.decoded_at, 0.0)
            started = time.time()
            maps = [confidence[number, 0] for confidence in confidences]
            confidence, faces = None, None
            if ab is None:
                pixels, faces = self._translated(restored[number], notes)
            else:
                light = restored[number, 0]
                pixels, confidence = self._colorized(light, ab[number], maps, notes)
            result, report = _file(pixels, notes, confidence, self.models.get(system, _UNKNOWN))
            references, damaged = report.references, None
            if shares is not None:
                references = _with_shares(references, shares[number])
            if mask is not None and (notes.kept is None or notes.kept.place is not None):
                found = _damaged_share(mask[number, 0], notes.size)
                damaged = round(min(1.0, found + notes.filled_share), 4)
            seconds = StepSeconds(
                round(notes.decode_seconds, 4), round(networks, 4), round(time.time() - started, 4)
            )
            report = dataclasses.replace(
                report,
                references=references,
                damaged_share=damaged,
                seconds=seconds,
                system=system,
                faces=faces,
            )
            results.append(result)
            reports.append(report.to_json())
        return {
            "result": np.array([[result] for result in results], dtype=object),
            "report": np.array([[report] for report in reports], dtype=object),
        }

    def _colorized(
        self,
        padded_l: npt.NDArray[Any],
        ab: npt.NDArray[Any],
        maps: list[npt.NDArray[Any]],
        notes: PhotoNotes,
    ) -> tuple[npt.NDArray[Any], float | None]:
        """The result of luminance and chroma, and the confidence of the latter."""
        padded = _padded_size(padded_l, notes)
        kept = notes.kept
        if kept is not None and kept.place is None:
            return kept.pixels(deep=notes.deep), None
        light = crop(padded_l, notes.size)
        original = None if notes.original is None else unit_or_levels(notes.original)
        if original is not None and notes.strength < 1:
            before = photo_luminance(original)
            light = before + np.float32(notes.strength) * (light - before)
        confidence = None
        if notes.keep_color and original is not None:
            own = OwnChroma(original, notes.color_strength)
            pixels = in_profile(
                notes.icc, lambda deep: compose(light, own.rows, deep=deep), deep=notes.deep
            )
        elif notes.colorize:
            chroma = ChromaPlanes(ab * np.float32(notes.color_strength), padded, notes.size)
            pixels = in_profile(
                notes.icc, lambda deep: compose(light, chroma.rows, deep=deep), deep=notes.deep
            )
            confidence = _mean_confidence(maps, padded, notes.size)
        else:
            pixels = grey_in_profile(notes.icc, light, deep=notes.deep)
        return pixels if kept is None else kept.around(pixels), confidence

    def _translated(
        self, padded_rgb: npt.NDArray[Any], notes: PhotoNotes
    ) -> tuple[npt.NDArray[Any], int]:
        """The result of colours, those of a photo in colour or the luminance of a grey one.

        And how many of its faces were drawn.
        """
        _padded_size(padded_rgb, notes)
        kept = notes.kept
        if kept is not None and kept.place is None:
            return kept.pixels(deep=notes.deep), 0
        rgb, faces = crop(padded_rgb, notes.size), 0
        if self._faces is not None and notes.faces:
            rgb, faces = self._faces.drawn(rgb)
        original = None if notes.original is None else unit_or_levels(notes.original)
        if original is not None and notes.strength < 1:
            before = photo_rgb(original)
            rgb = before + np.float32(notes.strength) * (rgb - before)
        if notes.keep_color:
            pixels = in_profile(notes.icc, lambda deep: rgb_levels(rgb, deep=deep), deep=notes.deep)
        else:
            light = photo_luminance(rgb_levels(rgb, deep=True).astype(np.float32) / 65535)
            pixels = grey_in_profile(notes.icc, light, deep=notes.deep)
        return (pixels if kept is None else kept.around(pixels)), faces


def _padded_size(padded: npt.NDArray[Any], notes: PhotoNotes) -> tuple[int, int]:
    """The size of a padded photo [..., H, W], which must hold the one that the notes are about."""
    height, width = notes.size
    if not (1 <= height <= padded.shape[-2] and 1 <= width <= padded.shape[-1]):
        raise PhotoError(
            "bad_tensor",
            f"the networks' photo is {padded.shape[-1]} x {padded.shape[-2]}, the photo {width} x "
            f"{height}: send what belongs to this photo_info",
        )
    return padded.shape[-2], padded.shape[-1]


def _file(
    pixels: npt.NDArray[Any], notes: PhotoNotes, confidence: float | None, model: Model
) -> tuple[bytes, Report]:
    changed = notes.kept is None or notes.kept.place is not None
    xmp, unread = _marked(notes, model) if changed else (notes.xmp, [])
    result, warnings = encode_photo(
        pixels,
        notes.format,
        quality=notes.quality,
        exif=notes.exif,
        dpi=notes.dpi,
        xmp=xmp,
        iptc=notes.iptc,
        texts=notes.texts,
        icc=notes.icc,
    )
    return result, Report(
        photo=notes.photo,
        result=ResultInfo(pixels.shape[1], pixels.shape[0], notes.format),
        references=tuple(notes.references),
        colorized=notes.colorize,
        kept_colors=notes.keep_color,
        mean_confidence=confidence,
        seconds=StepSeconds(0, 0, 0),
        model_version=model[0],
        model_sha256=model[1],
        digital_source_type=provenance.source_type_of(xmp),
        warnings=(*notes.warnings, *unread, *warnings),
    )


def _marked(notes: PhotoNotes, model: Model) -> tuple[bytes, list[str]]:
    """The XMP packet with what was done, and warnings of what was lost for it."""
    change = provenance.change_of(
        colorized=notes.colorize,
        model=model[0],
        day=datetime.datetime.now(datetime.timezone.utc).date(),
    )
    xmp, warnings = provenance.marked(notes.xmp, change)
    if not holds_xmp(notes.format, xmp):
        # What a machine did has to be said also where there is no room for the rest.
        xmp, _ = provenance.marked(b"", change)
        warnings.append("the XMP packet is too long for JPEG and was dropped")
    return xmp, warnings


def _models(repository: Path) -> dict[str, Model]:
    """Of each system in a repository, a name such as "compact-1f0c5e7a", and the whole SHA-256."""
    try:
        manifest = json.loads((repository / "manifest.json").read_text())
        found = {}
        for one in (manifest, *manifest.get("others", {}).values()):
            checkpoint = one["checkpoint"]
            name = f"{checkpoint['preset']}-{checkpoint['sha256'][:8]}"
            found[checkpoint.get("system", DEFAULT_SYSTEM)] = (name, checkpoint["sha256"])
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _with_shares(
    references: tuple[ReferenceUse, ...], shares: npt.NDArray[Any]
) -> tuple[ReferenceUse, ...]:
    """Note each reference's share; a set that was repeated to fill the tensor is added up."""
    if not references or shares.ndim != 1 or len(shares) % len(references):
        return references
    totals = shares.reshape(-1, len(references)).sum(axis=0)
    return tuple(
        dataclasses.replace(reference, share=round(min(max(float(total), 0.0), 1.0), 4))
        for reference, total in zip(references, totals, strict=True)
    )


def _mean_confidence(
    maps: list[npt.NDArray[Any]], padded: tuple[int, int], size: tuple[int, int]
) -> float | None:
    """Mean over the levels of the mean over the photo, its padding left out."""
    if not maps:
        return None
    means = []
    for level in maps:
        rows = math.ceil(level.shape[0] * size[0] / padded[0])
        columns = math.ceil(level.shape[1] * size[1] / padded[1])
        means.append(float(crop(level, (rows, columns)).mean()))
    return round(sum(means) / len(means), 4)


def _damaged_share(mask: npt.NDArray[Any], size: tuple[int, int]) -> float:
    """Share of the photo that was filled, its padding left out."""
    return round(float((crop(mask, size) > 0).mean()), 4)


def _tensor(request: Any, name: str, channels: int) -> npt.NDArray[Any]:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        raise PhotoError("bad_tensor", f"{name} is missing: send it")
    array: npt.NDArray[Any] = tensor.as_numpy()
    if array.ndim != 4 or array.shape[1] != channels or 0 in array.shape:
        raise PhotoError(
            "bad_tensor",
            f"{name} must have the shape [B, {channels}, H, W], it has {list(array.shape)}",
        )
    # The minimum and maximum are NaN or infinite where any value is, without a copy of the mask.
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise PhotoError(
            "bad_tensor",
            f"{name} holds NaN or infinite values: check the networks' checkpoint and precision",
        )
    return array.astype(np.float32, copy=False)
