"""What a run refuses, skips or says: bad options, bad steps, bad photos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from training_runs import Quiet, rows_of, weights_of

from pikfix.systems.pikfix.training.config import TrainConfig, preset
from pikfix.systems.pikfix.training.stages import Colors
from pikfix.training.config import differences
from pikfix.training.errors import TrainingError


def poison(monkeypatch, bad_steps):
    losses = Colors.losses
    seen = []

    def poisoned(self, inputs, outputs):
        result = losses(self, inputs, outputs)
        seen.append(1)
        if len(seen) - 1 in bad_steps:
            result["chroma"] = result["chroma"] * float("nan")
        return result

    monkeypatch.setattr(Colors, "losses", poisoned)


def test_a_step_that_is_not_finite_is_skipped(config, run, tmp_path, monkeypatch):
    poison(monkeypatch, {1, 3})
    reporter = Quiet()
    run(config(), steps=5, reporter=reporter)
    assert reporter.text.count("the step is skipped") == 2
    rows = rows_of(tmp_path / "run" / "training.csv")
    assert [row["skipped"] for row in rows] == ["0", "1", "0", "1", "0"]
    assert all(t.isfinite().all() for t in weights_of(tmp_path / "run").values())


def test_a_run_that_stays_not_finite_stops(config, run, tmp_path, monkeypatch):
    poison(monkeypatch, set(range(2, 100)))
    with pytest.raises(TrainingError, match="no finite gradient for 5 steps"):
        run(config(), steps=50, checkpoint_minutes=0)
    assert all(t.isfinite().all() for t in weights_of(tmp_path / "run").values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"photos": Path("nowhere")}, "nowhere is not a folder"),
        ({"validation": Path("nowhere")}, "nowhere is not a folder"),
        ({"feature_weights": Path("nowhere.pth")}, "nowhere.pth cannot be read"),
        ({"neighbours": Path("nowhere.npz")}, "nowhere.npz cannot be read"),
        ({"init": ((None, Path("nowhere.safetensors")),)}, "nowhere.safetensors"),
        ({"resume": True}, "no run to resume"),
        ({"device": "tpu"}, "choose cpu or cuda"),
        ({"devices": 3}, "cannot be shared by 3 devices"),
    ],
)
def test_bad_options(config, run, changes, words):
    with pytest.raises(TrainingError, match=words.replace(".", r"\.")) as caught:
        run(config(), steps=1, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device(config, run):
    with pytest.raises(TrainingError, match="no CUDA device"):
        run(config(), steps=1, device="cuda")


def test_a_folder_where_a_file_is(config, run, tmp_path):
    (tmp_path / "run").write_text("x")
    with pytest.raises(TrainingError, match="cannot be made"):
        run(config(), steps=1)


def test_no_validation_folder_is_said(config, run, tmp_path):
    reporter = Quiet()
    run(config(), steps=1, reporter=reporter)
    assert "without validation" in reporter.text
    assert "the perceptual term is left out" in reporter.text


def test_skipped_photos_are_said_and_listed(config, run, photo_folder, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in photo_folder.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    for number in range(12):
        (folder / f"bad{number:02d}.jpg").write_bytes(b"no photo")
    reporter = Quiet()
    run(config(), steps=1, photos=folder, reporter=reporter)
    assert "4 photos, 12 files skipped" in reporter.text
    assert "skipped bad00.jpg: unreadable" in reporter.text
    assert "and 2 more" in reporter.text
    assert len(rows_of(tmp_path / "run" / "skipped.csv")) == 12


def test_configurations_survive_json_and_refuse_nonsense():
    for name in ("compact", "paper"):
        config = preset(name)
        assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert differences(config.to_dict(), json.loads(json.dumps(config.to_dict()))) == []
    published = preset("paper")
    assert (published.loss.perceptual, published.loss.histogram) == (0.2, 0.5)
    with pytest.raises(ValueError, match="no preset 'huge'"):
        preset("huge")
    for changes in (
        {"data": {"crop": 100}},
        {"data": {"side": 64}},
        {"data": {"sibling": -1}},
        {"data": {"unknown": 1}},
        {"loss": {"chroma": -1}},
        {"loss": {"histogram_target": "x"}},
        {"optimizer": {"learning_rate": 0}},
        {"optimizer": {"schedule": "x"}},
        {"data": {"sparse_damage_share": 1.5}},
        {"parts": ["decoder"]},
        {"color_input": "x"},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            TrainConfig.from_dict(preset("compact").to_dict() | changes)
    older = preset("compact").to_dict()
    older["data"]["light"] = older["data"].pop("sparse_damage_share")
    assert TrainConfig.from_dict(older) == preset("compact")
    with pytest.raises(ValueError, match="no tone to train"):
        TrainConfig.from_dict(preset("paper").to_dict() | {"parts": ["tone"]})
