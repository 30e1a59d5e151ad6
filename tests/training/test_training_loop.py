from __future__ import annotations

import csv
import dataclasses
import errno
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pikfix.networks import PikFix, load_checkpoint, read_metadata
from pikfix.training import loop, schedule
from pikfix.training.average import Average
from pikfix.training.config import LossConfig, OptimizerConfig, TrainConfig, differences, preset
from pikfix.training.errors import TrainingError
from pikfix.training.features import SqueezeNet
from pikfix.training.logs import MEASURES, Csv, Reporter
from pikfix.training.loop import Budget, Trainer
from pikfix.training.run import RunOptions, train
from pikfix.training.state import PREVIOUS, STATE, load_state


class Quiet(Reporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(None, None, io.StringIO())

    @property
    def text(self) -> str:
        return self._stream.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def run(photo_folder, tmp_path):
    """Train in `tmp_path / name` and return the result; keywords are options or the budget's."""

    def start(config, name="run", reporter=None, **changes):
        budget = {key: changes.pop(key) for key in list(changes) if key in BUDGET}
        options = RunOptions(photos=photo_folder, folder=tmp_path / name, workers=0)
        options = dataclasses.replace(
            options, budget=Budget(**({"log_steps": 1} | budget)), **changes
        )
        return train(config, options, reporter or Quiet())

    return start


BUDGET = {field.name for field in dataclasses.fields(Budget)}


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def _same(first: Path, second: Path) -> None:
    a, b = _weights(first), _weights(second)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


STEADY = OptimizerConfig(
    batch=2, warmup=2, precision="fp32", schedule="constant", temperature_start=None
)
"""Schedules that do not depend on the budget, for runs whose budget is raised."""


# -- sameness --------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_model_and_another_does_not(config, run, tmp_path):
    for name, seed, workers in (("a", 3, 0), ("b", 3, 1), ("c", 4, 0)):
        run(config(seed=seed), name, steps=3, workers=workers)
    _same(tmp_path / "a", tmp_path / "b")
    other = _weights(tmp_path / "c")
    assert any(not torch.equal(t, other[name]) for name, t in _weights(tmp_path / "a").items())


SCRIPT = """
import dataclasses, sys, json
from pathlib import Path
import torch
torch.set_num_threads(1)
from pikfix.training.config import TrainConfig
from pikfix.training.loop import Budget
from pikfix.training.run import RunOptions, train
config = TrainConfig.from_dict(json.loads(sys.argv[1]))
budget = Budget(steps=int(sys.argv[4]), checkpoint_minutes=0, log_steps=1)
train(config, RunOptions(Path(sys.argv[2]), Path(sys.argv[3]), workers=1, budget=budget))
"""


def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(config, run, photo_folder, tmp_path):
    """SIGKILL at a random moment while it checkpoints after every step; then --resume."""
    steps = 60
    arguments = [json.dumps(config().to_dict()), str(photo_folder), str(tmp_path / "killed")]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments, str(steps)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / PREVIOUS).exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.5))  # any moment will do, that is the point
    process.kill()
    process.wait()
    at = load_state(tmp_path / "killed")[0]["step"]
    assert 0 < at < steps

    run(config(), "killed", steps=steps, resume=True)
    run(config(), "whole", steps=steps)
    _same(tmp_path / "killed", tmp_path / "whole")
    whole, killed = (_rows(tmp_path / name / "training.csv") for name in ("whole", "killed"))
    assert [row["step"] for row in killed] == [str(i + 1) for i in range(steps)]
    for name in ("total", "chroma", "luminance", "discriminator", "gradient_norm"):
        assert [row[name] for row in killed[at:]] == [row[name] for row in whole[at:]]


