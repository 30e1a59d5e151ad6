"""The report of an evaluation: a table, a JSON file, a contact sheet."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.table import Table
from torch import Tensor

from pikfix.evaluation.evaluator import Evaluation
from pikfix.photos import write_atomically

TITLES = {
    "input": "input",
    "mask": "what was filled",
    "smooth": "smooth filling",
    "grey": "grey photo",
    "histogram_match": "histogram match",
    "model_one_reference": "model, 1 reference",
    "model": "model",
    "clean_input": "model on a clean photo",
    "truth": "truth",
}
_METRICS = {
    "before": ("before (dB)", ".2f"),
    "psnr": ("PSNR (dB)", ".2f"),
    "gain": ("gain (dB)", "+.2f"),
    "best_gain": ("best curve and filter", "+.2f"),
    "ssim": ("SSIM", ".4f"),
    "colourfulness": ("colourfulness", ".1f"),
    "ciede2000": ("CIEDE2000", ".2f"),
    "lpips": ("LPIPS", ".3f"),
    "auc": ("ROC area", ".4f"),
    "recall": ("recall at 1 %", ".3f"),
    "masked_share": ("share filled", ".5f"),
}
_COLUMNS = ("input", "mask", "grey", "reference", "histogram_match", "model", "truth")
_CELL, _GAP, _HEADER, _CAPTION = 192, 6, 18, 14


def table(evaluation: Evaluation) -> Table:
    """Figures of every system, one row each, the model last but for the truth."""
    plural = "photo" if len(evaluation.photos) == 1 else "photos"
    title = f"{evaluation.protocol}: {len(evaluation.photos)} {plural}"
    if evaluation.references > 1:
        title += f", {evaluation.references} references"
    result = Table(title=title)
    result.add_column("")
    metrics = [m for m in _METRICS if any(m in means for means in evaluation.means.values())]
    for metric in metrics:
        result.add_column(_METRICS[metric][0], justify="right")
    others = {name: name.replace("_", " ") for name in evaluation.means if name not in TITLES}
    for system, name in (TITLES | others).items():
        means = evaluation.means.get(system)
        if means is None:
            continue
        cells = [format(means[m], _METRICS[m][1]) if m in means else "" for m in metrics]
        result.add_row(name, *cells, style="bold" if system == "model" else None)
    return result


def write_json(evaluation: Evaluation, path: Path) -> None:
    """Write the results as one JSON object; the file appears whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(evaluation.to_dict(), indent=2) + "\n").encode())


def write_sheet(evaluation: Evaluation, path: Path) -> None:
    """Write the kept pictures as a PNG: a row per photo, a column per system, PSNR under each.

    Raises:
        ValueError: no pictures were kept (`sheet_rows` of `evaluate`).
        OSError: the folder cannot be written.
    """
    if not any(evaluation.pictures):
        raise ValueError("no pictures were kept: evaluate with sheet_rows above 0")
    columns = [name for name in _COLUMNS if name in evaluation.pictures[0]]
    if "clean_input" in evaluation.pictures[0]:
        columns.append("clean_input")
    row_height = _CELL + _CAPTION + _GAP
    width = _GAP + len(columns) * (_CELL + _GAP)
    height = _HEADER + len(evaluation.pictures) * row_height + _GAP
    sheet = Image.new("RGB", (width, height), (32, 32, 32))
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(columns):
        left = _GAP + column * (_CELL + _GAP)
        draw.text((left, 4), TITLES.get(name, name), fill="white")
        for row, pictures in enumerate(evaluation.pictures):
            top = _HEADER + row * row_height
            sheet.paste(to_image(pictures[name]).resize((_CELL, _CELL)), (left, top))
            figures = evaluation.photos[row].get(name, {})
            if "psnr" in figures:
                caption = f"{figures['psnr']:.2f} dB"
                draw.text((left, top + _CELL + 1), caption, fill=(200, 200, 200))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.getvalue())


def to_image(picture: Tensor) -> Image.Image:
    """8-bit picture of RGB [3, H, W] in [0, 1], without any stretching of its tones."""
    pixels = np.rint(picture.clamp(0, 1).permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    return Image.fromarray(pixels)
