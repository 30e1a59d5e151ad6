"""Runs a protocol over photos.

One photo at a time, each with a random generator of its own made from the seed and the photo's
name, so that a figure depends neither on the other photos nor on their order.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pikfix.evaluation.choosers import ReferenceChooser
from pikfix.evaluation.errors import EvaluationError
from pikfix.evaluation.metrics import find_lpips
from pikfix.evaluation.pictures import load_resized
from pikfix.evaluation.protocol import Degrade, Figures, Photo, Protocol, Setting
from pikfix.references.library import DEFAULT_COUNT


@dataclass(frozen=True)
class Evaluation:
    """Results of one protocol.

    means: figures by system ("model", "grey", "histogram_match", "input", ...), means over photos.
    photos: one row per photo: "photo", "references", and each system's figures.
    skipped: photos that could not be evaluated, with the reason.
    pictures: for the contact sheet, RGB [3, 256, 256] by system, the first photos only.
    """

    protocol: str
    checkpoint: str
    seed: int
    references: int
    means: Mapping[str, Figures]
    photos: list[dict[str, Any]]
    skipped: list[dict[str, str]]
    pictures: list[dict[str, Tensor]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` writes; a system that the protocol does not have is None."""
        systems = {name: self.means.get(name) for name in _SYSTEMS}
        extra = {name: means for name, means in self.means.items() if name not in systems}
        return {
            "protocol": self.protocol,
            "count": len(self.photos),
            "checkpoint": self.checkpoint,
            **systems,
            **extra,
            "seed": self.seed,
            "references": self.references,
            "skipped": self.skipped,
            "photos": self.photos,
        }


_SYSTEMS = ("model", "grey", "histogram_match", "input")


def evaluate(
    model: Any,
    photos: Iterable[Path],
    protocol: type[Protocol],
    *,
    choose: ReferenceChooser | None = None,
    degrade: Degrade | None = None,
    references: int = DEFAULT_COUNT,
    seed: int = 0,
    checkpoint: str = "",
    device: str | torch.device = "cpu",
    sheet_rows: int = 0,
) -> Evaluation:
    """Run one protocol over photos.

    Args:
        model: in evaluation mode, on `device`.
        photos: picture files; each is cropped to the centre 256 x 256 of its short side's 256.
        protocol: what is measured.
        choose: finds references.
        degrade: damages a luminance.
        references: how many automatic references the model gets at once.
        seed: of degradations and siblings.
        checkpoint: the model's name in the report.
        device: where the model is.
        sheet_rows: keep the pictures of the first so many photos.

    Raises:
        ValueError: a chooser or degradation that the protocol needs is missing.
        EvaluationError: none of the photos can be evaluated.
    """
    measured = protocol(Setting(choose, degrade, references, device, find_lpips()))
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    pictures: list[dict[str, Tensor]] = []
    for path in photos:
        rng = np.random.default_rng([seed, zlib.crc32(path.name.encode())])
        try:
            with torch.inference_mode():
                found = measured.measure(model, Photo(path, load_resized(path)), rng)
        except EvaluationError as error:
            skipped.append({"photo": path.name, "reason": str(error)})
        else:
            rows.append({"photo": path.name, "references": found.references, **found.figures})
            if len(pictures) < sheet_rows:
                pictures.append(found.pictures)
    if not rows:
        reason = skipped[0]["reason"] if skipped else "there are none"
        raise EvaluationError(f"no photo could be evaluated: {reason}")
    return Evaluation(
        protocol=protocol.name,
        checkpoint=checkpoint,
        seed=seed,
        references=measured.references,
        means=_means(rows),
        photos=rows,
        skipped=skipped,
        pictures=pictures,
    )


def _means(rows: list[dict[str, Any]]) -> dict[str, Figures]:
    systems = [name for name, value in rows[0].items() if isinstance(value, dict)]
    return {
        name: {
            metric: float(np.mean([row[name][metric] for row in rows])) for metric in rows[0][name]
        }
        for name in systems
    }
