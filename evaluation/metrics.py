"""Metrics on pictures in [0, 1]: PSNR, SSIM, colorfulness, CIEDE2000, LPIPS.

Tensors are [C, H, W]; every function returns a float for one picture, so that a report can give
each photo's figures and their mean.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    structural_similarity_index_measure,
)

from pikfix.evaluation.parity import decibels
from pikfix.layers.color import AB_SCALE, rgb_to_lab

PSNR_CAP = 100.0
"""Equal pictures score this, not infinity: a mean stays finite and JSON can hold it."""

_LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"

Metric = Callable[[Tensor, Tensor], float]


def psnr(picture: Tensor, truth: Tensor, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB of [C, H, W], at most `PSNR_CAP`.

    peak: the width of the range of values.
    """
    _check_pair(picture, truth)
    mse = float(torch.mean((picture.double() - truth.double()) ** 2))
    return min(PSNR_CAP, decibels(mse, peak))


def ssim(picture: Tensor, truth: Tensor) -> float:
    """Structural similarity of [C, H, W] in [0, 1]: 11 x 11 Gaussian window, sigma 1.5.

    Mean over channels and pixels (Wang et al. 2004; constants 0.01 and 0.03).
    """
    _check_pair(picture, truth)
    value = structural_similarity_index_measure(
        picture[None].float(), truth[None].float(), data_range=1.0, sigma=1.5, kernel_size=11
    )
    if not isinstance(value, Tensor):  # a pair only where a full map was asked for
        raise TypeError("SSIM returned a map")
    return float(value)


def colorfulness(picture: Tensor) -> float:
    """Hasler and Suesstrunk's M3 (2003) of an RGB picture [3, H, W] in [0, 1].

    On the published scale of 0 to 255: 0 is grey, about 45 averagely colourful, 109 extremely.
    """
    red, green, blue = (picture.double() * 255).unbind(0)
    rg, yb = red - green, (red + green) / 2 - blue
    spread = torch.sqrt(rg.var(correction=0) + yb.var(correction=0))
    return float(spread + 0.3 * torch.sqrt(rg.mean() ** 2 + yb.mean() ** 2))


def mean_ciede2000(picture: Tensor, truth: Tensor) -> float:
    """Mean CIEDE2000 colour difference of two RGB pictures [3, H, W] in [0, 1]."""
    _check_pair(picture, truth)
    return float(ciede2000(_lab(picture), _lab(truth)).mean())


def _lab(rgb: Tensor) -> npt.NDArray[np.float64]:
    scaled = rgb_to_lab(rgb.double()).permute(1, 2, 0).numpy()
    return np.stack(
        [(scaled[..., 0] + 1) * 50, scaled[..., 1] * AB_SCALE, scaled[..., 2] * AB_SCALE], axis=-1
    )


def ciede2000(
    lab1: npt.NDArray[np.float64], lab2: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """CIEDE2000 difference of CIELAB colours [..., 3] in their own units (L 0 to 100).

    After Sharma, Wu and Dalal, "The CIEDE2000 Color-Difference Formula", 2005, with all weights
    1. Angles are in radians.
    """
    l1, a1, b1 = np.moveaxis(np.asarray(lab1, dtype=np.float64), -1, 0)
    l2, a2, b2 = np.moveaxis(np.asarray(lab2, dtype=np.float64), -1, 0)
    mean_chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean_chroma**7 / (mean_chroma**7 + 25.0**7))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.arctan2(b1, a1) % (2 * np.pi), np.arctan2(b2, a2) % (2 * np.pi)

    grey = c1 * c2 == 0  # a grey has no hue
    turn = h2 - h1
    turn = np.where(turn > np.pi, turn - 2 * np.pi, np.where(turn < -np.pi, turn + 2 * np.pi, turn))
    delta_l, delta_c = l2 - l1, c2 - c1
    delta_h = np.where(grey, 0.0, 2 * np.sqrt(c1 * c2) * np.sin(turn / 2))

    mean_l, mean_c, sum_h = (l1 + l2) / 2, (c1 + c2) / 2, h1 + h2
    apart = np.abs(h1 - h2) > np.pi
    wrapped = np.where(sum_h < 2 * np.pi, sum_h + 2 * np.pi, sum_h - 2 * np.pi)
    mean_h = np.where(grey, sum_h, np.where(apart, wrapped, sum_h) / 2)

    t = (
        1
        - 0.17 * np.cos(mean_h - np.radians(30))
        + 0.24 * np.cos(2 * mean_h)
        + 0.32 * np.cos(3 * mean_h + np.radians(6))
        - 0.20 * np.cos(4 * mean_h - np.radians(63))
    )
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2)
    s_c = 1 + 0.045 * mean_c
    s_h = 1 + 0.015 * mean_c * t
    angle = np.radians(60) * np.exp(-(((np.degrees(mean_h) - 275) / 25) ** 2))
    r_t = -2 * np.sqrt(mean_c**7 / (mean_c**7 + 25.0**7)) * np.sin(angle)
    l_term, c_term, h_term = delta_l / s_l, delta_c / s_c, delta_h / s_h
    squared = l_term**2 + c_term**2 + h_term**2 + r_t * c_term * h_term
    return np.asarray(np.sqrt(np.maximum(squared, 0.0)))


def find_lpips() -> Metric | None:
    """LPIPS with AlexNet (Zhang et al., 2018), or None where its weights are not on this machine.

    Nothing is downloaded: torchvision has to be installed and its AlexNet in torch's hub folder
    (`python -c "import torchvision; torchvision.models.alexnet(weights='DEFAULT')"` puts it there).
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_BACKBONE
    if importlib.util.find_spec("torchvision") is None or not weights.is_file():
        return None

    def lpips(picture: Tensor, truth: Tensor) -> float:
        _check_pair(picture, truth)
        value = learned_perceptual_image_patch_similarity(
            picture[None].float().clamp(0, 1), truth[None].float(), net_type="alex", normalize=True
        )
        return float(value)

    return lpips


def _check_pair(picture: Tensor, truth: Tensor) -> None:
    if picture.shape != truth.shape or picture.ndim != 3:
        raise ValueError(
            "a metric takes two pictures [C, H, W] of one size, "
            f"got {list(picture.shape)} and {list(truth.shape)}"
        )
