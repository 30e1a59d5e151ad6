"""What a run trains, logs and writes."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from training_runs import SCRIPT, Quiet, assert_same, rows_of, weights_of

from pikfix.systems.checkpoint import read_metadata
from pikfix.systems.pikfix.networks import PikFix, load_checkpoint
from pikfix.systems.pikfix.training.config import LossConfig, TrainConfig
from pikfix.training import schedule
from pikfix.training.average import running_average
from pikfix.training.config import OptimizerConfig
from pikfix.training.errors import TrainingError
from pikfix.training.features import SqueezeNet


def test_the_same_seed_gives_the_same_model_and_another_does_not(config, run, tmp_path):
    for name, seed, workers in (("a", 3, 0), ("b", 3, 1), ("c", 4, 0)):
        run(config(seed=seed), name, steps=3, workers=workers)
    assert_same(tmp_path / "a", tmp_path / "b")
    other = weights_of(tmp_path / "c")
    assert any(not torch.equal(t, other[name]) for name, t in weights_of(tmp_path / "a").items())


def test_two_processes_equal_one(config, photo_folder, tmp_path):
    """Restoration has no batch statistics, so that data-parallel gradients are the same."""
    pytest.importorskip("torch.distributed")
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    code = tmp_path / "start.py"
    code.write_text(
        SCRIPT.replace("workers=1", "workers=0, devices=int(sys.argv[5])"), encoding="utf-8"
    )
    settings = json.dumps(config(parts=("restoration",)).to_dict())
    for devices in (1, 2):
        arguments = [settings, str(photo_folder), str(tmp_path / str(devices)), "3", str(devices)]
        subprocess.run(
            [sys.executable, str(code), *arguments], check=True, capture_output=True, timeout=280
        )
    one, two = weights_of(tmp_path / "1"), weights_of(tmp_path / "2")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "parts", [("restoration",), ("colorization",), ("similarity", "colorization")]
)
def test_only_the_chosen_parts_change(config, run, tmp_path, parts):
    run(config(parts=parts, color_input="clean"), steps=2)
    torch.manual_seed(3)
    before, after = PikFix(config().network).state_dict(), weights_of(tmp_path / "run")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(parts)


def test_the_tone_is_trained_alone(config, run, tmp_path):
    network = dataclasses.replace(config().network, tone_channels=4)
    run(config(network=network, parts=("tone",)), steps=3)
    torch.manual_seed(3)
    before, after = PikFix(network).state_dict(), weights_of(tmp_path / "run")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("restoration.tone.") for name in changed)


@pytest.mark.parametrize(("color_input", "reaches"), [("restored", False), ("joint", True)])
def test_the_colour_losses_reach_the_restoration_only_when_joint(
    config, run, tmp_path, color_input, reaches
):
    """Without losses of its own the restoration moves by the colours' gradient alone."""
    weights = LossConfig(luminance=0, perceptual=0, adversarial=0)
    run(config(loss=weights, color_input=color_input), steps=2)
    torch.manual_seed(3)
    before, after = PikFix(config().network).state_dict(), weights_of(tmp_path / "run")
    moved = any(not torch.equal(before[name], after[name]) for name in before if name[:4] == "rest")
    assert moved == reaches


def test_terms_are_logged_weighted_and_can_be_switched_off(config, run, tmp_path):
    torch.manual_seed(0)
    save_file(SqueezeNet().state_dict(), tmp_path / "net.safetensors")
    features = tmp_path / "net.safetensors"
    everything = LossConfig(structure=0.4, distillation=0.3, discriminator_width=4)
    run(config(loss=everything), "all", steps=1, feature_weights=features)
    row = rows_of(tmp_path / "all" / "training.csv")[0]
    weights = {
        "luminance": 1.0,
        "perceptual": 0.2,
        "histogram": 0.5,
        "chroma": 1.0,
        "adversarial": 0.2,
        "structure": 0.4,
        "distillation": 0.3,
    }
    total = sum(weight * float(row[name]) for name, weight in weights.items())
    assert float(row["total"]) == pytest.approx(total, rel=1e-4)
    for name in weights:
        run(
            config(loss=dataclasses.replace(everything, **{name: 0})),
            name,
            steps=1,
            feature_weights=features,
        )
        other = rows_of(tmp_path / name / "training.csv")[0]
        assert other[name] == ""
        if name == "adversarial":
            assert "discriminator" not in other
        for still in set(weights) - {name}:
            assert float(other[still]) > 0


def test_a_run_learns(config, run, tmp_path):
    options = OptimizerConfig(
        batch=4, warmup=1, learning_rate=3e-3, precision="fp32", schedule="constant"
    )
    loss = LossConfig(adversarial=0, histogram=0)
    run(config(optimizer=options, loss=loss), steps=80)
    rows = rows_of(tmp_path / "run" / "training.csv")
    chroma = [float(row["chroma"]) for row in rows]
    # A median in the end: one batch of four crops can be a saturated one. Rounding, which is each
    # CPU's own, decides where a run of tiny networks ends: 0.65 to 0.74 of the beginning.
    assert np.median(chroma[-20:]) < 0.8 * np.mean(chroma[:10])


