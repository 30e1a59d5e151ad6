from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from training_runs import SMALL

from pikfix.cli.main import main
from pikfix.systems.checkpoint import load, read_metadata, save_checkpoint
from pikfix.systems.damage.networks import Damage
from pikfix.systems.pikfix.networks import PikFix, load_checkpoint
from pikfix.training.errors import TrainingError
from pikfix.training.run import loaded, start_from


def _train(photos, out, *words):
    return main(["train", "--photos", str(photos), "-o", str(out), *SMALL, *words])


def test_training_and_resuming_from_the_command_line(photo_folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert _train(photo_folder, run, "--steps", "1", "--optimizer", "ema=0.5") == 0
    assert "finished at step 1" in capsys.readouterr().out
    words = ("--steps", "2", "--resume", "--optimizer", "ema=0.5")
    assert _train(photo_folder, run, *words) == 0
    assert "resuming at step 1" in capsys.readouterr().err
    assert load_checkpoint(run / "model.safetensors").config.bins == 8
    assert json.loads((run / "config.json").read_text())["training"]["optimizer"]["ema"] == 0.5


@pytest.mark.parametrize(
    "ablation",
    ["similarity=none", "similarity=single", "fusion=input_ab", "restoration_levels=1"],
)
def test_the_papers_ablations_train(photo_folder, tmp_path, ablation):
    assert _train(photo_folder, tmp_path / "run", "--steps", "1", "--ablation", ablation) == 0
    name, _, value = ablation.partition("=")
    config = load_checkpoint(tmp_path / "run" / "model.safetensors").config
    assert getattr(config, name) == ((1,) if value == "1" else value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ablation", "bin=3"), "--ablation bin=3: give NAME=VALUE with one of name,"),
        (("--ablation", "bins=many"), "give a whole number"),
        (("--ablation", "damage=some"), "--ablation damage=some: give none"),
        (("--ablation", "similarity=some"), "similarity is 'some'"),
        (("--loss", "chroma"), "give NAME=VALUE"),
        (("--loss", "chroma=-1"), "at least 0"),
        (("--optimizer", "ema=2"), "it must be in [0, 1)"),
        (("--train", "decoder"), "choose from restoration, similarity, colorization"),
        (("--crop", "50"), "multiple of 32"),
        (("--preset", "huge"), "compact"),
        (("--minutes", "-1"), "--minutes"),
    ],
)
def test_wrong_usage(photo_folder, tmp_path, capsys, words, message):
    assert _train(photo_folder, tmp_path / "run", *words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_failures_are_one_line(photo_folder, tmp_path, capsys):
    assert _train(tmp_path / "nowhere", tmp_path / "run", "--steps", "1") == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("pikfix: ")
    assert "is not a folder" in error[-1]


def test_temperature_annealing_can_be_switched_off(photo_folder, tmp_path):
    words = ("--steps", "1", "--optimizer", "temperature_start=none")
    assert _train(photo_folder, tmp_path / "run", *words) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["training"]
    assert config["optimizer"]["temperature_start"] is None


def test_an_error_ends_the_run_and_its_workers(photo_folder, tmp_path):
    """They leave signals to the training process, which must not wait for them when it fails."""
    words = ["train", "--photos", str(photo_folder), "-o", str(tmp_path / "run"), *SMALL]
    program = f"""
import sys
from pikfix.cli.main import main
from pikfix.training.update import Updater

def fail(*_):
    raise RuntimeError("as planned")

Updater.__call__ = fail
sys.exit(main({[*words, "--steps", "2", "--workers", "2"]!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode != 0
    assert "as planned" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_on_a_gpu(photo_folder, tmp_path):
    assert _train(photo_folder, tmp_path / "run", "--steps", "2", "--device", "cuda") == 0


DAMAGE = [
    *("--system", "damage", "--crop", "64", "--batch", "2", "--workers", "0"),
    *("--threads", "1", "--precision", "fp32"),
    *("--ablation", "detector_channels=4,6,8", "--ablation", "filler_channels=4,6,8"),
]


def _train_damage(photos, out, *words):
    return main(["train", "--photos", str(photos), "-o", str(out), *DAMAGE, *words])


def test_damage_networks_are_trained_apart_merged_and_measured(
    photo_folder, stamp_folder, tmp_path, capsys
):
    for stage in ("detector", "filler"):
        words = ("--stage", stage, "--steps", "2", "--val", str(photo_folder))
        words = (*words, "--stamps", str(stamp_folder))
        assert _train_damage(photo_folder, tmp_path / stage, *words) == 0
        assert "validation at step 2: " in capsys.readouterr().err
    words = ("--stage", "detector", "--steps", "3", "--resume", "--val", str(photo_folder))
    words = (*words, "--stamps", str(stamp_folder))
    assert _train_damage(photo_folder, tmp_path / "detector", *words) == 0
    assert "resuming at step 2" in capsys.readouterr().err

    parts = {name: tmp_path / name / "model.safetensors" for name in ("detector", "filler")}
    origins = [word for name, path in parts.items() for word in ("--init", f"{name}={path}")]
    words = ("--stage", "filler", "--steps", "0", *origins)
    assert _train_damage(photo_folder, tmp_path / "damage", *words) == 0
    merged = load(tmp_path / "damage" / "model.safetensors")
    for name, path in parts.items():
        trained = load(path).model.get_submodule(name).state_dict()
        for key, value in merged.model.get_submodule(name).state_dict().items():
            assert torch.equal(value, trained[key])

    checkpoint = str(tmp_path / "damage" / "model.safetensors")
    words = ("--photos", str(photo_folder), "--protocol", "damage")
    assert main(["evaluate", checkpoint, *words]) == 0
    assert "recall at 1 %" in capsys.readouterr().out
    words = ("--photos", str(photo_folder), "--protocol", "restore")
    assert main(["evaluate", checkpoint, *words]) == 2
    assert "is of the system damage: measure damage" in capsys.readouterr().err


def test_a_detector_learns_what_is_damaged(photo_folder, tmp_path, capsys):
    """A hundred steps: damage is told from photos better than by chance."""
    words = ("--stage", "detector", "--steps", "100", "--val", str(photo_folder), "--batch", "4")
    assert _train_damage(photo_folder, tmp_path / "run", *words, "--lr", "0.01") == 0
    found = json.loads(read_metadata(tmp_path / "run" / "best.safetensors")["validation"])
    assert found["auc"] > 0.6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "damage needs a stage: choose from detector, filler"),
        (("--stage", "faces"), "damage has no stage 'faces'"),
        (("--stage", "filler", "--loss", "chroma=0"), "go with --system pikfix alone"),
        (("--stage", "filler", "--ablation", "limit=100"), "limit is 100"),
        (("--stage", "filler", "--crop", "50"), "multiple of 32"),
    ],
)
def test_wrong_usage_of_a_stage(photo_folder, tmp_path, capsys, words, message):
    assert _train_damage(photo_folder, tmp_path / "run", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_stages_belong_to_their_system(photo_folder, tmp_path, capsys):
    assert _train(photo_folder, tmp_path / "run", "--stage", "detector") == 2
    assert "--stage, --stamps and --old-photos go with another --system" in capsys.readouterr().err
    words = ("--stage", "detector", "--steps", "1", "--stamps", str(tmp_path))
    assert _train_damage(photo_folder, tmp_path / "run", *words) == 1
    assert "holds no stamps" in capsys.readouterr().err
    (tmp_path / "stamp.png").write_bytes(b"no picture")
    assert _train_damage(photo_folder, tmp_path / "run", *words) == 1
    assert "a stamp that cannot be read (cannot identify image file" in capsys.readouterr().err


def test_damage_networks_become_a_part_of_the_whole(tiny_config, tmp_path):
    torch.manual_seed(1)
    whole, found = PikFix(tiny_config), Damage(tiny_config.damage)
    save_checkpoint(found, tmp_path / "damage.safetensors", system="damage")
    path = tmp_path / "damage.safetensors"
    before = {k: v.clone() for k, v in whole.restoration.state_dict().items()}
    start_from(whole, loaded(path, "pikfix", "damage"), "damage", path)
    for key, value in found.state_dict().items():
        assert torch.equal(whole.damage.state_dict()[key], value)
    for key, value in whole.restoration.state_dict().items():
        assert torch.equal(before[key], value)
    with pytest.raises(TrainingError, match="is of the system damage, not of pikfix"):
        loaded(path, "pikfix", "restoration")


def test_a_whole_network_takes_damage_networks_in(photo_folder, tmp_path, capsys):
    words = ("--stage", "detector", "--steps", "1")
    assert _train_damage(photo_folder, tmp_path / "damage", *words) == 0
    damage = tmp_path / "damage" / "model.safetensors"
    old = tmp_path / "old"
    assert _train(photo_folder, old, "--steps", "0", "--ablation", "damage=none") == 0
    origins = ("--init", str(old / "model.safetensors"), "--init", f"damage={damage}")
    words = ("--steps", "0", *origins)
    assert _train(photo_folder, tmp_path / "refused", *words) == 1
    error = capsys.readouterr().err
    assert "detector_channels: " in error
    assert "temperature: " not in error