def test_a_signal_ends_the_run_with_a_checkpoint_that_continues_exactly(
    config, run, tmp_path, monkeypatch
):
    step = Trainer._step

    def interrupted(self, batch):
        values = step(self, batch)
        if self.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return values

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        result = run(config(), "stopped", steps=4)
    assert (result.reason, result.step) == ("stopped", 2)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert run(config(), "stopped", steps=4, resume=True).reason == "finished"
    run(config(), "whole", steps=4)
    _same(tmp_path / "stopped", tmp_path / "whole")


def test_a_signal_to_the_whole_process_group_ends_the_run_politely(config, photo_folder, tmp_path):
    """A terminal or a service manager signals the data loader's workers as well."""
    arguments = [json.dumps(config().to_dict()), str(photo_folder), str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments, "100000"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / STATE).exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert load_state(tmp_path / "run")[0]["step"] > 0


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
    one, two = _weights(tmp_path / "1"), _weights(tmp_path / "2")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


# -- what is trained ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts", [("restoration",), ("colorization",), ("similarity", "colorization")]
)
def test_only_the_chosen_parts_change(config, run, tmp_path, parts):
    run(config(parts=parts, color_input="clean"), steps=2)
    torch.manual_seed(3)
    before, after = PikFix(config().network).state_dict(), _weights(tmp_path / "run")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(parts)


@pytest.mark.parametrize(("color_input", "reaches"), [("restored", False), ("joint", True)])
def test_the_colour_losses_reach_the_restoration_only_when_joint(
    config, run, tmp_path, color_input, reaches
):
    """Without losses of its own the restoration moves by the colours' gradient alone."""
    weights = LossConfig(luminance=0, perceptual=0, adversarial=0)
    run(config(loss=weights, color_input=color_input), steps=2)
    torch.manual_seed(3)
    before, after = PikFix(config().network).state_dict(), _weights(tmp_path / "run")
    moved = any(not torch.equal(before[name], after[name]) for name in before if name[:4] == "rest")
    assert moved == reaches


def test_terms_are_logged_weighted_and_can_be_switched_off(config, run, tmp_path):
    torch.manual_seed(0)
    save_file(SqueezeNet().state_dict(), tmp_path / "net.safetensors")
    features = tmp_path / "net.safetensors"
    everything = LossConfig(structure=0.4, distillation=0.3, discriminator_width=4)
    run(config(loss=everything), "all", steps=1, feature_weights=features)
    row = _rows(tmp_path / "all" / "training.csv")[0]
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
        other = _rows(tmp_path / name / "training.csv")[0]
        assert other[name] == ""
        if name == "adversarial":
            assert other["discriminator"] == ""
        for still in set(weights) - {name}:
            assert float(other[still]) > 0


def test_a_run_learns(config, run, tmp_path):
    options = OptimizerConfig(
        batch=4, warmup=1, learning_rate=3e-3, precision="fp32", schedule="constant"
    )
    loss = LossConfig(adversarial=0, histogram=0)
    run(config(optimizer=options, loss=loss), steps=40)
    rows = _rows(tmp_path / "run" / "training.csv")
    chroma = [float(row["chroma"]) for row in rows]
    assert np.mean(chroma[-10:]) < 0.8 * np.mean(chroma[:5])


def test_bf16_trains_too(config, run, tmp_path):
    options = OptimizerConfig(batch=2, precision="bf16")
    run(config(optimizer=options), steps=2)
    assert all(t.isfinite().all() for t in _weights(tmp_path / "run").values())
    assert all(row["skipped"] == "0" for row in _rows(tmp_path / "run" / "training.csv"))


def test_the_average_follows_its_definition(config):
    torch.manual_seed(0)
    net = PikFix(config().network)
    average = Average(net, 0.9)
    name, value = next(iter(net.named_parameters()))
    expected = value.detach().double().clone()
    for n in range(12):
        with torch.no_grad():
            value.add_(0.1 * n)
        average.update(net)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value.detach().double()
    ours = dict(average.model.named_parameters())[name]
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in average.model.parameters())


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


# -- guards ------------------------------------------------------------------------------------


