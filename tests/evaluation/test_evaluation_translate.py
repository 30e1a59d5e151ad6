"""The protocol translate: what is compared with what, on photos whose damage is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pikfix.cli.main import main
from pikfix.evaluation.evaluator import evaluate
from pikfix.systems.checkpoint import save_checkpoint
from pikfix.systems.damage.networks import DamageConfig
from pikfix.systems.latent.networks import Latent, LatentConfig
from pikfix.systems.latent.protocols import Translate, inpainted, median

TINY = LatentConfig(
    name="tiny",
    damage=DamageConfig(detector_channels=(4, 4)),
    vae_channels=4,
    vae_blocks=1,
    mapping_channels=8,
    attention_channels=4,
    context_blocks=1,
    trunk_blocks=1,
)


class Unchanged:
    """Gives a photo back, and notes how much of it was masked."""

    damage = None

    def __init__(self) -> None:
        self.masked: list[float] = []

    def __call__(self, photo_rgb: Tensor, damage_mask: Tensor) -> Tensor:
        assert photo_rgb.min() < -0.5
        self.masked.append(float((damage_mask > 0).float().mean()))
        return photo_rgb


def files(photos: Path) -> list[Path]:
    return sorted(photos.iterdir())


def test_a_model_that_changes_nothing_has_the_inputs_figures(photos: Path) -> None:
    model = Unchanged()
    found = evaluate(model, files(photos), Translate)
    means = found.means
    for metric, value in means["input"].items():
        assert means["model"][metric] == pytest.approx(value, abs=1e-5)
        assert means["model_true_mask"][metric] == pytest.approx(value, abs=1e-5)
    assert 8 < means["input"]["psnr"] < 30
    assert means["clean_input"]["psnr"] == pytest.approx(100, abs=1)
    assert means["median"]["psnr"] != means["input"]["psnr"]
    # Without a detector the mask is the drawn one, and a photo that is not damaged has none.
    by_photo = np.array(model.masked).reshape(-1, 3)
    assert np.array_equal(by_photo[:, 0], by_photo[:, 1])
    assert by_photo[:, 0].any()
    assert not by_photo[:, 2].any()
    assert means["model"]["masked_share"] == pytest.approx(by_photo[:, 0].mean(), abs=1e-6)
    assert evaluate(Unchanged(), files(photos), Translate).means == means


def test_the_median_takes_specks_away() -> None:
    levels = np.full((9, 9, 3), 90, np.uint8)
    levels[4, 4] = 255
    assert (median(levels) == 90).all()


def test_inpainting_draws_what_is_masked_from_around_it() -> None:
    pytest.importorskip("cv2")
    columns = np.broadcast_to(np.arange(40, dtype=np.uint8) * 5, (40, 40))
    levels = np.repeat(columns[..., None], 3, axis=2).copy()
    mask = np.zeros((40, 40), bool)
    mask[15:22, 15:22] = True
    levels[mask] = 255
    filled = inpainted(levels, mask).astype(int)
    assert np.abs(filled - median(levels))[~mask].max() == 0
    assert np.abs(filled[mask] - np.repeat(columns[..., None], 3, axis=2)[mask]).max() < 25


def test_the_command_measures_a_checkpoint(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    path, figures = tmp_path / "tiny.safetensors", tmp_path / "figures.json"
    save_checkpoint(Latent(TINY), path, system="latent")
    words = ["evaluate", str(path), "--photos", str(photos), "--protocol", "translate"]
    words += ["--limit", "2", "--json", str(figures), "--sheet", str(tmp_path / "sheet.png")]
    assert main(words) == 0
    written: dict[str, Any] = json.loads(figures.read_text())
    assert written["protocol"] == "translate"
    assert written["count"] == 2
    assert 0 <= written["model"]["masked_share"] <= 1
    assert f"{written['model']['psnr']:.2f}" in capsys.readouterr().out
