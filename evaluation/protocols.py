"""The four protocols: colorize, sibling, restore, full, each beside its baselines.

One photo at a time, each with a random generator of its own made from the seed and the photo's
name, so that a figure depends neither on the other photos nor on their order.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pikfix.evaluation import baselines
from pikfix.evaluation.choosers import ReferenceChooser
from pikfix.evaluation.errors import EvaluationError
from pikfix.evaluation.metrics import (
    Metric,
    colourfulness,
    find_lpips,
    mean_ciede2000,
    psnr,
    ssim,
)
from pikfix.evaluation.pictures import (
    centre_crop,
    compose,
    load_resized,
    sibling,
    split_lab,
    stack_references,
)
from pikfix.networks import to_working
from pikfix.references.library import DEFAULT_COUNT

ProtocolName = Literal["colorize", "sibling", "restore", "full"]
PROTOCOLS: tuple[str, ...] = get_args(ProtocolName)
DEFAULT_REFERENCES = DEFAULT_COUNT
"""References given at once in `colorize` and `full`; `colorize` also reports one alone."""

Figures = dict[str, float]
Degrade = Callable[[npt.NDArray[np.float32], np.random.Generator], npt.NDArray[np.float32]]
"""Damages a luminance [H, W] in [0, 1] (L/100) and returns one of the same kind."""


class Colorizer(Protocol):
    """What of `pikfix.networks.PikFix` the protocols call; shapes and ranges as there."""

    @property
    def restoration(self) -> Callable[[Tensor], Tensor]:
        """photo_l [B, 1, H, W] -> restored_l."""
        ...

    @property
    def similarity(
        self,
    ) -> Callable[[Tensor, Tensor], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """working_l, reference_lab [B, R, 3, H, W] -> warped, confidence."""
        ...

    @property
    def colorization(
        self,
    ) -> Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]:
        """working_l, warped, confidence -> ab [B, 2, h, w]."""
        ...


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
        """What `--json` writes; a system that the protocol does not have is None."""
        systems = {name: self.means.get(name) for name in ("model", *_BESIDE)}
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


_BESIDE = ("grey", "histogram_match", "input")


def evaluate(
    model: Colorizer,
    photos: Iterable[Path],
    protocol: str,
    *,
    choose: ReferenceChooser | None = None,
    degrade: Degrade | None = None,
    references: int = DEFAULT_REFERENCES,
    seed: int = 0,
    checkpoint: str = "",
    device: str | torch.device = "cpu",
    sheet_rows: int = 0,
) -> Evaluation:
    """Run one protocol over photos.

    Args:
        model: in evaluation mode, on `device`.
        photos: picture files; each is cropped to the centre 256 x 256 of its short side's 256.
        protocol: "colorize", "sibling", "restore" or "full".
        choose: finds references; needed by colorize and full.
        degrade: damages a luminance; needed by restore and full.
        references: how many references the model gets at once in colorize and full.
        seed: of degradations and siblings.
        checkpoint: the model's name in the report.
        device: where the model is.
        sheet_rows: keep the pictures of the first so many photos.

    Raises:
        ValueError: an unknown protocol, or a chooser or degradation is missing.
        EvaluationError: none of the photos can be evaluated.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: one of {', '.join(PROTOCOLS)}")
    if protocol in ("colorize", "full") and choose is None:
        raise ValueError(f"protocol {protocol} needs references: give a chooser")
    if protocol in ("restore", "full") and degrade is None:
        raise ValueError(f"protocol {protocol} needs damaged photos: give a degradation")
    if references < 1:
        raise ValueError(f"references is {references}: at least 1")
    run = _Run(model, choose, degrade, references, torch.device(device), find_lpips())
    judge = {
        "colorize": run.colorize,
        "sibling": run.sibling,
        "restore": run.restore,
        "full": run.full,
    }[protocol]
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    pictures: list[dict[str, Tensor]] = []
    for path in photos:
        rng = np.random.default_rng([seed, zlib.crc32(path.name.encode())])
        try:
            with torch.inference_mode():
                figures, named, shown = judge(load_resized(path), path, rng)
        except EvaluationError as error:
            skipped.append({"photo": path.name, "reason": str(error)})
        else:
            rows.append({"photo": path.name, "references": named, **figures})
            if len(pictures) < sheet_rows:
                pictures.append(shown)
    if not rows:
        reason = skipped[0]["reason"] if skipped else "there are none"
        raise EvaluationError(f"no photo could be evaluated: {reason}")
    return Evaluation(
        protocol=protocol,
        checkpoint=checkpoint,
        seed=seed,
        references={"sibling": 1, "restore": 0}.get(protocol, references),
        means=_means(rows),
        photos=rows,
        skipped=skipped,
        pictures=pictures,
    )


_Judged = tuple[dict[str, Figures], list[str], dict[str, Tensor]]