def _poison(monkeypatch, bad_steps):
    terms = loop.Objective.terms
    seen = []

    def poisoned(self, inputs, outputs):
        result = terms(self, inputs, outputs)
        seen.append(1)
        if len(seen) - 1 in bad_steps:
            result["chroma"] = result["chroma"] * float("nan")
        return result

    monkeypatch.setattr(loop.Objective, "terms", poisoned)


def test_a_step_that_is_not_finite_is_skipped(config, run, tmp_path, monkeypatch):
    _poison(monkeypatch, {1, 3})
    reporter = Quiet()
    run(config(), steps=5, reporter=reporter)
    assert reporter.text.count("the step is skipped") == 2
    rows = _rows(tmp_path / "run" / "training.csv")
    assert [row["skipped"] for row in rows] == ["0", "1", "0", "1", "0"]
    assert all(t.isfinite().all() for t in _weights(tmp_path / "run").values())


def test_a_run_that_stays_not_finite_stops(config, run, tmp_path, monkeypatch):
    _poison(monkeypatch, set(range(2, 100)))
    with pytest.raises(TrainingError, match="no finite gradient for 5 steps"):
        run(config(), steps=50, checkpoint_minutes=0)
    assert all(t.isfinite().all() for t in _weights(tmp_path / "run").values())


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before_whole(
    config, run, tmp_path, monkeypatch
):
    run(config(optimizer=STEADY), steps=2)
    fsync, reporter = os.fsync, Quiet()
    before = (tmp_path / "run" / STATE).read_bytes()
    calls = []

    def full_once_training(descriptor):
        # Logs and the folder's small files still fit.
        if os.fstat(descriptor).st_size > 50_000:
            calls.append(1)
            _full_disk()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_once_training)
    with pytest.raises(TrainingError, match=r"No space left.*the one before it is whole"):
        run(config(optimizer=STEADY), steps=9, checkpoint_minutes=0, resume=True, reporter=reporter)
    assert len(calls) == loop.MAX_FAILED_SAVES
    assert "No space left" in reporter.text
    assert (tmp_path / "run" / STATE).read_bytes() == before
    assert not list((tmp_path / "run").glob(".*"))
    monkeypatch.undo()
    assert run(config(optimizer=STEADY), steps=4, resume=True).reason == "finished"
    run(config(optimizer=STEADY), "whole", steps=4)
    _same(tmp_path / "run", tmp_path / "whole")