def test_bf16_trains_too(config, run, tmp_path):
    options = OptimizerConfig(batch=2, precision="bf16")
    run(config(optimizer=options), steps=2)
    assert all(t.isfinite().all() for t in weights_of(tmp_path / "run").values())
    assert all(row["skipped"] == "0" for row in rows_of(tmp_path / "run" / "training.csv"))


def test_the_average_follows_its_definition(config):
    torch.manual_seed(0)
    net = PikFix(config().network)
    average = running_average(net, 0.9)
    name, value = next(iter(net.named_parameters()))
    expected = value.detach().double().clone()
    for n in range(12):
        with torch.no_grad():
            value.add_(0.1 * n)
        average.update_parameters(net)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value.detach().double()
    ours = dict(average.module.named_parameters())[name]
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in average.module.parameters())


def test_schedules():
    options = OptimizerConfig(learning_rate=0.01, warmup=10, temperature_start=0.16)

    def rate(step, epoch=0, used=0.0, **changes):
        changed = dataclasses.replace(options, **changes)
        return schedule.learning_rate(changed, step, epoch, used)

    assert rate(0) == pytest.approx(0.001)
    assert rate(500, used=0.5) == pytest.approx(0.01 * (0.01 + 0.99 * 0.5))
    assert rate(500, used=1.0) == pytest.approx(0.0001)
    assert rate(500, used=0.5, schedule="constant") == 0.01
    assert rate(500, epoch=100, schedule="exponential") == pytest.approx(0.01 * 0.99**100)

    for used, expected in ((0, 0.16), (0.15, math.sqrt(0.16 * 0.01)), (0.3, 0.01), (1, 0.01)):
        assert schedule.temperature(options, 0.01, used) == pytest.approx(expected)
    still = dataclasses.replace(options, temperature_start=None)
    assert schedule.temperature(still, 0.01, 0) == 0.01

    assert schedule.progress(250, 99.0, 1000, 10.0) == 0.25
    assert schedule.progress(250, 5.0, None, 10.0) == 0.5
    assert schedule.progress(250, 50.0, None, 10.0) == 1
    assert schedule.progress(250, 5.0, None, None) == 0


def test_validation_grid_best_model_and_logs(config, run, photo_folder, tmp_path):
    reporter = Quiet()
    run(
        config(),
        steps=2,
        validation=photo_folder,
        validation_side=64,
        validation_limit=2,
        validation_minutes=0,
        reporter=reporter,
    )
    folder = tmp_path / "run"
    rows = rows_of(folder / "validation.csv")
    assert [row["step"] for row in rows] == ["1", "2", "2"]
    assert {"psnr", "psnr_ab", "colorfulness", "restored_psnr", "clean_psnr"} < set(rows[0])
    for name, value in rows[0].items():
        assert math.isfinite(float(value)), name
    assert float(rows[0]["psnr_grey"]) == pytest.approx(float(rows[1]["psnr_grey"]))
    grid = Image.open(folder / "grids" / "step_0000002.jpg")
    assert grid.size == (7 * 64, 2 * 64)
    assert "validation at step 2" in reporter.text
    assert "psnr" in json.loads(read_metadata(folder / "best.safetensors")["validation"])
    assert list((folder / "tensorboard").glob("events*"))


def test_the_model_loads_and_starts_the_next_run(config, run, tmp_path):
    run(config(), "first", steps=2)
    path = tmp_path / "first" / "model.safetensors"
    metadata = read_metadata(path)
    assert metadata["steps"] == "2"
    assert TrainConfig.from_dict(json.loads(metadata["training"])) == config()
    network = dataclasses.replace(config().network, temperature=0.02)
    frozen = OptimizerConfig(batch=2, learning_rate=1e-12, precision="fp32", warmup=1, ema=0)
    run(config(network=network, optimizer=frozen), "second", steps=1, init=((None, path),))
    first, second = weights_of(tmp_path / "first"), weights_of(tmp_path / "second")
    for name, tensor in first.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(second[name], tensor)
    assert load_checkpoint(tmp_path / "second" / "model.safetensors").config.name == "smallest"
    wider = dataclasses.replace(config().network, bins=16)
    with pytest.raises(TrainingError, match=r"bins: 8 -> 16"):
        run(config(network=wider), "third", steps=1, init=((None, path),))


def test_sub_nets_that_were_trained_apart_are_merged(config, run, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        run(config(seed=seed), name, steps=1)
    a, b = (tmp_path / name / "model.safetensors" for name in "ab")
    run(config(), "merged", steps=0, init=((None, a), ("restoration", b)))
    merged, first, second = (weights_of(tmp_path / name) for name in ("merged", "a", "b"))
    for name, tensor in merged.items():
        source = second if name.startswith("restoration.") else first
        assert torch.equal(tensor, source[name]), name
    with pytest.raises(TrainingError, match="there is no sub-net 'decoder'"):
        run(config(), "other", steps=0, init=(("decoder", a),))
