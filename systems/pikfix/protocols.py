"""The protocols of Pik-Fix: colorize, sibling, restore, full, kinds, each beside its baselines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol as Structural

import numpy as np
import torch
from torch import Tensor

from pikfix.evaluation import baselines
from pikfix.evaluation.errors import EvaluationError
from pikfix.evaluation.metrics import colorfulness, mean_ciede2000, psnr, ssim
from pikfix.evaluation.pictures import (
    centre_crop,
    compose,
    load_resized,
    sibling,
    split_lab,
    stack_references,
)
from pikfix.evaluation.protocol import Figures, Measured, Photo, Protocol, by_name
from pikfix.systems.pikfix.networks import to_working
from pikfix.training.degradation import STRUCTURED, UNSTRUCTURED, DegradationConfig, degrade


class Colorizer(Structural):
    """The part of `PikFix` that the protocols call; shapes and ranges as there."""

    def restored(self, photo_l: Tensor) -> Tensor:
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


class PikFixProtocol(Protocol):
    """Parts of `Colorizer` run on one photo, and its pictures judged."""

    def restored(self, model: Colorizer, luminance: Tensor) -> Tensor:
        """A luminance [1, H, W] restored."""
        restored = model.restored(luminance[None].to(self.setting.device))
        return restored[0].float().cpu().clamp(-1, 1)

    def colorized(self, model: Colorizer, luminance: Tensor, pictures: list[Tensor]) -> Tensor:
        """RGB [3, H, W] of a luminance [1, H, W], colored after pictures [3, H_r, W_r]."""
        working = to_working(luminance[None]).to(self.setting.device)
        references = stack_references(pictures).to(self.setting.device)
        warped, confidence = model.similarity(working, references)
        ab = model.colorization(working, warped, confidence)
        return compose(luminance, ab[0].float().cpu())

    def chosen(self, luminance: Tensor, path: Path) -> list[Path]:
        """Files of the best references for a luminance, but for the photo's own."""
        assert self.setting.choose is not None
        ranked = self.setting.choose(luminance[None], path)
        found = [p for p in ranked if p.resolve() != path.resolve()][: self.references]
        if not found:
            raise EvaluationError(f"no reference for {path.name}: no other colour photo to take")
        return found

    def damaged(self, luminance: Tensor, rng: np.random.Generator) -> Tensor:
        """A luminance [1, H, W] with damage."""
        assert self.setting.degrade is not None
        light = ((luminance[0] + 1) / 2).clamp(0, 1).numpy()
        damaged = self.setting.degrade(light, rng)
        if damaged.shape != light.shape:
            raise ValueError(f"the degradation turned {light.shape} into {damaged.shape}")
        return torch.from_numpy(np.ascontiguousarray(damaged, dtype=np.float32))[None] * 2 - 1

    def judged(
        self, results: dict[str, Tensor], truth: Tensor, reference: Tensor, names: list[str]
    ) -> Measured:
        """Judge RGB pictures beside the truth."""
        figures: dict[str, Figures] = {}
        for name, picture in results.items():
            figures[name] = {
                "psnr": psnr(picture, truth),
                "ssim": ssim(picture, truth),
                "colourfulness": colorfulness(picture),
                "ciede2000": mean_ciede2000(picture, truth),
            }
            if self.setting.lpips is not None:
                figures[name]["lpips"] = self.setting.lpips(picture, truth)
        figures["truth"] = {"colourfulness": colorfulness(truth)}
        return Measured(figures, {**results, "reference": reference, "truth": truth}, names)


class Colorize(PikFixProtocol):
    """The color of a clean photo by automatic references, all at once and the best alone."""

    name = "colorize"
    summary = "clean photo, automatic references"
    chooses = True

    def measure(self, model: Colorizer, photo: Photo, rng: np.random.Generator) -> Measured:
        truth = centre_crop(photo.rgb)
        luminance, _ = split_lab(truth)
        chosen = self.chosen(luminance, photo.path)
        pictures = [centre_crop(load_resized(p)) for p in chosen]
        results = {
            "model": self.colorized(model, luminance, pictures),
            "model_one_reference": self.colorized(model, luminance, pictures[:1]),
            "grey": baselines.grey(luminance),
            "histogram_match": baselines.histogram_match(luminance, pictures[0]),
        }
        return self.judged(results, truth, pictures[0], [p.name for p in chosen])