def test_a_damaged_state_falls_back_to_the_one_before(config, run, tmp_path):
    run(config(optimizer=STEADY), steps=3, checkpoint_minutes=0)
    folder = tmp_path / "run"
    whole = (folder / STATE).read_bytes()
    (folder / STATE).write_bytes(whole[: len(whole) // 2])
    reporter = Quiet()
    run(config(optimizer=STEADY), steps=4, resume=True, reporter=reporter)
    assert "damaged" in reporter.text
    assert "resuming at step 2" in reporter.text
    run(config(optimizer=STEADY), "whole", steps=4)
    _same(folder, tmp_path / "whole")
    for name in (STATE, PREVIOUS):
        (folder / name).write_bytes(b"")
    with pytest.raises(TrainingError, match="cannot be resumed"):
        run(config(optimizer=STEADY), steps=5, resume=True)


# -- what is refused ---------------------------------------------------------------------------


def test_another_configuration_is_refused_by_name(config, run):
    run(config(), steps=1)
    other = config(
        seed=9,
        data=dataclasses.replace(config().data, crop=32),
        network=dataclasses.replace(config().network, bins=16),
    )
    with pytest.raises(TrainingError) as caught:
        run(other, steps=2, resume=True)
    for part in ("seed: 3 -> 9", "data.crop: 64 -> 32", "network.bins: 8 -> 16"):
        assert part in str(caught.value)
    with pytest.raises(TrainingError, match="already holds a run"):
        run(config(), steps=2)


def test_other_photos_are_refused(config, run, photo_folder, tmp_path):
    run(config(), steps=1)
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    for name in ("astronaut", "coffee", "rocket"):
        (fewer / f"{name}.png").write_bytes((photo_folder / f"{name}.png").read_bytes())
    with pytest.raises(TrainingError, match=r"neighbours\.npz|photos"):
        run(config(), steps=2, resume=True, photos=fewer)


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


# -- what a run leaves behind ------------------------------------------------------------------


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
    rows = _rows(folder / "validation.csv")
    assert [row["step"] for row in rows] == ["1", "2", "2"]
    for name in MEASURES:
        assert math.isfinite(float(rows[0][name])), name
    assert float(rows[0]["psnr_grey"]) == pytest.approx(float(rows[1]["psnr_grey"]))
    grid = Image.open(folder / "grids" / "step_0000002.jpg")
    assert grid.size == (7 * 64, 2 * 64)
    assert "validation at step 2" in reporter.text
    assert "psnr" in json.loads(read_metadata(folder / "best.safetensors")["validation"])
    assert list((folder / "tensorboard").glob("events*"))


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
    assert len(_rows(tmp_path / "run" / "skipped.csv")) == 12


def test_the_model_loads_and_starts_the_next_run(config, run, tmp_path):
    run(config(), "first", steps=2)
    path = tmp_path / "first" / "model.safetensors"
    metadata = read_metadata(path)
    assert metadata["steps"] == "2"
    assert TrainConfig.from_dict(json.loads(metadata["training"])) == config()
    network = dataclasses.replace(config().network, temperature=0.02)
    frozen = OptimizerConfig(batch=2, learning_rate=1e-12, precision="fp32", warmup=1, ema=0)
    run(config(network=network, optimizer=frozen), "second", steps=1, init=((None, path),))
    first, second = _weights(tmp_path / "first"), _weights(tmp_path / "second")
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
    merged, first, second = (_weights(tmp_path / name) for name in ("merged", "a", "b"))
    for name, tensor in merged.items():
        source = second if name.startswith("restoration.") else first
        assert torch.equal(tensor, source[name]), name
    with pytest.raises(TrainingError, match="there is no sub-net 'decoder'"):
        run(config(), "other", steps=0, init=(("decoder", a),))


def test_an_interrupted_annealing_exports_the_temperature_it_reached(config, run, tmp_path):
    options = OptimizerConfig(
        batch=2, precision="fp32", temperature_start=0.16, temperature_anneal=1.0
    )
    network = dataclasses.replace(config().network, temperature=0.01)
    quick = config(optimizer=options, network=network)
    run(quick, steps=4, checkpoint_minutes=100)
    model = load_checkpoint(tmp_path / "run" / "model.safetensors")
    assert model.config.temperature == pytest.approx(0.01)
    temperatures = [float(r["temperature"]) for r in _rows(tmp_path / "run" / "training.csv")]
    assert temperatures == pytest.approx([0.16, 0.08, 0.04, 0.02])


def test_a_budget_of_minutes_ends_a_run_and_counts_over_resumes(config, run):
    result = run(config(), minutes=0.01)
    assert result.reason == "finished"
    assert result.minutes >= 0.01
    again = run(config(), minutes=0.01, resume=True)
    assert again.step == result.step


def test_csv_drops_what_came_after_the_resumed_step(tmp_path):
    path = tmp_path / "log.csv"
    log = Csv(path, ("step", "loss"), None)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": step / 7, "unknown": 1})
    with path.open("a") as file:
        file.write("4,")  # a row that was cut off
    Csv(path, ("step", "loss"), 2).write({"step": 3, "loss": 0.5})
    assert path.read_text() == "step,loss\n1,0.142857\n2,0.285714\n3,0.5\n"


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
        {"parts": ["decoder"]},
        {"color_input": "x"},
    ):
        with pytest.raises(ValueError, match=r"\w"):
            TrainConfig.from_dict(preset("compact").to_dict() | changes)
