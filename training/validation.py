"""Quick figures and a picture grid during training; `pikfix evaluate` has the full protocols."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pikfix.networks import PikFix, lab_to_rgb
from pikfix.training.augment import Inputs, prepare
from pikfix.training.dataset import (
    NEAR,
    SIBLING,
    Batch,
    generator,
    lightness,
    random_affine,
    random_crop,
    random_jitter,
)
from pikfix.training.degradation import DegradationConfig, degrade
from pikfix.training.neighbours import Table
from pikfix.training.photo_store import PhotoStore, Pixels

_GRID_ROWS = 8
_SEED = 20_220_104  # of crops, jitter and degradation: the same at every validation


class Figures(NamedTuple):
    """Means over the validation photos, and a picture of the first ones.

    measures: by the names of `logs.MEASURES`: psnr of RGB with the nearest references, with one,
        with a sibling, and of the grey photo; psnr_ab of a/110 and b/110 (peak 2); colorfulness;
        of luminance: restored_psnr and degraded_psnr, and clean_psnr of a clean photo restored.
    grid: `[H, W, 3]`; a row per photo: degraded, restored, nearest reference, colorized after it,
        sibling reference, colorized after it, truth.
    """

    measures: dict[str, float]
    grid: npt.NDArray[np.uint8]


class Validator:
    """Measures a network on photos it is not trained on.

    Args:
        store: validation photos.
        pool: photos that references come from.
        table: `[N, K]`, for every validation photo the nearest of the pool.
        references: how many of them are used at once.
        side: of the centre crops, a multiple of 32, at most the store's side.
        strength: of the degradation.
        autocast: gives the context the network runs in.
        device: it runs on.
    """

    def __init__(
        self,
        *,
        store: PhotoStore,
        pool: PhotoStore,
        table: Table,
        references: int,
        side: int,
        strength: float,
        autocast: Callable[[], AbstractContextManager[None]],
        device: torch.device,
    ) -> None:
        self.store = store
        self.pool = pool
        self.table = table
        self.references = references
        self.side = side
        self.strength = strength
        self.autocast = autocast
        self.device = device

    @torch.inference_mode()
    def measure(self, net: PikFix, restores: bool, colors: bool) -> Figures:
        """Run `net`, in evaluation mode, over all photos.

        restores, colors: which halves are worth measuring.
        """
        rows: list[dict[str, float]] = []
        pictures: list[Tensor] = []
        for index in range(len(self.store)):
            row, tiles = self._photo(net, index, restores, colors)
            rows.append(row)
            if index < _GRID_ROWS:
                pictures.append(torch.cat(tiles, dim=-1))
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        grid = torch.cat(pictures, dim=-2)[0].permute(1, 2, 0)
        return Figures(means, (grid * 255).round().byte().cpu().numpy())

    def _photo(
        self, net: PikFix, index: int, restores: bool, colors: bool
    ) -> tuple[dict[str, float], list[Tensor]]:
        nearest, sibling = (self._inputs(index, kind) for kind in (NEAR, SIBLING))
        clean_l, truth = nearest.truth_lab[:, :1], nearest.truth_rgb
        grey = lab_to_rgb(torch.cat((clean_l, torch.zeros_like(nearest.truth_lab[:, 1:])), dim=1))
        row: dict[str, float] = {}
        tiles = [_gray_rgb(nearest.photo_l)]
        if restores:
            restored = self._restore(net, nearest.photo_l)
            row["restored_psnr"] = psnr(restored, clean_l, peak=2)
            row["degraded_psnr"] = psnr(nearest.photo_l, clean_l, peak=2)
            row["clean_psnr"] = psnr(self._restore(net, clean_l), clean_l, peak=2)
            tiles.append(_gray_rgb(restored))
        if colors:
            row["psnr_grey"] = psnr(grey, truth)
            row["colorfulness_truth"] = colorfulness(truth)
            for name, references in (
                ("psnr", nearest.reference_lab),
                ("psnr_one_reference", nearest.reference_lab[:, :1]),
                ("psnr_sibling", sibling.reference_lab),
            ):
                ab = self._color(net, clean_l, references)
                rgb = lab_to_rgb(torch.cat((clean_l, ab), dim=1))
                row[name] = psnr(rgb, truth)
                if name == "psnr":
                    row["psnr_ab"] = psnr(ab, nearest.truth_lab[:, 1:], peak=2)
                    row["colorfulness"] = colorfulness(rgb)
                if name != "psnr_one_reference":
                    tiles += [lab_to_rgb(references[:, 0]), rgb]
        return row, [*tiles, truth]

    def _restore(self, net: PikFix, photo_l: Tensor) -> Tensor:
        with self.autocast():
            restored: Tensor = net.restoration(photo_l)
        return restored.float().clamp(-1, 1)

    def _color(self, net: PikFix, clean_l: Tensor, references: Tensor) -> Tensor:
        with self.autocast():
            warped, confidence = net.similarity(clean_l, references)
            ab: Tensor = net.colorization(clean_l, warped, confidence)
        return ab.float()

    def _inputs(self, index: int, kind: int) -> Inputs:
        rng = generator(_SEED, index, kind)
        truth = center_crop(self.store[index], self.side)
        old = lightness(truth)
        old = degrade(old, rng, DegradationConfig(strength=self.strength)).image
        if kind == SIBLING:
            crops = [random_crop(self.store[index], self.side, rng)]
            affine, jitter = random_affine(1.0, rng), random_jitter(1.0, rng)
        else:
            indices = self.table[index, : self.references]
            crops = [center_crop(self.pool[int(i)], self.side) for i in indices]
            affine, jitter = random_affine(0.0, rng), random_jitter(0.0, rng)
        count = len(crops)
        batch: Batch = {
            "truth": _tensor(truth)[None],
            "degraded": torch.from_numpy(np.rint(old * 255).astype(np.uint8))[None, None],
            "is_degraded": torch.tensor([True]),
            "references": torch.stack([_tensor(crop) for crop in crops])[None],
            "kinds": torch.full((1, count), kind, dtype=torch.uint8),
            "affine": torch.from_numpy(affine).repeat(1, count, 1, 1),
            "jitter": torch.from_numpy(jitter).repeat(1, count, 1),
            "hue": torch.zeros(1),
        }
        return prepare({name: tensor.to(self.device) for name, tensor in batch.items()})


def save_grid(path: Path, figures: Figures) -> None:
    """Write the picture grid, JPEG by its suffix.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(figures.grid).save(path, quality=90)


def center_crop(photo: Pixels, side: int) -> Pixels:
    """The largest centred square, resized to `side`."""
    height, width = photo.shape[:2]
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    image = Image.fromarray(photo[top : top + short, left : left + short])
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def psnr(ours: Tensor, truth: Tensor, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, at most 100."""
    error = float((ours.float() - truth.float()).square().mean())
    return float(10 * np.log10(peak**2 / max(error, 1e-10 * peak**2)))


def colorfulness(rgb: Tensor) -> float:
    """Hasler and Süsstrunk's measure of `[1, 3, H, W]` in [0, 1], on the scale of 0 to 255."""
    red, green, blue = (rgb[0].float() * 255).flatten(1)
    rg, yb = red - green, (red + green) / 2 - blue
    deviation = torch.sqrt(rg.var(correction=0) + yb.var(correction=0))
    return float(deviation + 0.3 * torch.sqrt(rg.mean() ** 2 + yb.mean() ** 2))


def _gray_rgb(luminance: Tensor) -> Tensor:
    return lab_to_rgb(torch.cat((luminance, torch.zeros_like(luminance).repeat(1, 2, 1, 1)), 1))


def _tensor(image: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
