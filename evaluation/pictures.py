"""The protocols' pictures: crops of a fixed size, luminance and colour, sibling references."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pikfix.evaluation.errors import EvaluationError
from pikfix.evaluation.siblings import (
    SiblingRange,
    jitter_colors,
    random_affine,
    random_jitter,
)
from pikfix.layers.color import AB_SCALE, lab_to_rgb, rgb_to_lab
from pikfix.photos import PhotoError, decode_photo, read_picture_file, search

CROP = 256
"""Side of the square that every figure is measured on."""


SIBLINGS = SiblingRange(
    rotation=12, shear=5, scale=0.1, shift=0.08, hue=6, saturation=0.1, contrast=0.15
)
"""A hue that differs from the truth's would cap the score of a perfect transfer, so that the jitter
of the evaluation is milder than that of training."""


def find_pictures(folder: Path, tell: Callable[[str], None] | None = None) -> list[Path]:
    """Picture files in a folder and its subfolders, sorted by path; see `pikfix.photos.search`.

    Args:
        folder: to search.
        tell: called with a line on what else the folder holds.

    Raises:
        EvaluationError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise EvaluationError(f"{folder} is not a folder: give a folder of photos")
    found = search.find_pictures(folder)
    if not found.pictures:
        what = "; ".join(found.notes())
        raise EvaluationError(
            f"no photos in {folder}{f' ({what})' if what else ''}: expected files such as .jpg or "
            ".png"
        )
    if tell is not None:
        for line in found.notes():
            tell(line)
    return sorted(found.pictures)


def load_resized(path: Path) -> Tensor:
    """Read a photo as RGB [3, H, W] in [0, 1], upright, its short side resized to 256.

    Raises:
        EvaluationError: the file cannot be read as a picture.
    """
    try:
        pixels = decode_photo(read_picture_file(path)).pixels
    except PhotoError as error:
        raise EvaluationError(f"cannot read {path}: {error.message}") from error
    except OSError as error:
        reason = error.strerror or error
        raise EvaluationError(f"cannot read {path} as a picture: {reason}") from error
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    photo = Image.fromarray(pixels).convert("RGB")
    factor = CROP / min(photo.size)
    size = (max(CROP, round(photo.width * factor)), max(CROP, round(photo.height * factor)))
    if photo.size != size:
        photo = photo.resize(size, Image.Resampling.BICUBIC)
    unit = np.asarray(photo, dtype=np.float32) / np.float32(255)
    return torch.from_numpy(unit).permute(2, 0, 1).contiguous()


def centre_crop(photo: Tensor) -> Tensor:
    """Cut the centre [3, 256, 256] out of a resized photo."""
    top, left = (photo.shape[-2] - CROP) // 2, (photo.shape[-1] - CROP) // 2
    return photo[..., top : top + CROP, left : left + CROP].contiguous()


def split_lab(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance [1, H, W] and ab [2, H, W] of RGB [3, H, W], in the networks' ranges."""
    lab = rgb_to_lab(rgb)
    return lab[:1], lab[1:]


def compose(luminance: Tensor, ab: Tensor) -> Tensor:
    """RGB [3, H, W] of a luminance [1, H, W] and ab [2, h, w], which is resized bilinearly."""
    if ab.shape[-2:] != luminance.shape[-2:]:
        size = (luminance.shape[-2], luminance.shape[-1])
        ab = F.interpolate(ab[None], size, mode="bilinear", align_corners=False)[0]
    return lab_to_rgb(torch.cat((luminance, ab.clamp(-1, 1))))


def sibling(
    photo: Tensor,
    rng: np.random.Generator,
    limits: SiblingRange = SIBLINGS,
    crop: tuple[float, float] = (0.75, 1.0),
) -> Tensor:
    """Another crop of a resized photo, under an affine map and color jitter, [3, 256, 256].

    crop: range of its side, relative to the photo's short side.
    """
    height, width = photo.shape[-2:]
    side = round(min(height, width) * rng.uniform(*crop))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    window = photo[None, :, top : top + side, left : left + side]
    affine = torch.from_numpy(random_affine(1.0, rng, limits))[None]
    grid = F.affine_grid(affine, [1, 3, CROP, CROP], align_corners=False)
    moved = F.grid_sample(window, grid, padding_mode="reflection", align_corners=False)
    jitter = torch.from_numpy(random_jitter(1.0, rng, limits))[:, None]
    return lab_to_rgb(jitter_colors(rgb_to_lab(moved.clamp(0, 1)), *jitter))[0]


def stack_references(pictures: Sequence[Tensor]) -> Tensor:
    """Lab of R reference pictures [3, H, W] as the networks take them, [1, R, 3, H, W]."""
    return rgb_to_lab(torch.stack(list(pictures)))[None]


def mean_chroma(rgb: Tensor) -> float:
    """Mean chroma of an RGB picture in Lab units; a grey one has less than about 3."""
    return float(torch.linalg.vector_norm(rgb_to_lab(rgb)[1:], dim=0).mean() * AB_SCALE)
