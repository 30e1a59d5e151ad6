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


def filled_drawing(
    width: int = 600,
    height: int = 450,
    *,
    tones: tuple[int, ...] = (255, 200, 150, 90),
    seed: int = 0,
    shapes: int = 14,
) -> Any:
    """Outlined shapes filled with flat greys, as in a comic, [H, W] uint8."""
    rng = np.random.default_rng(seed)
    fine = 3  # drawn larger, so that the outlines are smooth
    image = Image.new("L", (width * fine, height * fine), tones[0])
    draw = ImageDraw.Draw(image)
    for number in range(shapes):
        x, y = rng.uniform(0, width * fine), rng.uniform(0, height * fine)
        spread = rng.uniform(0.05, 0.3, (5, 2)) * height * fine
        signs = np.array([[-1, -1], [1, -1], [1.2, 0.3], [0.4, 1], [-1, 0.8]])
        corners = [(x + dx, y + dy) for dx, dy in spread * signs]
        tone = tones[1 + number % (len(tones) - 1)]
        if number % 2:
            draw.polygon(corners, fill=tone, outline=0, width=2 * fine)
        else:
            box = [x - spread[0, 0], y - spread[0, 1], x + spread[1, 0], y + spread[1, 1]]
            draw.ellipse(box, fill=tone, outline=0, width=2 * fine)
    return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))


def turned_scan(
    inside: Any, degrees: float, margin: int = 60, tone: int = 247
) -> tuple[Any, list[tuple[float, float]]]:
    """A photo turned in its border, and its corners (x, y), the upper left one first, clockwise.

    Turned at three times its size, so that its edges are sharp to a pixel.
    """
    height, width = inside.shape[:2]
    fine = 3
    size = ((width + 2 * margin) * fine, (height + 2 * margin) * fine)
    photo_image = Image.fromarray(inside)
    large = Image.new(photo_image.mode, size, tone if inside.ndim == 2 else (tone,) * 3)
    place = (width * fine, height * fine)
    large.paste(photo_image.resize(place, Image.Resampling.BICUBIC), (margin * fine, margin * fine))
    fill = tone if inside.ndim == 2 else (tone,) * 3
    large = large.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=fill)
    scan = large.resize((size[0] // fine, size[1] // fine), Image.Resampling.BOX)
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    offsets = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [width / 2, height / 2]
    corners = offsets @ turn.T + [width / 2 + margin, height / 2 + margin]
    return np.asarray(scan), [(float(x), float(y)) for x, y in corners]