class Sibling(PikFixProtocol):
    """The color of a clean photo by a reference that shows the same."""

    name = "sibling"
    summary = "the reference is another crop of the photo"
    references = 1

    def measure(self, model: Colorizer, photo: Photo, rng: np.random.Generator) -> Measured:
        truth = centre_crop(photo.rgb)
        luminance, _ = split_lab(truth)
        reference = sibling(photo.rgb, rng)
        results = {
            "model": self.colorized(model, luminance, [reference]),
            "grey": baselines.grey(luminance),
            "histogram_match": baselines.histogram_match(luminance, reference),
        }
        return self.judged(results, truth, reference, [photo.path.name])


class Restore(PikFixProtocol):
    """The luminance of a damaged photo, and what becomes of a clean one."""

    name = "restore"
    summary = "damaged luminance"
    damages = True

    def measure(self, model: Colorizer, photo: Photo, rng: np.random.Generator) -> Measured:
        clean, _ = split_lab(centre_crop(photo.rgb))
        damaged = self.damaged(clean, rng)
        results = {
            "model": self.restored(model, damaged),
            "input": damaged,
            "clean_input": self.restored(model, clean),
        }
        truth = (clean + 1) / 2
        figures = {}
        for name, luminance in results.items():
            light = ((luminance + 1) / 2).clamp(0, 1)
            figures[name] = {"psnr": psnr(light, truth), "ssim": ssim(light, truth)}
        results["truth"] = clean
        return Measured(figures, {name: baselines.grey(x) for name, x in results.items()}, [])


class Full(PikFixProtocol):
    """A damaged photo restored, and colored by automatic references."""

    name = "full"
    summary = "damaged photo, automatic references"
    chooses = damages = True

    def measure(self, model: Colorizer, photo: Photo, rng: np.random.Generator) -> Measured:
        truth = centre_crop(photo.rgb)
        damaged = self.damaged(split_lab(truth)[0], rng)
        chosen = self.chosen(damaged, photo.path)
        pictures = [centre_crop(load_resized(p)) for p in chosen]
        restored = self.restored(model, damaged)
        # The baselines colour the restored luminance: what is measured is the colour alone.
        results = {
            "model": self.colorized(model, restored, pictures),
            "grey": baselines.grey(restored),
            "histogram_match": baselines.histogram_match(restored, pictures[0]),
            "input": baselines.grey(damaged),
        }
        return self.judged(results, truth, pictures[0], [p.name for p in chosen])


class Kinds(PikFixProtocol):
    """Every kind of damage alone, each certain to occur, and a clean photo: do no harm.

    A mean over a mixture does not show what becomes of a photo that has a few scratches only.
    """

    name = "kinds"
    summary = "every kind of damage alone"
    shows = False

    def measure(self, model: Colorizer, photo: Photo, rng: np.random.Generator) -> Measured:
        clean, _ = split_lab(centre_crop(photo.rgb))
        light = ((clean[0] + 1) / 2).clamp(0, 1).numpy()
        truth = torch.from_numpy(light)[None]
        figures = {}
        for kind, config in KINDS.items():
            # Each kind draws from a generator of its own: a change of one leaves the others alone.
            own = np.random.default_rng(rng.integers(1 << 62))
            damaged = degrade(light, own, config).image
            restored = self.restored(model, torch.from_numpy(damaged)[None] * 2 - 1)
            after = psnr(((restored + 1) / 2).clamp(0, 1), truth)
            if config.strength == 0:  # what a picture scores against itself is a convention
                figures[kind] = {"psnr": after}
                continue
            before = psnr(torch.from_numpy(damaged)[None], truth)
            best = psnr(torch.from_numpy(baselines.best_fit(damaged, light))[None], truth)
            figures[kind] = {
                "psnr": after,
                "before": before,
                "gain": after - before,
                "best_gain": best - before,
            }
        return Measured(figures, {}, [])


def _kinds() -> dict[str, DegradationConfig]:
    alone = {
        name: DegradationConfig(unstructured=(name,), always=(name,), structured={})
        for name in UNSTRUCTURED
        if name != "toning"  # changes colours alone; luminance has none
    }
    defects = {
        name: DegradationConfig(unstructured=(), structured={name: 1.0}) for name in STRUCTURED
    }
    return {"none": DegradationConfig(strength=0), **alone, **defects}


KINDS = _kinds()
"""Damage by name: none, and each kind alone in its whole range."""

PROTOCOLS = by_name((Colorize, Sibling, Restore, Full, Kinds))