@dataclass(frozen=True)
class _Run:
    model: Colorizer
    choose: ReferenceChooser | None
    damage: Degrade | None
    references: int
    device: torch.device
    lpips: Metric | None

    def colorize(self, photo: Tensor, path: Path, rng: np.random.Generator) -> _Judged:
        truth = centre_crop(photo)
        luminance, _ = split_lab(truth)
        chosen = self._choose(luminance, path)
        pictures = [centre_crop(load_resized(p)) for p in chosen]
        results = {
            "model": self._colour(luminance, pictures),
            "model_one_reference": self._colour(luminance, pictures[:1]),
            "grey": baselines.grey(luminance),
            "histogram_match": baselines.histogram_match(luminance, pictures[0]),
        }
        names = [p.name for p in chosen]
        return self._judge(results, truth), names, self._shown(results, truth, pictures[0])

    def sibling(self, photo: Tensor, path: Path, rng: np.random.Generator) -> _Judged:
        truth = centre_crop(photo)
        luminance, _ = split_lab(truth)
        reference = sibling(photo, rng)
        results = {
            "model": self._colour(luminance, [reference]),
            "grey": baselines.grey(luminance),
            "histogram_match": baselines.histogram_match(luminance, reference),
        }
        return self._judge(results, truth), [path.name], self._shown(results, truth, reference)

    def restore(self, photo: Tensor, path: Path, rng: np.random.Generator) -> _Judged:
        clean, _ = split_lab(centre_crop(photo))
        damaged = self._degrade(clean, rng)
        results = {
            "model": self._restore(damaged),
            "input": damaged,
            "clean_input": self._restore(clean),
        }
        truth = (clean + 1) / 2
        figures = {}
        for name, luminance in results.items():
            light = ((luminance + 1) / 2).clamp(0, 1)
            figures[name] = {"psnr": psnr(light, truth), "ssim": ssim(light, truth)}
        shown = {name: baselines.grey(luminance) for name, luminance in results.items()}
        return figures, [], {**shown, "truth": baselines.grey(clean)}

    def full(self, photo: Tensor, path: Path, rng: np.random.Generator) -> _Judged:
        truth = centre_crop(photo)
        damaged = self._degrade(split_lab(truth)[0], rng)
        chosen = self._choose(damaged, path)
        pictures = [centre_crop(load_resized(p)) for p in chosen]
        restored = self._restore(damaged)
        # The baselines colour the restored luminance: what is measured is the colour alone.
        results = {
            "model": self._colour(restored, pictures),
            "grey": baselines.grey(restored),
            "histogram_match": baselines.histogram_match(restored, pictures[0]),
            "input": baselines.grey(damaged),
        }
        names = [p.name for p in chosen]
        return self._judge(results, truth), names, self._shown(results, truth, pictures[0])

    def _choose(self, luminance: Tensor, path: Path) -> list[Path]:
        if self.choose is None:  # refused by evaluate
            raise ValueError("no chooser")
        ranked = self.choose(luminance[None], path)
        chosen = [p for p in ranked if p.resolve() != path.resolve()][: self.references]
        if not chosen:
            raise EvaluationError(f"no reference for {path.name}: no other colour photo to take")
        return chosen

    def _degrade(self, luminance: Tensor, rng: np.random.Generator) -> Tensor:
        if self.damage is None:  # refused by evaluate
            raise ValueError("no degradation")
        light = ((luminance[0] + 1) / 2).clamp(0, 1).numpy()
        damaged = self.damage(light, rng)
        if damaged.shape != light.shape:
            raise ValueError(f"the degradation turned {light.shape} into {damaged.shape}")
        return torch.from_numpy(np.ascontiguousarray(damaged, dtype=np.float32))[None] * 2 - 1

    def _restore(self, luminance: Tensor) -> Tensor:
        restored = self.model.restoration(luminance[None].to(self.device))
        return restored[0].float().cpu().clamp(-1, 1)

    def _colour(self, luminance: Tensor, pictures: list[Tensor]) -> Tensor:
        working = to_working(luminance[None]).to(self.device)
        references = stack_references(pictures).to(self.device)
        warped, confidence = self.model.similarity(working, references)
        ab = self.model.colorization(working, warped, confidence)
        return compose(luminance, ab[0].float().cpu())

    def _judge(self, results: dict[str, Tensor], truth: Tensor) -> dict[str, Figures]:
        figures: dict[str, Figures] = {}
        for name, picture in results.items():
            figures[name] = {
                "psnr": psnr(picture, truth),
                "ssim": ssim(picture, truth),
                "colourfulness": colourfulness(picture),
                "ciede2000": mean_ciede2000(picture, truth),
            }
            if self.lpips is not None:
                figures[name]["lpips"] = self.lpips(picture, truth)
        figures["truth"] = {"colourfulness": colourfulness(truth)}
        return figures

    def _shown(
        self, results: dict[str, Tensor], truth: Tensor, reference: Tensor
    ) -> dict[str, Tensor]:
        return {**results, "reference": reference, "truth": truth}


def _means(rows: list[dict[str, Any]]) -> dict[str, Figures]:
    systems = [name for name, value in rows[0].items() if isinstance(value, dict)]
    return {
        name: {
            metric: float(np.mean([row[name][metric] for row in rows])) for metric in rows[0][name]
        }
        for name in systems
    }
