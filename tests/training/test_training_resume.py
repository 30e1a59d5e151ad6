"""Runs that end early: the same result after --resume, and nothing lost."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from training_runs import SCRIPT, STEADY, Quiet, assert_same, full_disk, rows_of

from pikfix.systems.pikfix.networks import load_checkpoint
from pikfix.training import loop
from pikfix.training.config import OptimizerConfig
from pikfix.training.errors import TrainingError
from pikfix.training.logs import Csv
from pikfix.training.loop import Trainer
from pikfix.training.state import PREVIOUS, STATE, load_state


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
    assert_same(tmp_path / "killed", tmp_path / "whole")
    whole, killed = (rows_of(tmp_path / name / "training.csv") for name in ("whole", "killed"))
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
    assert_same(tmp_path / "stopped", tmp_path / "whole")


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
            full_disk()
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
    assert_same(tmp_path / "run", tmp_path / "whole")


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
    assert_same(folder, tmp_path / "whole")
    for name in (STATE, PREVIOUS):
        (folder / name).write_bytes(b"")
    with pytest.raises(TrainingError, match="cannot be resumed"):
        run(config(optimizer=STEADY), steps=5, resume=True)


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


def test_an_interrupted_annealing_exports_the_temperature_it_reached(config, run, tmp_path):
    options = OptimizerConfig(
        batch=2, precision="fp32", temperature_start=0.16, temperature_anneal=1.0
    )
    network = dataclasses.replace(config().network, temperature=0.01)
    quick = config(optimizer=options, network=network)
    run(quick, steps=4, checkpoint_minutes=100)
    model = load_checkpoint(tmp_path / "run" / "model.safetensors")
    assert model.config.temperature == pytest.approx(0.01)
    temperatures = [float(r["temperature"]) for r in rows_of(tmp_path / "run" / "training.csv")]
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
