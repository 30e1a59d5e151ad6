"""How well synthetic old photos are translated, beside what came in and the classical way."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from pikfix.evaluation.metrics import psnr, ssim
from pikfix.evaluation.pictures import centre_crop, split_lab
from pikfix.evaluation.protocol import Figures, Measured, Photo, Protocol
from pikfix.systems.damage.networks import hole
from pikfix.systems.damage.samples import DAMAGED_FROM
from pikfix.systems.latent.networks import Latent
from pikfix.training.degradation import DegradationConfig, degrade

_MEDIAN = 3  # side of the window
_RADIUS = 3.0  # of what inpainting looks at


class Translate(Protocol):
    """A photo is aged and damaged in colour, and translated back.

    The mask is the detector's, or where the checkpoint has none, that of the damage that was
    drawn. `median_inpainting` gets the same mask; it needs OpenCV (the extra faces), and is left
    out where that is not installed. `model_true_mask` has the drawn mask in any case, and
    `clean_input` is what becomes of a photo that is not damaged.
    """

    name = "translate"
    summary = "synthetic old photos in colour, translated"

    def measure(self, model: Latent, photo: Photo, rng: np.random.Generator) -> Measured:
        truth = centre_crop(photo.rgb)
        window = np.ascontiguousarray(truth.permute(1, 2, 0).numpy().astype(np.float32))
        damaged = degrade(window.clip(0, 1), rng, DegradationConfig())
        given = torch.from_numpy(damaged.image).permute(2, 0, 1)
        drawn = torch.from_numpy((damaged.mask >= DAMAGED_FROM).astype(np.float32))[None]
        mask = self._found(model, given, drawn)
        pictures = {
            "model": self._translated(model, given, mask),
            "model_true_mask": self._translated(model, given, drawn),
            "input": given,
            "median": _array(median(_levels(given))),
        }
        if importlib.util.find_spec("cv2") is not None:
            marked = hole(mask)[0].numpy() > 0
            pictures["median_inpainting"] = _array(inpainted(_levels(given), marked))
        figures = {name: self._judged(picture, truth) for name, picture in pictures.items()}
        figures["model"]["masked_share"] = float((mask > 0).float().mean())
        nothing = torch.zeros_like(drawn)
        sound = self._translated(model, truth, self._found(model, truth, nothing))
        figures["clean_input"] = self._judged(sound, truth)
        return Measured(figures, {**pictures, "truth": truth}, [])

    def _found(self, model: Latent, rgb: Tensor, otherwise: Tensor) -> Tensor:
        """The mask [1, H, W] of the detector; another one where there is none."""
        if model.damage is None:
            return otherwise
        luminance, _ = split_lab(rgb)
        mask: Tensor = model.damage(luminance[None].to(self.setting.device))[1]
        return mask[0].float().cpu()

    def _translated(self, model: Latent, rgb: Tensor, mask: Tensor) -> Tensor:
        device = self.setting.device
        restored: Tensor = model(rgb[None].to(device) * 2 - 1, mask[None].to(device))
        return (restored[0].float().cpu() / 2 + 0.5).clamp(0, 1)

    def _judged(self, picture: Tensor, truth: Tensor) -> Figures:
        figures = {"psnr": psnr(picture, truth), "ssim": ssim(picture, truth)}
        if self.setting.lpips is not None:
            figures["lpips"] = self.setting.lpips(picture, truth)
        return figures


def median(levels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The median of 3 x 3 in each channel of [H, W, 3]."""
    return np.asarray(Image.fromarray(levels).filter(ImageFilter.MedianFilter(_MEDIAN)))


def inpainted(levels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The median, with what is masked drawn anew from around it (Telea, 2004)."""
    import cv2  # noqa: PLC0415 - of an extra

    marked: Any = mask.astype(np.uint8)
    filled = cv2.inpaint(median(levels), marked, _RADIUS, cv2.INPAINT_TELEA)
    return np.asarray(filled, dtype=np.uint8)


def _levels(rgb: Tensor) -> npt.NDArray[np.uint8]:
    levels = (rgb.permute(1, 2, 0) * 255).round().clamp(0, 255)
    return levels.byte().numpy()


def _array(levels: npt.NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(levels.astype(np.float32) / 255).permute(2, 0, 1)
