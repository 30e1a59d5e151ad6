"""Last step of pikfix_photo: the networks' tensors to picture files and reports.

Inputs, with a batch dimension B:
    restored_l          FP32 [B, 1, H, W]   L/50 - 1 of the padded photo
    damage_mask         FP32 [B, 1, H, W], optional: above 0 where damage was filled, for the report
    ab                  FP32 [B, 2, h, w]   a/110, b/110 at the working size
    confidence_1..4     FP32 [B, 1, h_i, w_i], optional: highest correlations, for the report
    reference_share     FP32 [B, R], optional   each reference's share of the matches
    photo_info          BYTES [B, 1]        what decode_photo noted
Outputs:
    result  BYTES [B, 1]   encoded pictures of the photos' own sizes
    report  BYTES [B, 1]   JSON objects
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
from typing import Any

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
from pikfix.photos.steps import PhotoNotes, check_deadline
from pikfix.protocol.report import ReferenceUse, Report, ResultInfo, StepSeconds

STEP = "encode_photo"
CONFIDENCES = tuple(f"confidence_{level}" for level in range(1, 5))


class TritonPythonModel:
    """The step as the server's python backend runs it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read which networks the repository holds."""
        self._memory = KeptMemory()
        self._in_flight = InFlight.of_this_server()
        self.model_version, self.model_sha256 = _model(Path(args["model_repository"]).parent)

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
        restored_l = _tensor(request, "restored_l", channels=1)
        ab = _tensor(request, "ab", channels=2)
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
        parts = [restored_l, ab, *confidences, *(p for p in (mask, shares) if p is not None)]
        if any(len(part) != len(noted) for part in parts):
            raise PhotoError(
                "bad_tensor",
                "restored_l, damage_mask, ab, confidence_i, reference_share and photo_info must"
                f" agree in batch size, got {[*map(len, parts), len(noted)]}",
            )
        results, reports = [], []
        for number, notes in enumerate(noted):
            networks = max(arrived - notes.decoded_at, 0.0)
            started = time.time()
            maps = [confidence[number, 0] for confidence in confidences]
            result, report = self._one(restored_l[number, 0], ab[number], maps, notes)
            references, damaged = report.references, None
            if shares is not None:
                references = _with_shares(references, shares[number])
            if mask is not None and (notes.kept is None or notes.kept.place is not None):
                damaged = _damaged_share(mask[number, 0], notes.size)
            seconds = StepSeconds(
                round(notes.decode_seconds, 4), round(networks, 4), round(time.time() - started, 4)
            )
            report = dataclasses.replace(
                report, references=references, damaged_share=damaged, seconds=seconds
            )
            results.append(result)
            reports.append(report.to_json())
        return {
            "result": np.array([[result] for result in results], dtype=object),
            "report": np.array([[report] for report in reports], dtype=object),
        }

    def _one(
        self,
        padded_l: npt.NDArray[Any],
        ab: npt.NDArray[Any],
        maps: list[npt.NDArray[Any]],
        notes: PhotoNotes,
    ) -> tuple[bytes, Report]:
        height, width = notes.size
        padded = (padded_l.shape[0], padded_l.shape[1])
        if not (1 <= height <= padded[0] and 1 <= width <= padded[1]):
            raise PhotoError(
                "bad_tensor",
                f"restored_l is {padded[1]} x {padded[0]}, the photo {width} x {height}:"
                " send the restored_l that belongs to this photo_info",
            )
        kept = notes.kept
        if kept is not None and kept.place is None:
            pixels = kept.pixels(deep=notes.deep)
            return self._file(pixels, notes, None, changed=False)
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
        return self._file(pixels if kept is None else kept.around(pixels), notes, confidence)

    def _file(
        self,
        pixels: npt.NDArray[Any],
        notes: PhotoNotes,
        confidence: float | None,
        *,
        changed: bool = True,
    ) -> tuple[bytes, Report]:
        xmp, unread = self._marked(notes) if changed else (notes.xmp, [])
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
            model_version=self.model_version,
            model_sha256=self.model_sha256,
            digital_source_type=provenance.source_type_of(xmp),
            warnings=(*notes.warnings, *unread, *warnings),
        )

    def _marked(self, notes: PhotoNotes) -> tuple[bytes, list[str]]:
        """The XMP packet with what was done, and warnings of what was lost for it."""
        change = provenance.change_of(
            colorized=notes.colorize,
            model=self.model_version,
            day=datetime.datetime.now(datetime.timezone.utc).date(),
        )
        xmp, warnings = provenance.marked(notes.xmp, change)
        if not holds_xmp(notes.format, xmp):
            # What a machine did has to be said also where there is no room for the rest.
            xmp, _ = provenance.marked(b"", change)
            warnings.append("the XMP packet is too long for JPEG and was dropped")
        return xmp, warnings


def _model(repository: Path) -> tuple[str, str | None]:
    """A name for the exported checkpoint, such as "compact-1f0c5e7a", and its SHA-256."""
    try:
        checkpoint = json.loads((repository / "manifest.json").read_text())["checkpoint"]
        return f"{checkpoint['preset']}-{checkpoint['sha256'][:8]}", checkpoint["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown", None


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
