"""Activation ranges: what is measured, where it lies, and when it is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pikfix_steps import SYSTEM, module_of
from PIL import Image
from torch import nn

from pikfix.cli.main import main
from pikfix.export import ExportError
from pikfix.export.calibration import (
    RangesByStep,
    load_ranges,
    measure_ranges,
    ranges_of,
    ranges_path,
    save_ranges,
)
from pikfix.systems.pikfix.networks import load_checkpoint


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint whose folder may be written."""
    return Path(shutil.copy(checkpoint, tmp_path / "own.safetensors"))


def ranges_on_noise(checkpoint: Path) -> RangesByStep:
    torch.manual_seed(0)
    pictures = [
        {
            "photo_l": torch.rand(1, 1, 64, 64) * 2 - 1,
            "reference_lab": torch.rand(1, 1, 3, 64, 64) - 0.5,
        }
    ]
    return measure_ranges(SYSTEM, load_checkpoint(checkpoint), pictures)


def test_every_convolution_of_both_networks_is_measured(checkpoint: Path) -> None:
    model = load_checkpoint(checkpoint)
    found = ranges_on_noise(checkpoint)
    assert set(found) == {"restore", "colorize"}
    for step in found:
        module = module_of(model, step)
        layers = {n: m for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
        assert set(found[step]) == set(layers)
        for name, low_high in found[step].items():
            assert low_high.shape == (2, layers[name].in_channels)
            assert bool((low_high[0] <= low_high[1]).all())


def test_ranges_lie_beside_their_checkpoint(own: Path) -> None:
    assert load_ranges(own) is None
    ranges = ranges_on_noise(own)
    assert save_ranges(ranges, own, 1) == own.with_name("own.ranges.safetensors")
    loaded, source = ranges_of(SYSTEM, load_checkpoint(own), own)
    assert str(ranges_path(own)) in source
    for step, layers in ranges.items():
        assert set(loaded[step]) == set(layers)
        for name, value in layers.items():
            assert torch.equal(loaded[step][name], value)
    assert [p.name for p in own.parent.glob(".*")] == []  # no temporary file is left


def test_ranges_of_another_checkpoint_are_refused(own: Path) -> None:
    save_ranges(ranges_on_noise(own), own, 1)
    own.write_bytes(own.read_bytes() + b" ")
    with pytest.raises(ExportError, match="measured on another checkpoint: run `pikfix calibrate"):
        load_ranges(own)


@pytest.mark.parametrize("content", [b"", b"no safetensors", None])
def test_a_damaged_file_is_named(own: Path, content: bytes | None) -> None:
    path = ranges_path(own)
    path.write_bytes(own.read_bytes() if content is None else content)
    with pytest.raises(ExportError, match=re.escape(str(path))):
        load_ranges(own)


def test_the_command_measures_photos_and_names_what_it_skips(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    (photos / "broken.jpg").write_bytes(b"not a picture")
    assert main(["calibrate", str(own), "--photos", str(photos)]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("measured on 2 photos\n")
    assert "skipped" in err and "broken.jpg" in err
    measured = load_ranges(own)
    assert measured is not None
    # L in [-1, 1] reaches the first convolution as it is.
    assert float(measured["restore"]["restoration.levels.0.head"].abs().max()) <= 1

    (photos / "0.png").unlink()
    (photos / "1.png").unlink()
    assert main(["calibrate", str(own), "--photos", str(photos)]) == 1
    assert "no photo in" in capsys.readouterr().err
    assert main(["calibrate", str(own), "--photos", str(tmp_path / "none")]) == 1
    assert "is not a folder" in capsys.readouterr().err
