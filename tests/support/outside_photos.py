"""Pictures that hold more than a photo, or none: borders, text, drawings, made in code."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "1234", "lazy", "dogs"]


def photo(height: int = 240, width: int = 300) -> Any:
    """A grey photo [H, W] uint8."""
    image = Image.fromarray(data.camera()).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image)


def bordered(
    inside: Any, margins: tuple[int, int, int, int], tone: float = 247, noise: float = 0.0
) -> Any:
    """A photo with margins (top, left, bottom, right) of a tone."""
    top, left, bottom, right = margins
    height, width = inside.shape[:2]
    rng = np.random.default_rng(0)
    shape = (height + top + bottom, width + left + right, *inside.shape[2:])
    paper = np.full(shape, float(tone)) + rng.normal(0, noise, shape)
    out = np.clip(np.rint(paper), 0, 255).astype(np.uint8)
    out[top : top + height, left : left + width] = inside
    return out


def text_page(
    width: int = 300,
    height: int = 220,
    size: int = 10,
    *,
    paper: int = 250,
    ink: int = 20,
    turned: float = 0.0,
    noise: float = 0.0,
) -> Any:
    """A page of text, [H, W] uint8."""
    image = Image.new("L", (width, height), paper)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size)
    line = " ".join(WORDS)
    for number, y in enumerate(range(size, height - size, round(1.6 * size))):
        draw.text((size, y), f"Line {number}: {line}", font=font, fill=ink)
    turned_image = image.rotate(turned, Image.Resampling.BICUBIC, fillcolor=paper)
    values = np.asarray(turned_image) + np.random.default_rng(0).normal(0, noise, (height, width))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def drawing(width: int = 240, height: int = 200, *, paper: int = 255, ink: int = 0) -> Any:
    """Lines and circles, [H, W] uint8."""
    image = Image.new("L", (width, height), paper)
    draw = ImageDraw.Draw(image)
    for x in range(0, width, 12):
        draw.line([width - x, 0, x, height], fill=ink)
    draw.ellipse([width // 4, height // 5, 3 * width // 4, 4 * height // 5], outline=ink, width=2)
    return np.asarray(image)
